"""The curriculum: the deterministic core. Commands in, results out; no IO, no clock, no threads, no log.

config decides how it behaves, and presets are some with a name; state_machine is the whole: it checks and composes.
scoring/ turns rollouts into scores, and table gives them to levels; assigner decides what each env slot plays next, and
in_flight knows who plays what; sampling/ draws levels from scores, spaces/ says which levels there are; arrays is the
door for all arrays, elementary the functions that are the same on every CPU, copying what copies a state. Imports
plr_client alone (its errors and what both ends call things); nothing here imports zmq, socket, os, time, threading or
logging, which the linter sees to.
"""

from plr_server.curriculum.config import Config
from plr_server.curriculum.state_machine import Curriculum

__all__ = ["Config", "Curriculum"]
