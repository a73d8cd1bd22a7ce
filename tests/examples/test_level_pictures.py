"""What the examples have the live page draw and group: MiniGrid, Procgen and the ACCEL mazes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from plr_server.viewer.functions import OfLevel
from plr_server.viewer.pictures import MAX_BYTES, Pictures, thumbnail

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """As for a viewer that is started in the project's folder."""
    monkeypatch.syspath_prepend(ROOT)


def levels_of(module):
    if module != "accel_editing":
        return [0, 1, 2, 399]
    rng = np.random.default_rng(0)
    return [importlib.import_module("examples.accel_editing").random_maze(rng) for _ in range(4)]


@pytest.mark.parametrize("module", ["minigrid_demo", "coinrun_pictures", "accel_editing"])
def test_each_level_has_a_picture_of_its_own_and_always_the_same(module):
    if module == "coinrun_pictures":
        pytest.importorskip("procgen", reason="needs the extra procgen")
    elif module == "minigrid_demo":
        pytest.importorskip("minigrid", reason="needs the extra demo")
    levels, render = levels_of(module), OfLevel("render", f"examples.{module}:picture_of")
    drawn = [render(level, thumbnail) for level in levels]
    assert None not in drawn
    assert len(set(drawn)) == len(levels)
    assert max(map(len, drawn)) <= MAX_BYTES
    assert [render(level, thumbnail) for level in reversed(levels)] == drawn[::-1]
    kept = Pictures(render)
    assert kept.png(0, lambda: levels[0]) == kept.png(0, lambda: levels[0]) == drawn[0]


def test_groups_are_what_they_say():
    pytest.importorskip("minigrid", reason="needs the extra demo")
    demo = importlib.import_module("examples.minigrid_demo")
    labels = {demo.rooms_of(level) for level in range(60)}
    assert labels == {f"{rooms} rooms" for rooms in demo.ROOMS}
    accel = importlib.import_module("examples.accel_editing")
    assert accel.walls_of(["S#.", "##G"]) == "0 to 9 walls"
    assert accel.walls_of(["#" * 9, "###S..G.."]) == "10 to 19 walls"
