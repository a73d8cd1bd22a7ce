"""The bugs that are put in on purpose are still there to be put in, and the simulator finds some of them at once."""

from __future__ import annotations

import pytest
from mutants import ROOT, found, read_mutants

MUTANTS = read_mutants()

QUICK = (
    "a new file is renamed before it is synced",
    "what the loop decides is not written down",
    "last numbers are not in the snapshot",
    "a client does not keep what is not durable",
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_a_mutant_fits_the_source(mutant):
    source = (ROOT / mutant.file).read_text()
    assert [source.count(old) for old, _ in mutant.edits] == [1] * len(mutant.edits)


def test_mutants_have_names_of_their_own():
    assert len({each.name for each in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_found(name):
    (mutant,) = [each for each in MUTANTS if each.name == name]
    assert found(mutant, schedules=100) is not None
