"""plr_server/viewer/groups.py: mass and returns by group, beside sums over a curriculum's levels."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from plr_server import Config, Curriculum
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.groups import MAX_GROUPS, OTHERS, Groups
from plr_server.viewer.measures import look, narrow

MODULE = """
asked = []
def tens(level):
    asked.append(level)
    return level // 10
def odd_ones_fail(level):
    return {0: "even"}[level % 2]
def itself(level):
    return level
"""


@pytest.fixture
def named(importable):
    """Returns functions of a module by name; `asked` of the module is empty at first."""
    importable("grouping", MODULE)
    return lambda name: OfLevel("group", f"grouping:{name}")


def looked(curriculum):
    return look(curriculum.config, curriculum.counters()["draws"], narrow(curriculum.table()))[0]


def played(config, num=400):
    """A curriculum of which some levels were played, to returns that depend on the level."""
    curriculum, rng = Curriculum(config), np.random.default_rng(1)
    for _ in range(num):
        level = curriculum.sample()[0].level
        if rng.random() < 0.8:
            reward, value = np.full((1, 1), level % 7 / 8), np.full((1, 1), rng.random())
            curriculum.update(value, reward, [[1]], [[level]], [0.0])
        else:
            curriculum.update_scores([level], rng.random(1))
    return curriculum


def in_groups(curriculum, group_of):
    """{label: (mass, mean return, number)} of the seen levels."""
    rows, weights, found = curriculum.table(), curriculum.weights(), {}
    for at in np.flatnonzero(rows.seen).tolist():
        mass, returns, num = found.get(group_of(int(rows.ids[at])), (0.0, [], 0))
        returns += [] if np.isnan(rows.last_returns[at]) else [float(rows.last_returns[at])]
        found[group_of(int(rows.ids[at]))] = mass + weights[at], returns, num + 1
    return {label: (mass, np.mean(back) if back else None, num) for label, (mass, back, num) in found.items()}


def told(groups, said):
    mass = (np.frombuffer(base64.b64decode(said["group_mass"]), np.uint8) / 255) ** 3
    return dict(zip(groups.labels, zip(mass, said["group_returns"], said["group_levels"], strict=True), strict=True))


def agrees(groups, said, expected):
    found = told(groups, said)
    assert found.keys() == expected.keys()
    for label, (mass, returned, num) in expected.items():
        assert found[label][0] == pytest.approx(mass, abs=0.01)
        assert found[label][1] == (None if returned is None else pytest.approx(returned, rel=0.005))
        assert found[label][2] == num


def test_mass_and_returns_are_the_sums_over_the_levels(named):
    curriculum = played(Config(levels=range(60), temperature=1.0, staleness_coef=0.3))
    groups = Groups(named("tens"), budget_s=60.0)
    said = groups.look(looked(curriculum), lambda ids: ids)
    agrees(groups, said, in_groups(curriculum, lambda level: str(level // 10)))


def test_where_levels_come_and_go_each_is_asked_for_once_while_it_stays(named):
    import grouping  # noqa: PLC0415  made by the fixture

    curriculum = Curriculum(Config(levels="unbounded", capacity=8, temperature=1.0, replay_prob=0.5))
    groups, rng, inside = Groups(named("tens"), budget_s=60.0), np.random.default_rng(4), set()
    for _ in range(40):
        curriculum.update_scores(rng.integers(0, 60, 3), rng.random(3))
        grouping.asked.clear()
        said = groups.look(looked(curriculum), lambda ids: ids)
        agrees(groups, {**said}, in_groups(curriculum, lambda level: str(level // 10)) | absent(groups, curriculum))
        now = set(curriculum.scores()[0].tolist())
        assert now - inside <= set(grouping.asked) <= now
        inside = now
    assert curriculum.counters()["evicted"] > 10


def absent(groups, curriculum):
    """The groups that were met and have no level now."""
    here = {str(level // 10) for level in curriculum.scores()[0].tolist()}
    return {label: (0.0, None, 0) for label in groups.labels if label not in here}


def test_levels_that_a_function_fails_for_have_no_group_and_are_not_asked_for_again(named, caplog):
    curriculum = played(Config(levels=range(10)))
    groups = Groups(named("odd_ones_fail"), budget_s=60.0)
    for _ in range(2):
        said = groups.look(looked(curriculum), lambda ids: ids)
        assert groups.labels == ["even"]
        assert said["group_levels"] == [5]
    assert len(caplog.messages) == 1


def test_levels_that_are_gone_are_left_for_later(named):
    curriculum = played(Config(levels=range(10)))
    groups = Groups(named("itself"), budget_s=60.0)
    groups.look(looked(curriculum), lambda ids: [None if level == 3 else level for level in ids])
    assert "3" not in groups.labels
    groups.look(looked(curriculum), lambda ids: ids)
    assert "3" in groups.labels


def test_more_groups_than_a_chart_can_show_are_one(named):
    curriculum = played(Config(levels=range(40)), 2000)
    groups = Groups(named("itself"), budget_s=60.0, labels=["7", "5"])
    said = groups.look(looked(curriculum), lambda ids: ids)
    assert groups.labels[:2] == ["7", "5"]  # as an earlier viewer had them
    assert len(groups.labels) == MAX_GROUPS + 1
    assert groups.labels[-1] == OTHERS
    assert sum(said["group_levels"]) == curriculum.counters()["levels_seen"] == 40
    assert said["group_levels"][-1] == 40 - MAX_GROUPS


def test_what_there_is_no_time_for_is_asked_for_later(named):
    curriculum = played(Config(levels=range(400)), 3000)
    seen, it = curriculum.counters()["levels_seen"], looked(curriculum)
    assert seen > 200
    groups, known = Groups(named("tens"), budget_s=0.0), [0]
    while known[-1] < seen:
        known.append(sum(groups.look(it, lambda ids: ids)["group_levels"]))
        assert 0 < known[-1] - known[-2] <= 64
