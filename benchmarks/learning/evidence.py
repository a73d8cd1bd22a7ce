"""Every table and figure of the study, from the raw rows alone.

What is written: `tables.md`, `curves.png`, and for each task `drawn-TASK.png`, what the curricula had played. Endpoints
and statistics are those of `protocol.md`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from intervals import holm, interquartile_mean, interval, probability_of_improvement, ratio_of_means, welch
from jobs import read
from run import ALL, Row
from study import ARMS, BASELINE, PRIMARY_ARM, STUDY

mpl.use("Agg")
import matplotlib.pyplot as plt

MIN_RUNS = 2  # of each of two arms, to compare them

PLAYED_WITHOUT_BASELINE = {
    "maze-accel": "maze"
}  # compared with the baseline of another task, of the same held-out levels


class Runs:
    """The runs of one task and arm.

    Attributes:
        steps: (P,) where the curve was evaluated, from 0 on.
        curve: (P, n) held-out return at each.
        final: (n,) held-out return at the end. area: (n,) mean of the curve without its first point.
        success: (n,) of the final evaluation.
        by_difficulty: final success (n,) by the difficulty's name.
        drawn: (P, D) share of the episodes since the point before, by difficulty, mean over runs.
        distinct: (P,) levels in a rollout, mean over runs.
    """

    def __init__(self, results: Sequence[Sequence[Row]]) -> None:
        by_run = [_split(rows) for rows in results]
        curves, finals = zip(*by_run, strict=True)
        names = [name for name in finals[0] if name != ALL]
        self.steps = _column(curves[0][ALL], "steps")
        self.curve = np.stack([_column(curve[ALL], "heldout_return") for curve in curves], axis=1)
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
        self.distinct = np.mean([_column(curve[ALL], "distinct_levels") for curve in curves], axis=0)


def write_evidence(results: Path) -> None:
    """Reads all results of a folder and writes tables and figures beside them."""
    heads, runs = _read_all(results)
    sections = [_about(heads), _primary(runs), *(_task(task, runs) for task in runs)]
    (results / "tables.md").write_text("\n\n".join(section for section in sections if section) + "\n")
    _draw_curves(runs, results / "curves.png")
    for task, arms in runs.items():
        _draw_drawn(task, arms, results / f"drawn-{task}.png")


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
    return f"{len(heads)} runs, seeds {seeds[0]} to {seeds[-1]}, on commit {', '.join(commits)}."


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
    columns = ("arm", "final return", "ratio to uniform", "P(better than uniform)", f"p (Holm) on {', '.join(tasks)}")
    return f"## The primary tasks together\n\n{_table(columns, lines)}"


def _task(task: str, all_runs: Mapping[str, Mapping[str, Runs]]) -> str:
    arms = all_runs[task]
    baseline = all_runs.get(PLAYED_WITHOUT_BASELINE.get(task, task), {}).get(BASELINE)
    plan, lines = STUDY[task], []
    for arm, runs in arms.items():
        compared = [""] * 3
        if baseline is not None and arm != BASELINE:
            target = float(interquartile_mean([baseline.curve])[-1])
            compared = [
                _with_interval(ratio_of_means, [runs.final], [baseline.final]),
                _with_interval(probability_of_improvement, [runs.final], [baseline.final]),
                f"{steps_to_reach(runs, target) / baseline.steps[-1]:.2f}",
            ]
        by_difficulty = [f"{interquartile_mean([success]):.2f}" for success in runs.by_difficulty.values()]
        lines.append(
            [
                *(arm, str(len(runs.final))),
                *(_with_interval(interquartile_mean, [of]) for of in (runs.final, runs.area)),
                *(f"{interquartile_mean([runs.success]):.3f}", *compared, f"{np.nanmean(runs.distinct[1:]):.0f}"),
                *by_difficulty,
            ]
        )
    columns = (
        *("arm", "runs", "final return", "area under the curve", "success", "ratio to uniform"),
        *(
            "P(better than uniform)",
            "steps to uniform's final",
            "distinct levels in a rollout",
            *next(iter(arms.values())).by_difficulty,
        ),
    )
    return f"## {task} ({plan.role}, {plan.steps / 1e6:g} M steps)\n\n{_table(columns, lines)}"


def _with_interval(statistic: Any, *groups: Sequence[np.ndarray]) -> str:
    low, high = interval(statistic, *groups)
    return f"{float(statistic(*groups)):.3f} [{low:.3f}, {high:.3f}]"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


# ---- figures


def _draw_curves(runs: Mapping[str, Mapping[str, Runs]], path: Path) -> None:
    """Held-out return over env steps, a panel a task; bands are 95 % intervals of the interquartile mean."""
    columns = min(len(runs), 4)
    rows = -(-len(runs) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4 * columns + 1.5, 3.4 * rows), squeeze=False, layout="constrained"
    )
    panels = grid.flat[: len(runs)]
    for unused in grid.flat[len(runs) :]:
        unused.set_axis_off()
    colour_of = dict(zip(ARMS, plt.get_cmap("tab10").colors, strict=False))
    for panel, (task, arms) in zip(panels, runs.items(), strict=True):
        for arm, each in arms.items():
            millions = each.steps / 1e6
            panel.plot(millions, interquartile_mean([each.curve]), color=colour_of[arm], label=arm)
            panel.fill_between(millions, *interval(interquartile_mean, [each.curve]), color=colour_of[arm], alpha=0.15)
        panel.set(title=task, xlabel="env steps, millions", ylabel="held-out return")
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_drawn(task: str, arms: Mapping[str, Runs], path: Path) -> None:
    """What the curricula drew: the share of the episodes by difficulty, a panel an arm."""
    figure, panels = plt.subplots(1, len(arms), figsize=(3 * len(arms), 3.2), squeeze=False, sharey=True)
    for panel, (arm, runs) in zip(panels[0], arms.items(), strict=True):
        colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(runs.names)))
        panel.stackplot(runs.steps[1:] / 1e6, runs.drawn[1:].T, labels=runs.names, colors=colours)
        panel.set(title=arm, xlabel="env steps, millions", ylim=(0, 1))
    panels[0, 0].set_ylabel("share of episodes")
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", title=task)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
