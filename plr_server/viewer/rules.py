"""The verdict: rules that say in plain words whether a curriculum works, and what to do where it does not.

Used by collect. Pure functions of `Facts`: each rule gives one finding or none, and `verdict` orders what they found.
docs/viewer.md lists the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from plr_client.errors import counted
from plr_server.curriculum.config import Config

Kind = Literal["trouble", "watch", "fine", "note"]
KINDS: tuple[Kind, ...] = ("trouble", "watch", "fine", "note")  # in the order in which they are read

SILENCE_S = 60.0  # without a push, before anybody worries
SILENCE_PUSHES = 5.0  # ... and so many times what usually lies between two pushes
SHARP_SHARE = 0.25  # of the seen levels, take 90 % of the replays
ENOUGH_SEEN = 10  # levels, before their scores say anything
CONSTANT_SHARE = 1e-6  # of the largest score, is all that the scores differ by
CHANCE_STD = 0.1  # standard deviations above the table's mean: below that a draw is no better than a uniform one
LAG_PUSHES = 4.0  # behind, before asking ahead is worth a word
OLD_ROUNDS = 30.0  # draws for every seen level, that a tenth of them was not drawn for
BASELINES = ("uniform", "random", "sequential")  # they do not draw by score


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says.

    Attributes:
        kind: trouble (nothing is learnt until it is mended), watch (look into it), fine, note (good to know).
        text: one or two plain sentences.
    """

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at.

    Attributes:
        config: of the curriculum.
        counters: as `Trainer.counters` gives them.
        summary: of the newest look, as `measures.look` gives it; empty before the first.
        silent_s: seconds since the last push that the viewer saw, or since it began to look.
        push_every_s: seconds that usually lie between two pushes; None where the viewer saw none.
        clients: of the server, this viewer left out.
        most_clients: the most there were in the last ten minutes.
    """

    config: Config
    counters: Mapping[str, Any]
    summary: Mapping[str, Any]
    silent_s: float
    push_every_s: float | None
    clients: int
    most_clients: int


def verdict(facts: Facts) -> list[Finding]:
    """Returns what all rules found, the most urgent first, notes last; at least one finding."""
    urgent = (starting, unwritten, silence, constant_scores, clients_gone, better_than_chance)
    rules = (*urgent, old_scores, lag, sharpness, unseen)
    found = [finding for rule in rules if (finding := rule(facts)) is not None]
    return sorted(found, key=lambda finding: KINDS.index(finding.kind)) or [Finding("fine", "Nothing to remark.")]


def starting(facts: Facts) -> Finding | None:
    """A run that has not begun: nobody asked for a level, or nothing that was played has come back as a score."""
    if not facts.counters["draws"] and not facts.counters["levels_seen"]:
        return Finding("note", "Nobody has asked for a level yet: the workers have not started.")
    if not facts.counters["levels_seen"]:
        return Finding("note", "Levels are played, but none has a score yet: nothing has been pushed that ended one.")
    return None


def unwritten(facts: Facts) -> Finding | None:
    """The state directory cannot be written: what is learnt now is in memory alone."""
    why = facts.counters.get("disk_error")
    if not why:
        return None
    return Finding("trouble", f"The state cannot be written, pushes are refused until it can: {why}.")


def silence(facts: Facts) -> Finding | None:
    """No push for a minute, and for five times what usually lies between two."""
    usual_s = facts.push_every_s or 0.0
    if facts.silent_s < max(SILENCE_S, SILENCE_PUSHES * usual_s) or not facts.counters["draws"]:
        return None
    tens_s = facts.silent_s // 10 * 10  # a verdict that changes every second is read to some people every second
    return Finding("trouble", f"No push for {duration(tens_s)}: is the trainer still running?")


def constant_scores(facts: Facts) -> Finding | None:
    """Ten levels or more are seen, and all have the same score."""
    low, high = facts.summary.get("score_min"), facts.summary.get("score_max")
    if low is None or high is None or facts.config.strategy in BASELINES:
        return None
    if facts.counters["levels_seen"] < ENOUGH_SEEN or high - low > CONSTANT_SHARE * max(abs(low), abs(high)):
        return None
    return Finding("trouble", f"All scores are {low:.3g}: they cannot tell levels apart. Is the critic learning?")


def clients_gone(facts: Facts) -> Finding | None:
    """There are fewer clients than there were in the last ten minutes."""
    gone = facts.most_clients - facts.clients
    if gone <= 0:
        return None
    return Finding("watch", f"{gone} of {counted(facts.most_clients, 'client')} {'is' if gone == 1 else 'are'} gone.")


def better_than_chance(facts: Facts) -> Finding | None:
    """Whether replays go to levels of higher scores than a uniform draw would, by a tenth of a standard deviation."""
    drawn, table, std = (facts.summary.get(name) for name in ("drawn_score", "table_score", "score_std"))
    if drawn is None or table is None or not std or facts.counters["levels_seen"] < ENOUGH_SEEN:
        return None
    if facts.config.strategy in BASELINES:
        return Finding("note", f"The strategy {facts.config.strategy} is a baseline: scores do not steer the draws.")
    means = f"what is replayed scores {drawn:.3g} on average, the whole table {table:.3g}"
    if drawn - table < CHANCE_STD * std:
        return Finding("watch", f"Replays are hardly better than chance: {means}.")
    return Finding("fine", f"It works: {means}.")


def old_scores(facts: Facts) -> Finding | None:
    """A tenth of the seen levels was last drawn more than 30 draws ago for every level that is seen."""
    old = facts.summary.get("staleness_q90")
    if old is None or facts.config.strategy in BASELINES or old <= OLD_ROUNDS * facts.counters["levels_seen"]:
        return None
    return Finding("watch", f"A tenth of the scores is older than {old:,.0f} draws: raise staleness_coef.")


def lag(facts: Facts) -> Finding | None:
    """Levels that are asked for ahead are played more than four pushes after they were chosen."""
    behind = facts.counters["prefetch_lag_pushes"]
    if not facts.counters["prefetched"] or behind <= LAG_PUSHES:
        return None
    return Finding("watch", f"Prefetch makes levels {behind:.0f} pushes old: a smaller prefetch makes them fresher.")


def sharpness(facts: Facts) -> Finding | None:
    """A quarter of the seen levels, or fewer, take 90 % of the replays."""
    few, seen = facts.summary.get("most_mass_levels"), facts.counters["levels_seen"]
    if not few or seen < ENOUGH_SEEN or facts.config.strategy in BASELINES or few > SHARP_SHARE * seen:
        return None
    takes = "takes" if few == 1 else "take"
    why = ""
    if facts.config.transform in ("rank", "power", "softmax", "match", "match_rank"):
        why = f": temperature {facts.config.temperature:g} is sharp"
    return Finding("note", f"{few:,} of {seen:,} seen levels {takes} 90 % of the replays{why}.")


def unseen(facts: Facts) -> Finding | None:
    """Part of a closed level space is unseen, or part of an open one's table is empty."""
    levels, seen = facts.counters["levels"], facts.counters["levels_seen"]
    if seen >= levels or not seen:
        return None
    share = 100.0 * (levels - seen) / levels
    percent = "less than 1" if share < 1.0 else f"{share:.0f}"
    if isinstance(facts.config.levels, str):
        return Finding("note", f"{percent} % of the table is still empty: new levels enter whatever their score.")
    return Finding("note", f"{percent} % of the levels are still unseen.")


def duration(seconds: float) -> str:
    """Says how long, in a unit that fits.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:  # noqa: PLR2004  two minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004  two hours
