"""Presets: configurations with a name, each with where it is from and what is measured of it.

Used by the configuration and the command line. Plain values; what is not in a preset keeps its default.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """Fields of `Config` that belong together.

    Attributes:
        fields: by name.
        source: where they are from.
        measured: what is known of them here; docs/choosing.md has the numbers.
    """

    fields: dict[str, Any]
    source: str
    measured: str


_ROBUST: dict[str, Any] = {
    "strategy": "positive_value_loss",
    "transform": "rank",
    "temperature": 0.3,
    "staleness_coef": 0.3,
    "replay_schedule": "fixed",
    "replay_prob": 0.5,
    "min_fill_ratio": 0.5,
    "robust": True,
}
PRESETS: dict[str, Preset] = {
    "paper-procgen": Preset(
        {"strategy": "value_l1", "transform": "rank", "temperature": 0.1, "staleness_coef": 0.1},
        "arXiv 2010.03934, appendix A",
        "the same with staleness_coef 0.3 was at or below uniform levels on all MiniGrid tasks of a pilot",
    ),
    "learnability": Preset(
        {"strategy": "learnability", "transform": "power", "temperature": 1.0, "staleness_coef": 0.3},
        "p (1 - p) is of arXiv 2408.15099; the other fields are ours",
        "1.4 to 1.6 times the return of uniform levels on three MiniGrid tasks of a pilot where skills build on each "
        "other, 0.8 times on one where they do not",
    ),
    "robust": Preset(
        _ROBUST,
        "arXiv 2110.02439; the authors' configuration for mazes (dcd, 60 blocks)",
        "nothing yet",
    ),
    "accel": Preset(
        _ROBUST | {"levels": "payloads", "capacity": 4000, "replay_prob": 0.8},
        "arXiv 2203.01302; the authors' configuration for mazes (dcd, 60 blocks); your editor inserts the levels",
        "nothing yet",
    ),
}
