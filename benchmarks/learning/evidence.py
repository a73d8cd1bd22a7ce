"""The page of evidence: every table and figure of the study, from the raw rows alone.

Endpoints and statistics are those of `protocol.md`. Whatever runs there are, the page says how many stand behind each
number, so that it may be written at any time. `figures.py` draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import draw_course, draw_curves, draw_drawn
from intervals import holm, interquartile_mean, interval, probability_of_improvement, ratio_of_means, welch
from jobs import read
from run import ALL, Row
from study import ARMS, BASELINE, EXPLORATORY, PRIMARY_ARM, STUDY, registered

MIN_RUNS = 2  # of each of two arms, to compare them

PLAYED_WITHOUT_BASELINE = {
    "maze-accel": "maze"
}  # compared with the baseline of another task, of the same held-out levels


class Runs:
    """The runs of one task and arm.

    Attributes:
        steps: (P,) where the curve was evaluated, from 0 on.
        curve: (P, n) held-out return at each. solved: (P, n) held-out success.
        final: (n,) held-out return at the end. area: (n,) mean of the curve without its first point.
        success: (n,) of the final evaluation.
        by_difficulty: final success (n,) by the difficulty's name.
        drawn: (P, D) share of the episodes since the point before, by difficulty, mean over runs.
        mass: (P, D) share of P_replay, by difficulty, mean over runs.
        distinct: (P, n) levels in a rollout. effective: (P, n) exp of the entropy of P_replay.
    """

    def __init__(self, results: Sequence[Sequence[Row]]) -> None:
        by_run = [_split(rows) for rows in results]
        curves, finals = zip(*by_run, strict=True)
        names = [name for name in finals[0] if name != ALL]
        self.steps = _column(curves[0][ALL], "steps")
        self.curve = np.stack([_column(curve[ALL], "heldout_return") for curve in curves], axis=1)
        self.solved, self.distinct, self.effective = (
            np.stack([_column(curve[ALL], field) for curve in curves], axis=1)
            for field in ("heldout_success", "distinct_levels", "effective_levels")
        )
        self.area = self.curve[1:].mean(0)
        self.final = np.array([final[ALL][0]["heldout_return"] for final in finals])
        self.success = np.array([final[ALL][0]["heldout_success"] for final in finals])
        self.by_difficulty = {
            name: np.array([final[name][0]["heldout_success"] for final in finals])
            for name in names
            if finals[0][name][0]["heldout_episodes"]
        }
        self.names = names
        episodes = np.stack(
            [np.mean([_column(curve[name], "train_episodes") for curve in curves], 0) for name in names], 1
        )
        self.drawn = episodes / np.maximum(episodes.sum(1, keepdims=True), 1)
        self.mass = np.stack([np.mean([_column(curve[name], "mass") for curve in curves], 0) for name in names], 1)


def write_evidence(results: Path, page: Path) -> None:
    """Reads all results of a folder, and writes the page and, in a folder of the page's name, its figures.

    Raises:
        FileNotFoundError: there are no results.
    """
    heads, runs = _read_all(results)
    figures = page.with_suffix("")
    figures.mkdir(exist_ok=True)
    draw_curves(runs, figures / "curves.png")
    for task, arms in runs.items():
        draw_course(task, arms, figures / f"course-{task}.png")
        draw_drawn(task, arms, figures / f"drawn-{task}.png")
    sections = [
        _about(heads),
        _primary(runs),
        _aims(runs),
        f"![Held-out return over env steps, all tasks]({figures.name}/curves.png)",
        *(_task(task, runs, figures.name) for task in runs),
    ]
    page.write_text("\n\n".join(section for section in sections if section) + "\n")


def _read_all(results: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Runs]]]:
    heads, rows = [], defaultdict(list)
    for path in sorted(results.glob("*.csv")):
        head, found = read(path)
        heads.append(head)
        rows[head["task"], head["arm"]].append(found)
    if not rows:
        raise FileNotFoundError(f"expected results (*.csv) in {results}, got none")
    tasks = [task for task in STUDY if any(task == each for each, _ in rows)]
    return heads, {task: {arm: Runs(rows[task, arm]) for arm in ARMS if (task, arm) in rows} for task in tasks}


def _split(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Returns the rows of the curve and those of the final evaluation, by difficulty."""
    parts: dict[str, dict[str, list[Row]]] = {"curve": defaultdict(list), "final": defaultdict(list)}
    for row in rows:
        parts[row["evaluation"]][row["difficulty"]].append(row)
    return parts["curve"], parts["final"]


