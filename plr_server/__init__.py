"""The curriculum server: its configuration, the curriculum itself, and a way to run it from Python.

with plr_server.launch(plr_server.Config(levels=range(200))) as server:
    ...  # server.address is what clients and wrappers take
"""

from plr_server.curriculum.config import Config
from plr_server.curriculum.state_machine import Curriculum
from plr_server.serving.launch import launch

__all__ = ["Config", "Curriculum", "launch"]
