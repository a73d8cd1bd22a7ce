"""Gymnasium wrappers through which environments play the levels that a curriculum server assigns.

May be imported by users; imports gymnasium, numpy and plr_client, never plr_server. What needs another library lives in
a module of its own, which is imported by name: `wrappers.procgen` and so on. Those whose users hold a curriculum in
their own process (`ray`, `di_engine`, `syllabus`, `level_replay`) import plr_server too, only where they start one.
"""

from wrappers.env import LevelReplay
from wrappers.vector import LevelReplayVector

__all__ = ["LevelReplay", "LevelReplayVector"]
