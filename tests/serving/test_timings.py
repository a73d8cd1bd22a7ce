"""plr_server/serving/timings.py, alone and in a real server."""

from __future__ import annotations

import faults
import numpy as np
import pytest

from plr_client import InvalidInput, LevelClient, Trainer
from plr_server import Config, launch
from plr_server.serving.timings import NUM_BINS, OTHER, Timings


@pytest.mark.parametrize(
    ("took_ns", "index"),
    [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (1_000_000, 10), (10**9, 20), (10**10, 24), (10**15, 24)],
)
def test_a_bin_holds_what_took_less_than_a_power_of_two_microseconds(took_ns, index):
    timings = Timings(["next"])
    timings.add("next", False, took_ns)
    [(op, told)] = timings.to_dict().items()
    assert (op, told["errors"], told["seconds"]) == ("next", 0, took_ns / 1e9)
    assert np.flatnonzero(told["counts"]).tolist() == [index]
    assert len(told["counts"]) == NUM_BINS
    assert took_ns // 1000 < 2**index or index == NUM_BINS - 1


def test_what_was_never_asked_for_is_left_out_and_what_is_unknown_is_together():
    timings = Timings(["next", "push"])
    for op in ("push", "colour", "", "push"):
        timings.add(op, op != "push", 5000)
    told = timings.to_dict()
    assert {op: (each["errors"], sum(each["counts"])) for op, each in told.items()} == {"push": (0, 2), OTHER: (2, 2)}


def test_a_server_counts_every_request_and_every_error():
    with launch(Config(levels=range(10))) as server, Trainer(server.address) as trainer:
        with LevelClient(server.address) as client:
            for _ in range(5):
                client.next()
        trainer.push_scores([1], [0.5])
        with pytest.raises(InvalidInput):
            trainer.push_scores([1], [np.nan])
        with faults.Raw(server.address) as raw:
            assert raw.ask([b"garbage"]).error.code == "protocol"
        faults.eventually(lambda: "goodbye" in trainer.timings(), "the client's goodbye")
        timings = trainer.timings()
        for op, (requests, errors) in {"next": (5, 0), "push_scores": (2, 1), OTHER: (1, 1), "goodbye": (1, 0)}.items():
            assert (sum(timings[op]["counts"]), timings[op]["errors"]) == (requests, errors), op
        assert timings["next"]["seconds"] > 0
        again = trainer.timings()  # a request counts once it is answered
        assert sum(again["timings"]["counts"]) == sum(timings["timings"]["counts"]) + 1
