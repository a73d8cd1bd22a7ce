"""The figures of the page of evidence: interquartile means over runs. Used by `evidence.py` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from intervals import interquartile_mean, interval
from study import ARMS

if TYPE_CHECKING:
    from evidence import Runs

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = dict(zip(ARMS, plt.get_cmap("tab10").colors, strict=False))
DPI = 100


def draw_curves(runs: Mapping[str, Mapping[str, Runs]], path: Path) -> None:
    """Held-out return over env steps, a panel a task."""
    columns = min(len(runs), 4)
    rows = -(-len(runs) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4 * columns + 1.5, 3.4 * rows), squeeze=False, layout="constrained"
    )
    panels = grid.flat[: len(runs)]
    for unused in grid.flat[len(runs) :]:
        unused.set_axis_off()
    for panel, (task, arms) in zip(panels, runs.items(), strict=True):
        _lines(panel, arms, "curve")
        for arm, each in arms.items():
            if len(each.final) > 1:
                low, high = interval(interquartile_mean, [each.curve])
                panel.fill_between(each.steps / 1e6, low, high, color=COLOURS[arm], alpha=0.15)
        counts = sorted({len(each.final) for each in arms.values()})
        panel.set(title=f"{task} (n {counts[0]} .. {counts[-1]})", ylabel="held-out return")
    _legend(figure, panels)
    _save(figure, path)


def draw_course(task: str, arms: Mapping[str, Runs], path: Path) -> None:
    """What was solved, and how many levels were played, over env steps."""
    figure, panels = plt.subplots(1, 3, figsize=(13.5, 3.4), layout="constrained")
    for panel, (label, field) in zip(
        panels,
        (
            ("held-out levels solved", "solved"),
            ("distinct levels in a rollout", "distinct"),
            ("effective number of levels", "effective"),
        ),
        strict=True,
    ):
        _lines(panel, arms, field)
        panel.set(title=task, ylabel=label)
    panels[2].set_yscale("log")
    _legend(figure, panels)
    _save(figure, path)


def draw_drawn(task: str, arms: Mapping[str, Runs], path: Path) -> None:
    """P_replay, and the share of the episodes played, by difficulty, a column an arm."""
    figure, panels = plt.subplots(
        2,
        len(arms),
        figsize=(2.6 * len(arms) + 1.5, 5.2),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for (of_mass, of_episodes), (arm, runs) in zip(panels.T, arms.items(), strict=True):
        colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(runs.names)))
        for panel, shares in ((of_mass, runs.mass), (of_episodes, runs.drawn)):
            panel.stackplot(runs.steps[1:] / 1e6, shares[1:].T, labels=runs.names, colors=colours)
        of_mass.set(title=f"{arm} (n {len(runs.final)})", ylim=(0, 1))
        of_episodes.set(xlabel="env steps, millions")
    panels[0, 0].set_ylabel("share of P_replay")
    panels[1, 0].set_ylabel("share of episodes")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right", fontsize="small", title=task)
    _save(figure, path)


def _lines(panel: Any, arms: Mapping[str, Runs], field: str) -> None:
    """Draws the interquartile mean of a field (P, n) of each arm; points that are missing are left out."""
    for arm, runs in arms.items():
        numbers = getattr(runs, field)
        there = ~np.isnan(numbers).any(1)
        panel.plot(runs.steps[there] / 1e6, interquartile_mean([numbers[there]]), color=COLOURS[arm], label=arm)
    panel.set(xlabel="env steps, millions")


def _legend(figure: Any, panels: Any) -> None:
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside right")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
