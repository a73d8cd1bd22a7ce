"""What a thousand simulated schedules of the server as it is must show: nothing that was promised fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from simulate import failures_of
from simulation import run

NUM = 100


@pytest.mark.parametrize("begin", range(0, 1000, NUM))
def test_whatever_goes_wrong_what_was_promised_holds(begin):
    failures = failures_of(range(begin, begin + NUM))
    again = [f"python tests/simulation/simulate.py --begin {seed} --schedules 1" for seed, *_ in failures]
    assert not failures, f"again: {'; '.join(again)}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_is_a_schedule(seed):
    first, second = run(seed), run(seed)
    assert first.now_s == second.now_s
    assert [command.payload for command in first.judge.history] == [command.payload for command in second.judge.history]
    assert first.judge.history


def test_a_schedule_can_be_watched():
    script = Path(__file__).with_name("simulate.py")
    told = subprocess.run(  # noqa: S603  our own
        [sys.executable, script, "--trace", "--begin", "7"], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("seed 7: fsync ")
    assert "has_written(" in told.stdout
