"""What the examples have the live page draw and group: MiniGrid, Procgen and the ACCEL mazes."""

from __future__ import annotations

import importlib
import json
import threading
import urllib.request
from pathlib import Path

import faults
import numpy as np
import pytest

from plr_client import Trainer
from plr_server import Config, launch
from plr_server.viewer.collect import Collector
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.pictures import MAX_BYTES, Pictures, thumbnail
from plr_server.viewer.watched import Functions
from plr_server.viewer.web import Pages

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


def needs(module):
    if module == "coinrun_pictures":
        pytest.importorskip("procgen", reason="needs the extra procgen")
    elif module == "minigrid_demo":
        pytest.importorskip("minigrid", reason="needs the extra demo")


def fetched(pages, path):
    with urllib.request.urlopen(f"{pages.url}{path}", timeout=faults.DEADLINE_S) as reply:  # noqa: S310  our own page
        return reply.read()


@pytest.mark.parametrize("module", ["minigrid_demo", "coinrun_pictures", "accel_editing"])
def test_the_page_of_a_server_of_such_levels_has_their_pictures(module):
    needs(module)
    levels, render = levels_of(module), OfLevel("render", f"examples.{module}:picture_of")
    is_payloads = module == "accel_editing"
    config = Config(levels="payloads", capacity=8) if is_payloads else Config(levels=levels)
    with launch(config) as server, Trainer(server.address) as trainer:
        scores = [1.0, 2.0, 3.0, 4.0]
        ids = trainer.insert(levels, scores=scores).tolist() if is_payloads else levels
        if not is_payloads:
            trainer.push_scores(ids, scores)
        with (
            Collector(server.address, functions=Functions(render=Pictures(render))) as collector,
            Pages(collector, 0) as pages,
        ):
            serving = threading.Thread(target=pages.serve_forever)
            serving.start()
            rows = lambda: json.loads(fetched(pages, "levels?curriculum=default&sort=score"))["rows"]  # noqa: E731
            faults.eventually(lambda: {row["id"] for row in rows()} == set(ids), "the first look")
            shown = [fetched(pages, f"picture?curriculum=default&level={level}") for level in ids]
            pages.shutdown()
            serving.join()
    assert shown == [render(level, thumbnail) for level in levels]


@pytest.mark.parametrize("module", ["minigrid_demo", "coinrun_pictures", "accel_editing"])
def test_each_level_has_a_picture_of_its_own_and_always_the_same(module):
    needs(module)
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
