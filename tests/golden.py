"""The expected numbers in tests/data/golden, from a brute-force float64 implementation of the paper's equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plr_server import Config, Curriculum

FOLDER = Path(__file__).parent / "data" / "golden"
SCORES = np.load(FOLDER / "scores.npz")
WEIGHTS = np.load(FOLDER / "weights.npz")

CASES = ("mixed", "no_done", "every_step", "truncation")
STRATEGIES = (
    "gae",
    "value_l1",
    "positive_value_loss",
    "one_step_td_error",
    "policy_entropy",
    "least_confidence",
    "min_margin",
)
WEIGHT_KEYS = tuple(name for name in WEIGHTS.files if "/" in name)
GAMMA, GAE_LAMBDA = float(SCORES["gamma"]), float(SCORES["gae_lambda"])


def block(case):
    """The pushed fields of one case; every episode has a level of its own, its row in `episodes`."""
    fields = {
        name: SCORES[f"{case}/{name}"]
        for name in ("values", "rewards", "dones", "next_values", "truncated", "final_values", "logits")
    }
    levels = np.full(fields["dones"].shape, -1)
    for level, (column, first, stop, _) in enumerate(SCORES[f"{case}/episodes"]):
        levels[first:stop, column] = level
    return {**fields, "levels": levels}


def curriculum(key):
    """A curriculum in the state of weights.npz, configured as the key `transform/temperature/staleness_coef` says."""
    transform, temperature, staleness_coef = key.split("/")
    config = Config(
        levels=range(60),
        transform=transform,
        temperature=float(temperature),
        staleness_coef=float(staleness_coef),
        eps=0.05,
    )
    state = Curriculum(config).state()
    draws = int(WEIGHTS["staleness"].max())
    state["sampler"] |= {
        "scores": np.where(WEIGHTS["seen"], WEIGHTS["scores"], 0.0),
        "seen": WEIGHTS["seen"],
        "last_drawn": draws - WEIGHTS["staleness"].astype(np.int64),
        "draws": draws,
    }
    return Curriculum.from_state(state)
