"""under_way.py: what episodes earn over many blocks, beside a plain dict of columns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plr_server.curriculum.scoring import columns as limits
from plr_server.curriculum.scoring.episodes import find_episodes
from plr_server.curriculum.scoring.rollouts import check
from plr_server.curriculum.scoring.under_way import UnderWay

SILENT = 7


def rollout(block, columns):
    fields = {name: block.get(name) for name in ("dones", "levels", "rewards", "valid")} | {"columns": columns}
    return check(fields, "uniform", needs=(), takes=())


class Plain:
    """The same with a loop: column -> (level, steps, earned), and when the column was last pushed."""

    def __init__(self):
        self.parts, self.last, self.pushes = {}, {}, 0

    def push(self, block, columns):
        """Returns (return, steps before) of every episode, column by column; None for a return not known."""
        self.pushes += 1
        found = []
        for n, column in enumerate(columns):
            level, steps, earned, before = None, 0, 0.0, 0
            for t in range(len(block["levels"])):
                if not block["valid"][t][n]:
                    continue
                if level is None:
                    level = block["levels"][t][n]
                    part = self.parts.pop(column, None)
                    going_on = part is not None and part[0] == level
                    steps, earned = part[1:] if going_on else (0, 0.0)
                    before = steps
                steps += 1
                earned = None if earned is None or block["rewards"] is None else earned + block["rewards"][t][n]
                if block["dones"][t][n]:
                    found.append((earned, before))
                    level, steps, earned, before = None, 0, 0.0, 0
            if level is not None:
                found.append((earned, before))
                self.parts[column] = (level, steps, earned)
            self.last[column] = self.pushes
        for column in [column for column in self.parts if self.last[column] <= self.pushes - SILENT]:
            del self.parts[column]
        return found


def stream(rng, num_pushes, num_columns):
    """Blocks of some of the columns each; numbers are multiples of 1/8, so that sums are exact in any order."""
    current = {}
    for _ in range(num_pushes):
        columns = rng.permutation(num_columns)[: rng.integers(1, num_columns + 1)]
        if rng.random() < 0.5:
            columns = np.arange(num_columns)  # as a trainer does
        shape = (int(rng.integers(1, 5)), len(columns))
        dones, valid = rng.random(shape) < 0.2, rng.random(shape) < 0.7
        levels = rng.integers(0, 3, size=shape)
        for n, column in enumerate(columns.tolist()):
            if rng.random() < 0.1:
                current.pop(column, None)  # abandoned
            for t in range(shape[0]):
                if valid[t, n]:
                    levels[t, n] = current.setdefault(column, levels[t, n])
                    if dones[t, n]:
                        del current[column]
        rewards = None if rng.random() < 0.1 else rng.integers(-8, 9, size=shape) / 8
        yield {"dones": dones, "levels": levels, "valid": valid, "rewards": rewards}, columns


@pytest.mark.parametrize("seed", range(8))
def test_returns_are_those_of_whole_episodes(seed, monkeypatch):
    monkeypatch.setattr(limits, "SILENT_PUSHES", SILENT)
    under_way, plain = UnderWay(), Plain()
    for block, columns in stream(np.random.default_rng(seed), 80, 6):
        carried = under_way.look(find_episodes(rollout(block, columns)), columns)
        expected = plain.push(block, columns.tolist())
        returns = [None if np.isnan(earned) else earned for earned in carried.returns.tolist()]
        assert list(zip(returns, carried.steps_before.tolist(), strict=True)) == expected
        under_way.keep(carried)
        under_way = UnderWay.from_state(pickle.loads(pickle.dumps(under_way.state())))  # noqa: S301  our own


def test_of_too_many_columns_the_longest_silent_go(monkeypatch):
    monkeypatch.setattr(limits, "MAX_COLUMNS", 3)
    under_way = UnderWay()
    for columns in ([5, 1, 9], [5, 7]):
        shape = (1, len(columns))
        block = {"dones": np.zeros(shape, bool), "levels": np.ones(shape, int), "rewards": np.ones(shape)}
        names = np.array(columns)
        under_way.keep(under_way.look(find_episodes(rollout(block, names)), names))
    assert under_way.state()["columns"].tolist() == [9, 5, 7]
    assert under_way.state()["earned"].tolist() == [1.0, 2.0, 1.0]
    under_way.drop(np.array([5, 100]))
    assert under_way.state()["columns"].tolist() == [9, 7]
