"""Is it us? level-replay's own sampler and score code beside ours: the same inputs, and under the same trainers.

Its code is fetched by who runs this (https://github.com/facebookresearch/level-replay, CC-BY-NC) and runs in a process
and an environment of its own, with torch; nothing of it is here. Three comparisons: scores and weights from the same
rollouts; learning curves on the combination lock; learning curves on a task of the study, cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lock
import numpy as np
from cost import InProcess, InProcessWorld
from fastgrid import FastMiniGrid
from intervals import welch
from learning_level_replay import received, send
from ppo import GAE_LAMBDA, GAMMA, NUM_ENVS
from run import ALL, run
from study import Job

from plr_client.levels import Assignment
from plr_server import Config, Curriculum

ROOT = Path(__file__).resolve().parents[2]
TORCH = str(ROOT / ".venv-torch/bin/python")
CONTENDER = ROOT / "benchmarks" / "contenders" / "learning_level_replay.py"
ARMS = ("value_l1", "paper")
FIELDS = ("values", "rewards", "dones", "levels", "next_values")
DONE = 0.1  # chance that a step of a random rollout ends its episode
SAME = 1e-5  # its storage has float32


class Peer:
    """level-replay's sampler in a process of its own; has what the trainers need of a `Curriculum`.

    Args:
        options: where the clone is, and the Python with torch.
        config: of the curriculum: value_l1, rank, proportionate.
        num_envs: how many envs push together.
    """

    def __init__(self, options: argparse.Namespace, config: Config, num_envs: int) -> None:
        read, write = os.pipe()
        self._process = subprocess.Popen(  # noqa: S603  our own command
            [options.python, str(CONTENDER), str(options.clone), str(write)], stdin=subprocess.PIPE, pass_fds=(write,)
        )
        os.close(write)
        assert self._process.stdin is not None  # noqa: S101  narrows the type
        self._requests, self._answers = self._process.stdin, os.fdopen(read, "rb")
        self._levels = np.array(config.levels)
        self._ask(
            "make",
            seeds=self._levels,
            num_actors=num_envs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            seed=config.seed,
            strategy=config.strategy,
            replay_schedule="proportionate",
            score_transform=config.transform,
            temperature=config.temperature,
            rho=0.0,
            staleness_coef=config.staleness_coef,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._process.wait()
        self._answers.close()

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        send(self._requests, op=op, **fields)
        answer = received(self._answers)
        if answer is None:
            raise SystemExit(f"level-replay ended with exit code {self._process.wait()}")
        return answer

    def sample(self, k: int = 1, *, slots: object = None) -> list[Assignment]:  # noqa: ARG002
        return [Assignment(level, True, True) for level in self._ask("sample", k=k)["levels"].tolist()]

    def update(self, *fields: np.ndarray, **more: np.ndarray) -> None:
        self._ask(
            "update", **dict(zip(("values", "rewards", "dones", "levels", "next_values"), fields, strict=False)), **more
        )

    def state(self) -> dict[str, Any]:
        """Returns scores, seen, staleness and weights, (n,) each."""
        return self._ask("state")

    def scores(self) -> tuple[np.ndarray, ...]:
        state = self.state()
        return self._levels, state["scores"], state["staleness"], state["seen"]

    def weights(self) -> np.ndarray:
        return self.state()["weights"]

    def stats(self) -> dict[str, Any]:
        return {"effective_levels": np.nan}


# ---- the same inputs


def compare_scores(options: argparse.Namespace, num_blocks: int = 50) -> None:
    """Gives both the same rollouts, and prints how far scores and weights are apart."""
    num_levels, shape = 200, (64, 8)
    config = Config(levels=range(num_levels), temperature=1.0, staleness_coef=0.3, gamma=GAMMA, gae_lambda=GAE_LAMBDA)
    for what, tidy in (("episodes that end in their block, each on a level of its own", True), ("all rollouts", False)):
        rng, ours = np.random.default_rng(0), Curriculum(config)
        with Peer(options, config, shape[1]) as peer:
            block = None
            for _ in range(num_blocks):
                block = _block(rng, shape, num_levels, block, tidy=tidy)
                ours.update(**block)
                peer.update(**block)
                peer.sample(20)  # so that there is staleness
            theirs = peer.state()
        both = ours.scores()[3] & theirs["seen"]
        apart = np.abs(ours.scores()[1] - theirs["scores"])[both]
        weights_apart = np.abs(_weights_of(config, theirs) - theirs["weights"])
        print(
            f"{what}: of {both.sum()} levels {np.count_nonzero(apart > SAME)} have another score, at most "
            f"{apart.max():.1e} apart; P_replay, from the same scores and staleness, at most {weights_apart.max():.1e}"
        )


def _block(
    rng: np.random.Generator,
    shape: tuple[int, int],
    num_levels: int,
    before: dict[str, np.ndarray] | None,
    *,
    tidy: bool,
) -> dict[str, np.ndarray]:
    """Returns a rollout of short episodes; if not tidy, its first ones go on from the block before."""
    steps, envs = shape
    dones = rng.random(shape) < DONE
    dones[-1] |= tidy
    number = np.cumsum(dones, 0) - dones + np.arange(envs) * (steps + 1)  # of the episode, over all columns
    _, which = np.unique(number, return_inverse=True)
    ids = rng.permutation(num_levels) if tidy else rng.integers(num_levels, size=number.size)
    levels = ids[which].reshape(shape)
    if before is not None and not tidy:
        goes_on = (number == number[0]) & ~before["dones"][-1]
        levels = np.where(goes_on, before["levels"][-1], levels)
    values, rewards = rng.normal(size=(2, *shape)).astype(np.float32)  # as its storage has them
    next_values = rng.normal(size=envs).astype(np.float32)
    return {"values": values, "rewards": rewards, "dones": dones, "levels": levels, "next_values": next_values}


def _weights_of(config: Config, theirs: dict[str, Any]) -> np.ndarray:
    """Returns our P_replay of its scores and staleness."""
    state = Curriculum(config).state()
    draws = int(theirs["staleness"].max())
    state["sampler"] |= {
        "scores": theirs["scores"],
        "seen": theirs["seen"],
        "last_drawn": draws - theirs["staleness"].astype(np.int64),
        "draws": draws,
    }
    return Curriculum.from_state(state).weights()


# ---- the same trainers


def compare_on_lock(options: argparse.Namespace) -> None:
    """Trains on the combination lock with either, and prints the areas under the curves."""
    for temperature in (0.1, 0.3, 1.0):
        areas: dict[str, list[float]] = {"ours": [], "level-replay": []}
        for seed in range(lock.FIRST_SEED, lock.FIRST_SEED + options.seeds):
            config = lock.config_of(lock.VALUE_L1 | {"temperature": temperature}, seed=seed)
            ours = Curriculum(config)
            with Peer(options, config, 1) as peer:
                for name, each in (("ours", ours), ("level-replay", peer)):
                    agent = lock.Agent(np.random.default_rng(seed))
                    areas[name].append(float(np.mean(lock.course(agent, each.sample, each.update)[0])))
        _show(f"lock, value_l1, temperature {temperature}, area under the curve", areas)


class PeerWorld(InProcessWorld):
    """A world whose levels level-replay chooses."""

    def __init__(self, job: Job, options: argparse.Namespace) -> None:
        super().__init__(job)
        self._options = options

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[InProcess, Any]]:
        with Peer(self._options, self.config, NUM_ENVS) as peer:
            yield InProcess(FastMiniGrid(self.levels, NUM_ENVS, self.actions), peer), peer


def compare_on_task(options: argparse.Namespace) -> None:
    """Trains on a task of the study with either, and prints the means of the curves of held-out return."""
    for arm in ARMS:
        areas: dict[str, list[float]] = {"ours": [], "level-replay": []}
        for seed in range(options.task_seeds):
            job = Job(options.task, arm, seed)
            for name, world in (("ours", InProcessWorld(job)), ("level-replay", PeerWorld(job, options))):
                rows = [row for row in run(job, world, options.updates) if row["difficulty"] == ALL]
                areas[name].append(
                    float(np.mean([row["heldout_return"] for row in rows if row["evaluation"] == "curve"][1:]))
                )
                print(
                    f"  {job}, {name}: final {rows[-1]['heldout_return']:.3f}, area {areas[name][-1]:.3f}", flush=True
                )
        _show(f"{options.task}, {arm}, {options.updates} updates, area under the curve", areas)


def _show(what: str, areas: dict[str, list[float]]) -> None:
    ours, theirs = (np.array(each) for each in areas.values())
    said = ", ".join(f"{name} {np.mean(each):.3f}" for name, each in areas.items())
    if len(ours) > 1:
        spreads = f"standard deviations {ours.std(ddof=1):.3f} and {theirs.std(ddof=1):.3f}"
        said = f"{said}; {spreads}, Welch p {welch(ours, theirs):.2f}"
    print(f"{what} ({len(ours)} runs each): {said}", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clone", type=Path, metavar="CLONE", help="a clone of facebookresearch/level-replay")
    parser.add_argument(
        "--python", default=str(ROOT / ".venv-torch/bin/python"), help="with torch (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=16, help="runs of each on the lock (default: %(default)s)")
    parser.add_argument("--task", default="keys16", help="(default: %(default)s)")
    parser.add_argument("--task-seeds", type=int, default=2, help="runs of each arm on the task (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=256, help="of 16 384 env steps (default: %(default)s)")


def compare(options: argparse.Namespace) -> None:
    """Makes the three comparisons, and prints them."""
    compare_scores(options)
    if options.seeds:
        compare_on_lock(options)
    if options.task_seeds:
        compare_on_task(options)