def _column(rows: Sequence[Row], field: str) -> np.ndarray:
    return np.array([row[field] for row in rows])


def steps_to_reach(runs: Runs, level: float) -> float:
    """Returns the env steps after which the interquartile mean curve first reaches a level; inf if it never does.

    Between two evaluations it is taken as straight.
    """
    curve = interquartile_mean([runs.curve])
    reached = np.flatnonzero(curve >= level)
    if not len(reached):
        return np.inf
    at = reached[0]
    if at == 0:
        return float(runs.steps[0])
    share = (level - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(runs.steps[at - 1] + share * (runs.steps[at] - runs.steps[at - 1]))


# ---- tables


def _about(heads: Sequence[Mapping[str, Any]]) -> str:
    commits = sorted({head["commit"][:12] + (" with changes" if head["changed"] else "") for head in heads})
    seeds = sorted({head["seed"] for head in heads})
    planned = {str(job) for job in registered()}
    done = len(planned & {f"{head['task']}.{head['arm']}.{head['seed']}" for head in heads})
    state = (
        f"All {len(planned)} registered runs are done."
        if done == len(planned)
        else f"**The study is not complete: {done} of its {len(planned)} registered runs are done.** A few runs of an "
        "arm say little, a single one nothing."
    )
    return f"""# Evidence: which curriculum makes agents learn?

Written by `make bench-learning-tables` from the rows in `benchmarks/learning/results`. What is run and how it is judged
is in `benchmarks/learning/protocol.md`, which was there before the first of these runs.

{state}

Here are {len(heads)} runs, seeds {seeds[0]} to {seeds[-1]}, on commit {", ".join(commits)}. Exploratory, registered
when results of other arms were known, and with seeds of its own: {", ".join(EXPLORATORY)}.

Returns are between 0 and 1, on held-out levels. A number is the interquartile mean over runs, in brackets its 95 %
interval; `runs` says of how many. In the figures n is the number of runs, and bands are such intervals."""


def _primary(runs: Mapping[str, Mapping[str, Runs]]) -> str:
    """All primary tasks together; nothing until each of them has runs of the baseline."""
    tasks = [task for task, plan in STUDY.items() if plan.role == "primary"]
    if not all(BASELINE in runs.get(task, {}) for task in tasks):
        return ""
    theirs = [runs[task][BASELINE].final for task in tasks]
    lines = []
    for arm in ARMS:
        if not all(arm in runs[task] and len(runs[task][arm].final) >= MIN_RUNS for task in tasks):
            continue
        ours = [runs[task][arm].final for task in tasks]
        adjusted = holm([welch(mine, other) for mine, other in zip(ours, theirs, strict=True)])
        lines.append(
            [
                f"**{arm}**" if arm == PRIMARY_ARM else arm,
                _with_interval(interquartile_mean, ours),
                *(
                    ["", "", ""]
                    if arm == BASELINE
                    else [
                        _with_interval(ratio_of_means, ours, theirs),
                        _with_interval(probability_of_improvement, ours, theirs),
                        ", ".join(f"{p:.2g}" for p in adjusted),
                    ]
                ),
            ]
        )
    if not lines:
        return ""
    columns = ("arm", "final return", "ratio to uniform", "P(better than uniform)", f"p (Holm) on {', '.join(tasks)}")
    return f"## The primary tasks together\n\n{_table(columns, lines)}"


def _aims(runs: Mapping[str, Mapping[str, Runs]]) -> str:
    """What the protocol aims at, met or not; of the tasks where both arms have enough runs."""
    pairs = {
        task: (arms[PRIMARY_ARM], arms[BASELINE])
        for task, arms in runs.items()
        if {PRIMARY_ARM, BASELINE} <= arms.keys()
        and min(len(arms[arm].final) for arm in (PRIMARY_ARM, BASELINE)) >= MIN_RUNS
    }
    primary = [task for task in pairs if STUDY[task].role == "primary"]
    if not primary:
        return ""
    ours, theirs = ([pairs[task][which].final for task in primary] for which in (0, 1))
    apart = [
        task
        for task in primary
        if interval(interquartile_mean, [pairs[task][0].final])[0]
        > interval(interquartile_mean, [pairs[task][1].final])[1]
    ]
    controls = {
        task: float(ratio_of_means([pair[0].final], [pair[1].final]))
        for task, pair in pairs.items()
        if STUDY[task].role == "control"
    }
    halves = {task: _share_of_steps(*pairs[task]) for task in primary}
    lines = [
        ["ratio on the primary tasks together", "≥ 1.5", _with_interval(ratio_of_means, ours, theirs)],
        ["intervals apart", "on 2 of 3", f"on {len(apart)} of {len(primary)}: {', '.join(apart) or 'none'}"],
        ["ratio on the controls", "≥ 0.95 each", _listed(controls)],
        ["steps to uniform's final return, of uniform's", "≤ 0.5", _listed(halves)],
    ]
    fewest = min(len(pairs[task][which].final) for task in pairs for which in (0, 1))
    head = (
        f"## What was aimed at\n\n{PRIMARY_ARM} beside {BASELINE}, on the tasks where each has {fewest} runs or more:"
    )
    return f"{head} {', '.join(pairs)}.\n\n{_table(('', 'aimed at', 'got'), lines)}"


def _share_of_steps(runs: Runs, baseline: Runs) -> float:
    """Returns the share of the steps after which the curve reaches what the baseline's ends with."""
    return steps_to_reach(runs, float(interquartile_mean([baseline.curve])[-1])) / baseline.steps[-1]


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {number:.2f}" for task, number in numbers.items()) or "no runs yet"


def _task(task: str, all_runs: Mapping[str, Mapping[str, Runs]], figures: str) -> str:
    arms = all_runs[task]
    baseline = all_runs.get(PLAYED_WITHOUT_BASELINE.get(task, task), {}).get(BASELINE)
    plan, lines, by_difficulty = STUDY[task], [], []
    for arm, runs in arms.items():
        compared = [""] * 3
        if baseline is not None and arm != BASELINE and min(len(runs.final), len(baseline.final)) >= MIN_RUNS:
            compared = [
                _with_interval(ratio_of_means, [runs.final], [baseline.final]),
                _with_interval(probability_of_improvement, [runs.final], [baseline.final]),
                f"{_share_of_steps(runs, baseline):.2f}",
            ]
        by_difficulty.append([arm, *(f"{interquartile_mean([each]):.2f}" for each in runs.by_difficulty.values())])
        lines.append(
            [
                *(arm, str(len(runs.final))),
                *(_with_interval(interquartile_mean, [of]) for of in (runs.final, runs.area)),
                *(f"{interquartile_mean([runs.success]):.3f}", *compared, f"{np.nanmean(runs.distinct[1:]):.0f}"),
            ]
        )
    columns = (
        *("arm", "runs", "final return", "area under the curve", "success", "ratio to uniform"),
        *("P(better than uniform)", "steps to uniform's final", "distinct levels in a rollout"),
    )
    difficulties = next(iter(arms.values())).by_difficulty
    return f"""## {task} ({plan.role}, {plan.steps / 1e6:g} M steps)

{_table(columns, lines)}

Final success by difficulty:

{_table(("arm", *difficulties), by_difficulty)}

![Held-out levels solved, distinct levels in a rollout, effective number of levels]({figures}/course-{task}.png)

![P_replay and episodes played, by difficulty]({figures}/drawn-{task}.png)"""


def _with_interval(statistic: Any, *groups: Sequence[np.ndarray]) -> str:
    """Returns a number and its interval; the number alone where an arm has a single run."""
    if min(len(runs) for group in groups for runs in group) < MIN_RUNS:
        return f"{float(statistic(*groups)):.3f}"
    low, high = interval(statistic, *groups)
    return f"{float(statistic(*groups)):.3f} [{low:.3f}, {high:.3f}]"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))
