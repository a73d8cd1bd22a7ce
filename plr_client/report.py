"""What `Trainer.log_to` writes: a dozen numbers, one histogram and one table, to whatever writer a trainer has.

Used by trainer. It imports no writer's library, and finds out what a writer is by what it can do. It never writes a
line for each level: a tag for every level takes a dashboard minutes to open.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput

PREFIX = "curriculum/"
SCORES = f"{PREFIX}scores"  # the histogram
TOP_LEVELS = f"{PREFIX}top_levels"  # the table
NUM_TOP_LEVELS = 20
NUM_BINS = 64  # of a histogram that is written as numbers
STEP = "global_step"  # what W&B shows the numbers over
COLUMNS = ("level", "score", "p_replay", "staleness")

Levels = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]


def report(counters: Mapping[str, Any], weights: NDArray[np.float64], levels: Levels) -> dict[str, Any]:
    """Returns what there is to write, by its name.

    Args:
        counters: as `Trainer.counters` gives them.
        weights: (N,) as `Trainer.weights` gives them.
        levels: ids, scores, staleness and seen, (M,) each, M >= N, as `Trainer.scores` gives them a moment later: in
            an open level space levels may have entered in between.

    Returns:
        The numbers that `Trainer.log_to` lists, floats; and, where a level is seen, `SCORES`, (seen,) their scores, and
        `TOP_LEVELS`, a mapping of `COLUMNS` for each level.
    """
    ids, scores, staleness, seen = (each[: len(weights)] for each in levels)
    mass, of_seen = weights[weights > 0], scores[seen]
    numbers = {
        "effective_levels": math.exp(-float((mass * np.log(mass)).sum())) if len(mass) else 0.0,
        "seen_share": counters["levels_seen"] / counters["levels"],
        "replay_share": counters["replays"] / max(counters["draws"], 1),
        "mean_score": of_seen.mean() if len(of_seen) else 0.0,
        "weighted_score": weights @ scores,
        "max_score": of_seen.max() if len(of_seen) else 0.0,
        "staleness_q90": np.quantile(staleness[seen], 0.9) if len(of_seen) else 0.0,
        "draws": counters["draws"],
        "episodes": counters["episodes"],
        "pushes": counters["pushes"],
        "in_flight": counters["in_flight"],
        "prefetch_lag_pushes": counters["prefetch_lag_pushes"],
    }
    reported: dict[str, Any] = {f"{PREFIX}{name}": float(number) for name, number in numbers.items()}
    if len(of_seen):
        top = np.argsort(-weights, kind="stable")[:NUM_TOP_LEVELS]
        top = top[weights[top] > 0]
        columns = (ids[top], scores[top], weights[top], staleness[top])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        reported[SCORES] = of_seen
        reported[TOP_LEVELS] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return reported


def write(reported: Mapping[str, Any], writer: Any, step: int) -> None:
    """Writes a report.

    Args:
        reported: as `report` gives it.
        writer: as `Trainer.log_to` takes it.
        step: as `Trainer.log_to` takes it.

    Raises:
        InvalidInput: the writer or the step is not what it must be; nothing was written.
    """
    try:
        step = operator.index(step)
    except TypeError as exc:
        raise InvalidInput("step", "the trainer's global step, an integer", f"{step!r:.80}") from exc
    library = writer if isinstance(writer, ModuleType) else sys.modules[type(writer).__module__.partition(".")[0]]
    if hasattr(writer, "add_scalar"):
        _to_tensorboard(writer, step, reported)
    elif hasattr(writer, "log"):
        _to_wandb(library, writer, step, reported)
    elif callable(writer):
        writer(dict(reported), step)
    elif hasattr(library, "log_metrics"):
        _to_mlflow(library, writer, step, reported)
    else:
        expected = "a SummaryWriter, a W&B, trackio or MLflow run, or something to call with (values, step)"
        raise InvalidInput("writer", expected, type(writer).__name__)


def _numbers(reported: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in reported.items() if isinstance(value, float)}


def _to_tensorboard(writer: Any, step: int, reported: Mapping[str, Any]) -> None:
    for name, number in _numbers(reported).items():
        writer.add_scalar(name, number, step)
    if SCORES in reported and hasattr(writer, "add_histogram"):
        writer.add_histogram(SCORES, reported[SCORES], step)
    if TOP_LEVELS in reported and hasattr(writer, "add_text"):
        writer.add_text(TOP_LEVELS, markdown(reported[TOP_LEVELS]), step)


def _to_wandb(library: Any, run: Any, step: int, reported: Mapping[str, Any]) -> None:
    """Writes one dict, without a step of its own: a run counts its steps by itself, and refuses to go back."""
    if hasattr(run, "define_metric"):
        run.define_metric(f"{PREFIX}*", step_metric=STEP)
    logged: dict[str, Any] = {STEP: step, **_numbers(reported)}
    if SCORES in reported and hasattr(library, "Histogram"):
        logged[SCORES] = library.Histogram(np_histogram=np.histogram(reported[SCORES], bins=NUM_BINS))
    if TOP_LEVELS in reported and hasattr(library, "Table"):
        rows = [list(row.values()) for row in reported[TOP_LEVELS]]
        logged[TOP_LEVELS] = library.Table(columns=list(COLUMNS), data=rows)
    run.log(logged)


def _to_mlflow(library: Any, run: Any, step: int, reported: Mapping[str, Any]) -> None:
    """Writes the numbers as metrics; MLflow has no histograms, so the rest is a JSON file of the run, the newest."""
    run_id = None if run is library else run.info.run_id
    library.log_metrics(_numbers(reported), step=step, run_id=run_id)
    if SCORES in reported:
        counts, edges = np.histogram(reported[SCORES], bins=NUM_BINS)
        histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
        newest = {STEP: step, "top_levels": reported[TOP_LEVELS], "scores": histogram}
        library.log_dict(newest, f"{TOP_LEVELS}.json", run_id=run_id)


def markdown(top_levels: list[dict[str, Any]]) -> str:
    """Returns the table of the top levels as Markdown, which TensorBoard shows as a table.

    >>> print(markdown([{"level": 7, "score": 0.25, "p_replay": 0.5, "staleness": 3}]))
    | level | score | p_replay | staleness |
    |---|---|---|---|
    | 7 | 0.25 | 0.5 | 3 |
    """
    rows = [
        f"| {' | '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in row.values())} |"
        for row in top_levels
    ]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *rows])
