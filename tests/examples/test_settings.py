"""The examples hand the run's seed and the trainer's discounts to the curriculum."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DRAW_NOTHING = {"ada_fitness.py"}  # it plays each level once, and only asks for the weights


def calls(path: Path, name: str) -> list[ast.Call]:
    """Returns the calls of `name` in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_the_runs_seed_is_the_curriculums(path: Path) -> None:
    """Otherwise ten seeds are ten runs on one stream of levels."""
    for config in calls(path, "Config"):
        seeds = [ast.unparse(keyword.value) for keyword in config.keywords if keyword.arg == "seed"]
        assert path.name in DRAW_NOTHING or seeds in (["seed"], ["args.seed"])


def test_there_are_such_examples() -> None:
    assert sum(bool(calls(path, "Config")) for path in EXAMPLES.glob("*.py")) > 6


def test_rllib_trains_with_the_discounts_that_it_is_scored_with() -> None:
    path = EXAMPLES / "rllib_ppo.py"
    (config,) = calls(path, "Config")
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    training = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "training"]
    given = {keyword.arg: ast.unparse(keyword.value) for call in training for keyword in call.keywords}
    scored = {keyword.arg: ast.unparse(keyword.value) for keyword in config.keywords}
    assert (given["gamma"], given["lambda_"]) == (scored["gamma"], scored["gae_lambda"]) == ("GAMMA", "GAE_LAMBDA")
