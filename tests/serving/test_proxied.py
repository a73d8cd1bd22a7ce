"""Real clients and a real server with a state directory, and between them what loses, repeats, delays and cuts."""

from __future__ import annotations

import threading

import faults
import numpy as np
import proxies
import pytest

from plr_client import LevelClient, Trainer, exchange

ALPHA = 0.5  # by which a score tells of all that were pushed, and in which order
LEVELS_OF_EACH = 5
NUM_TRAINERS = NUM_WORKERS = 4


def scores_pushed(trainer, number):
    """The levels and scores that a trainer's push of a number has."""
    rng = np.random.default_rng([trainer, number])
    return trainer * LEVELS_OF_EACH + rng.integers(0, LEVELS_OF_EACH, 3), rng.normal(size=3)


def expected(num_pushes):
    scores = {}
    for trainer in range(NUM_TRAINERS):
        for number in range(num_pushes):
            for level, score in zip(*scores_pushed(trainer, number), strict=True):
                scores[int(level)] = score if level not in scores else (1 - ALPHA) * scores[int(level)] + ALPHA * score
    return scores


def use(proxy, num_each):
    """Lets trainers push and workers ask, each so often; returns what went wrong, and how many levels each got."""
    failed, drawn = [], []

    def push(trainer):
        try:
            with Trainer(proxy.address, timeout_s=600) as each:
                for number in range(num_each):
                    assert each.push_scores(*scores_pushed(trainer, number)) == 3
        except BaseException as exc:  # noqa: BLE001  told by the test
            failed.append(exc)

    def ask():
        try:
            with LevelClient(proxy.address, timeout_s=600) as each:
                drawn.append(sum(len(each.next(1 + number % 3)) for number in range(num_each)))
        except BaseException as exc:  # noqa: BLE001
            failed.append(exc)

    threads = [threading.Thread(target=push, args=(trainer,)) for trainer in range(NUM_TRAINERS)]
    threads += [threading.Thread(target=ask) for _ in range(NUM_WORKERS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return failed, drawn


@pytest.mark.parametrize("num_commands", [1_600, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["cutting", "shuffling"])
def test_each_command_is_applied_once_and_in_order(tmp_path, monkeypatch, kind, num_commands):
    monkeypatch.setattr(exchange, "FIRST_ATTEMPT_S", 0.05)
    options = ["--levels", f"0:{NUM_TRAINERS * LEVELS_OF_EACH}", "--strategy", "external", "--alpha", str(ALPHA)]
    num_each = num_commands // (NUM_TRAINERS + NUM_WORKERS)
    with faults.daemon("tcp://127.0.0.1:0", *options, "--state-dir", str(tmp_path / "state")) as server:
        if kind == "cutting":
            between = proxies.Cutting(server.address, 1, mean_bytes=8_000)
        else:
            between = proxies.Shuffling(server.address, 1, share=0.02)
        with between as proxy:
            failed, drawn = use(proxy, num_each)
        print(f"{num_commands} commands, {dict(proxy.did)}")  # noqa: T201  of a run that was asked for, with -s
        assert failed == []
        assert min(proxy.did[what] for what in (("cut",) if kind == "cutting" else ("dropped", "repeated", "delayed")))
        with Trainer(server.address) as trainer:
            stats = trainer.stats()
            assert (stats["pushes"], stats["draws"]) == (NUM_TRAINERS * num_each, sum(drawn))
            ids, scores, _, seen = trainer.scores()
            scored = dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))
            assert scored == pytest.approx(expected(num_each), rel=0, abs=1e-12)
