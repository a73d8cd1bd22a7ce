"""columns.py: what is kept of silent columns, and for how long, beside a plain dict."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plr_server.curriculum.scoring import columns
from plr_server.curriculum.scoring.columns import ByColumn


@pytest.mark.parametrize("seed", range(5))
def test_a_column_is_forgotten_after_so_many_pushes_without_it_and_no_earlier(seed, monkeypatch):
    monkeypatch.setattr(columns, "SILENT_PUSHES", 7)
    rng = np.random.default_rng(seed)
    by_column, kept, last = ByColumn(), {}, {}
    for push in range(300):
        here = rng.permutation(12)[: rng.integers(1, 5)].tolist()
        new = {column: (push, column) for column in here if rng.random() < 0.5}
        over = {column for column in here if column not in new and rng.random() < 0.5}
        dropped = by_column.update(here, new, over)
        for column in over:
            kept.pop(column, None)
        kept |= new
        last |= dict.fromkeys(here, push)
        silent = [column for column in kept if last[column] <= push - 7]
        assert sorted(dropped) == sorted(kept.pop(column) for column in silent)
        assert {column: by_column.get(column) for column in range(12) if by_column.get(column)} == kept
        assert len(by_column) == len(kept)
        again = ByColumn.from_state(pickle.loads(pickle.dumps(by_column.state(list))), tuple)  # noqa: S301  our own
        assert list(again) == list(by_column)
        by_column = again


def test_of_too_many_columns_the_longest_silent_go(monkeypatch):
    monkeypatch.setattr(columns, "MAX_COLUMNS", 3)
    by_column = ByColumn()
    assert by_column.update([5, 1, 9], {5: "a", 1: "b", 9: "c"}, set()) == []
    assert by_column.update([5, 7], {7: "d"}, set()) == ["b"]
    assert [by_column.get(column) for column in (5, 1, 9, 7)] == ["a", None, "c", "d"]
    by_column.drop([5, 100])
    assert list(by_column) == ["c", "d"]
