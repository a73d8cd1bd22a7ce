"""plr_server/viewer/rules.py: every rule speaks where it should, and is silent just below that."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from plr_server import Config
from plr_server.viewer import rules
from plr_server.viewer.rules import Facts, Finding, verdict

COUNTERS = {"levels": 200, "levels_seen": 200, "draws": 5000, "prefetched": 0, "prefetch_lag_pushes": 0.0}
SUMMARY = {
    "most_mass_levels": 100,
    "drawn_score": 0.5,
    "table_score": 0.25,
    "score_std": 0.1,
    "score_min": 0.0,
    "score_max": 1.0,
    "staleness_q90": 900.0,
}
NOTHING = dict.fromkeys(SUMMARY)


def facts(*, counters=(), summary=(), config=(), **more):
    """A run in which all is well, with changes."""
    usual = {"silent_s": 1.0, "push_every_s": 2.0, "clients": 9, "most_clients": 9}
    return Facts(
        config=Config(**dict(config)),
        counters=COUNTERS | dict(counters),
        summary=SUMMARY | dict(summary),
        **usual | more,
    )


WELL = Finding("fine", "It works: what is replayed scores 0.5 on average, the whole table 0.25.")

CASES = {
    "nobody asked": (
        rules.starting,
        facts(counters={"draws": 0, "levels_seen": 0}, summary=NOTHING),
        facts(),
        Finding("note", "Nobody has asked for a level yet: the workers have not started."),
    ),
    "nothing scored": (
        rules.starting,
        facts(counters={"draws": 7, "levels_seen": 0}, summary=NOTHING),
        facts(counters={"draws": 7, "levels_seen": 1}),
        Finding("note", "Levels are played, but none has a score yet: nothing has been pushed that ended one."),
    ),
    "a minute without a push": (
        rules.silence,
        facts(silent_s=99.9),
        facts(silent_s=59.0),
        Finding("trouble", "No push for 90 s: is the trainer still running?"),
    ),
    "long without a push, for one that pushes seldom": (
        rules.silence,
        facts(silent_s=1510.0, push_every_s=300.0),
        facts(silent_s=1490.0, push_every_s=300.0),
        Finding("trouble", "No push for 25 min: is the trainer still running?"),
    ),
    "no push ever seen": (
        rules.silence,
        facts(silent_s=61.0, push_every_s=None),
        facts(silent_s=61.0, push_every_s=None, counters={"draws": 0}),
        Finding("trouble", "No push for 60 s: is the trainer still running?"),
    ),
    "constant scores": (
        rules.constant_scores,
        facts(summary={"score_min": 0.5, "score_max": 0.5000001}),
        facts(summary={"score_min": 0.5, "score_max": 0.50001}),
        Finding("trouble", "All scores are 0.5: they cannot tell levels apart. Is the critic learning?"),
    ),
    "all scores 0": (
        rules.constant_scores,
        facts(summary={"score_min": 0.0, "score_max": 0.0}),
        facts(summary={"score_min": 0.0, "score_max": 0.0}, counters={"levels_seen": 9}),
        Finding("trouble", "All scores are 0: they cannot tell levels apart. Is the critic learning?"),
    ),
    "clients are gone": (
        rules.clients_gone,
        facts(clients=9, most_clients=12),
        facts(clients=12, most_clients=12),
        Finding("watch", "3 of 12 clients are gone."),
    ),
    "the only client is gone": (
        rules.clients_gone,
        facts(clients=0, most_clients=1),
        facts(),
        Finding("watch", "1 of 1 client is gone."),
    ),
    "better than chance": (
        rules.better_than_chance,
        facts(),
        facts(counters={"levels_seen": 9}),
        WELL,
    ),
    "a baseline": (
        rules.better_than_chance,
        facts(config={"strategy": "uniform"}),
        facts(config={"strategy": "uniform"}, counters={"levels_seen": 9}),
        Finding("note", "The strategy uniform is a baseline: scores do not steer the draws."),
    ),
    "hardly better than chance": (
        rules.better_than_chance,
        facts(summary={"drawn_score": 0.255}),
        facts(summary={"score_std": 0.0}),
        Finding(
            "watch",
            "Replays are hardly better than chance: what is replayed scores 0.255 on average, the whole table 0.25.",
        ),
    ),
    "old scores": (
        rules.old_scores,
        facts(summary={"staleness_q90": 6001.0}),
        facts(summary={"staleness_q90": 6000.0}),
        Finding(
            "watch",
            "A tenth of the scores is older than 6,001 draws: raise staleness_coef.",
        ),
    ),
    "prefetch lags": (
        rules.lag,
        facts(counters={"prefetched": 64, "prefetch_lag_pushes": 6.2}),
        facts(counters={"prefetched": 64, "prefetch_lag_pushes": 4.0}),
        Finding("watch", "Prefetch makes levels 6 pushes old: a smaller prefetch makes them fresher."),
    ),
    "sharp": (
        rules.sharpness,
        facts(summary={"most_mass_levels": 23}),
        facts(summary={"most_mass_levels": 51}),
        Finding("note", "23 of 200 seen levels take 90 % of the replays: temperature 0.1 is sharp."),
    ),
    "sharp without a temperature": (
        rules.sharpness,
        facts(summary={"most_mass_levels": 1}, config={"transform": "max"}),
        facts(summary={"most_mass_levels": 1}, counters={"levels_seen": 9}),
        Finding("note", "1 of 200 seen levels takes 90 % of the replays."),
    ),
    "unseen": (
        rules.unseen,
        facts(counters={"levels_seen": 120}),
        facts(),
        Finding("note", "40 % of the levels are still unseen."),
    ),
    "hardly any unseen": (
        rules.unseen,
        facts(counters={"levels_seen": 199}),
        facts(counters={"levels_seen": 0}),
        Finding("note", "less than 1 % of the levels are still unseen."),
    ),
    "a full disk": (
        rules.unwritten,
        facts(counters={"disk_error": "No space left on device"}),
        facts(counters={"disk_error": ""}),
        Finding("trouble", "The state cannot be written, pushes are refused until it can: No space left on device."),
    ),
    "an open table": (
        rules.unseen,
        facts(counters={"levels_seen": 50}, config={"levels": "unbounded"}),
        facts(config={"levels": "unbounded"}),
        Finding("note", "75 % of the table is still empty: new levels enter whatever their score."),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_where_it_should_and_only_there(name):
    rule, speaks, is_silent, finding = CASES[name]
    assert rule(speaks) == finding
    assert finding in verdict(speaks)
    assert rule(is_silent) is None


@pytest.mark.parametrize("strategy", rules.BASELINES)
@pytest.mark.parametrize("rule", [rules.constant_scores, rules.old_scores, rules.sharpness])
def test_what_steers_no_draw_is_no_trouble(rule, strategy):
    bad = {"score_min": 1.0, "score_max": 1.0, "staleness_q90": 1e6, "most_mass_levels": 1}
    assert rule(facts(summary=bad)) is not None
    assert rule(facts(summary=bad, config={"strategy": strategy})) is None


def test_where_all_is_well_the_verdict_says_so():
    assert verdict(facts()) == [WELL]


def test_the_most_urgent_comes_first():
    found = verdict(facts(silent_s=90.0, clients=3, counters={"levels_seen": 120}))
    assert [finding.kind for finding in found] == ["trouble", "watch", "fine", "note"]


def test_every_rule_is_tested_and_in_the_docs():
    takes_facts = [
        name.replace("_", " ")
        for name, each in inspect.getmembers(rules, inspect.isfunction)
        if each is not verdict and list(inspect.signature(each).parameters) == ["facts"]
    ]
    assert sorted({rule.__name__.replace("_", " ") for rule, *_ in CASES.values()}) == takes_facts
    page = (Path(__file__).parents[2] / "docs/viewer.md").read_text(encoding="utf-8")
    section = page.partition("## The verdict")[2].partition("## ")[0]
    assert sorted(re.findall(r"^\| (?!rule )([a-z ]+) \|", section, re.MULTILINE)) == takes_facts


def test_before_the_first_look_there_is_a_verdict_too():
    before = Facts(
        config=Config(), counters=COUNTERS, summary={}, silent_s=0.0, push_every_s=None, clients=1, most_clients=1
    )
    assert verdict(before) == [Finding("fine", "Nothing to remark.")]
