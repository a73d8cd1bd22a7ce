"""Rules for scoring a level that were tried, and are not in the server: does one of them beat learnability?

A rule scores each finished episode from what it remembers of the level. It drives a curriculum of the strategy
"external", in the trainer's process, on the combination lock and on a task of the study. Learnability itself is among
them, as a check: as a rule it plays the same levels as the server's strategy. Seeds are those of tuning, below 100, and
the lock's; what came of it is in docs/choosing.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lock
import numpy as np
from cost import InProcess, InProcessWorld
from fastgrid import FastMiniGrid
from ppo import NUM_ENVS, advantages_of
from run import ALL, run
from study import ARMS, Job

from plr_client.levels import Assignment
from plr_server import Config, Curriculum


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        won: its return was above 0.
        error: mean |A| over its steps in the block that it ended in. gain: mean of max(A, 0) over them.
        first_value: V of its first observation.
    """

    won: bool
    error: float
    gain: float
    first_value: float


Rule = Callable[[Episode], float]  # of one level; it keeps its own memory


def learnability(
    window: int = 10, *, wins: float = 0.0, losses: float = 0.0, critic: float = 0.0, harder: float = 0.0
) -> Rule:
    """P (1 - p)^(1 + harder), p from the last `window` episodes and from as many imagined ones as are said.

    With `critic`, so many imagined episodes won as often as V of the first observation says, as far as returns are 0
    to 1: what the critic has learnt on other levels speaks while a level was hardly played.
    """
    past: deque[bool] = deque(maxlen=window)

    def score(episode: Episode) -> float:
        past.append(episode.won)
        guess = min(max(episode.first_value, 0.0), 1.0)
        p = (sum(past) + wins + critic * guess) / (len(past) + wins + losses + critic)
        return p * (1.0 - p) ** (1.0 + harder)

    return score


def discounted(decay: float) -> Rule:
    """P (1 - p), each episode counting `decay` times as much as the one after it."""
    won = played = 0.0

    def score(episode: Episode) -> float:
        nonlocal won, played
        won, played = decay * won + episode.won, decay * played + 1.0
        return won / played * (1.0 - won / played)

    return score


def progress(window: int) -> Rule:
    """How far the success rates of the newer and of the older half of the last `window` episodes are apart."""
    past: deque[bool] = deque(maxlen=window)

    def score(episode: Episode) -> float:
        past.append(episode.won)
        half = len(past) // 2
        return abs(np.mean(list(past)[half:]) - np.mean(list(past)[:half])) if half else 0.0

    return score


def above_floor(alpha: float) -> Rule:
    """The level's smoothed |A| above the least that it ever was: what is irreducible is left out."""
    smoothed, floor = None, np.inf

    def score(episode: Episode) -> float:
        nonlocal smoothed, floor
        smoothed = episode.error if smoothed is None else (1.0 - alpha) * smoothed + alpha * episode.error
        floor = min(floor, smoothed)
        return smoothed - floor

    return score


def drop(alpha: float) -> Rule:
    """How much |A| changes from one visit to the next, smoothed; |A| itself at the first."""
    before = changes = None

    def score(episode: Episode) -> float:
        nonlocal before, changes
        if before is None:
            before = changes = episode.error
        else:
            changes = (1.0 - alpha) * changes + alpha * abs(episode.error - before)
            before = episode.error
        return changes

    return score


def product(window: int = 10) -> Rule:
    """P (1 - p) times |A|."""
    p_1_p = learnability(window)
    return lambda episode: p_1_p(episode) * episode.error


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A rule, made anew for each level, and how its scores become draws; or, without a rule, a strategy of the server.

    Attributes:
        rule: makes one. fields: of `Config`.
    """

    rule: Callable[[], Rule] | None
    fields: dict[str, Any]


def fixed(replay_prob: float) -> dict[str, Any]:
    """Returns the fields of learnability that replays so often from the start, however few levels were seen."""
    return ARMS["learnability"] | {"replay_schedule": "fixed", "replay_prob": replay_prob}


POWER: dict[str, Any] = {"transform": "power", "temperature": 1.0, "staleness_coef": 0.3}
RANK: dict[str, Any] = {"transform": "rank", "temperature": 0.3, "staleness_coef": 0.3}
CANDIDATES = {
    "uniform": Candidate(None, ARMS["uniform"]),
    "learnability": Candidate(None, ARMS["learnability"]),
    "learnability as a rule": Candidate(learnability, POWER),
    "window 3": Candidate(None, ARMS["learnability"] | {"window": 3}),
    "window 5": Candidate(None, ARMS["learnability"] | {"window": 5}),
    "window 40": Candidate(None, ARMS["learnability"] | {"window": 40}),
    "discounted, 0.9": Candidate(lambda: discounted(0.9), POWER),
    "discounted, 0.5": Candidate(lambda: discounted(0.5), POWER),
    "half a win imagined": Candidate(lambda: learnability(wins=0.5), POWER),
    "a win and a loss imagined": Candidate(lambda: learnability(wins=1.0, losses=1.0), POWER),
    "half a loss imagined": Candidate(lambda: learnability(losses=0.5), POWER),
    "the critic's guess as one episode": Candidate(lambda: learnability(critic=1.0), POWER),
    "harder levels first": Candidate(lambda: learnability(harder=1.0), POWER),
    "progress, window 10": Candidate(lambda: progress(10), POWER),
    "progress, window 20": Candidate(lambda: progress(20), POWER),
    "|A| above its floor": Candidate(lambda: above_floor(0.3), RANK),
    "drop of |A|": Candidate(lambda: drop(0.3), RANK),
    "learnability times |A|": Candidate(product, POWER),
    "one env a level": Candidate(None, ARMS["learnability"] | {"max_in_flight": 1}),
    "replay_prob 0.8": Candidate(None, fixed(0.8)),
    "replay_prob 0.95": Candidate(None, fixed(0.95)),
    "replay_prob 0.8, robust": Candidate(None, fixed(0.8) | {"robust": True}),
}


class Rated:
    """A curriculum whose scores are a rule's; has what the trainers need of a `Curriculum`.

    Args:
        config: of the strategy "external". make: the rule of one level.
    """

    def __init__(self, config: Config, make: Callable[[], Rule]) -> None:
        self.curriculum = Curriculum(config)
        self._rules = {level: make() for level in config.levels}
        self._first_values: dict[int, float] = {}  # of the episode under way, by column

    def sample(self, k: int = 1, *, slots: Any = None) -> list[Assignment]:
        return self.curriculum.sample(k, slots=slots)

    def update(self, values: Any, *rest: Any, valid: Any = None) -> None:
        rewards, dones, levels, next_values = rest
        advantages, ended = advantages_of(rewards, values, dones, next_values), []
        for n in range(dones.shape[1]):
            start = 0
            for t in np.flatnonzero(dones[:, n]).tolist():
                first_value = self._first_values.pop(n, float(values[start, n]))
                part = advantages[start : t + 1, n]
                episode = Episode(rewards[t, n] > 0, np.abs(part).mean(), np.maximum(part, 0).mean(), first_value)
                ended.append((t, n, int(levels[t, n]), episode))
                start = t + 1
            if start < len(dones) and valid is None:
                self._first_values.setdefault(n, float(values[start, n]))
        ended.sort(key=lambda each: each[:2])  # as the server applies them
        if ended:
            scores = [self._rules[level](episode) for _, _, level, episode in ended]
            self.curriculum.update_scores([level for _, _, level, _ in ended], scores)


class CandidateWorld(InProcessWorld):
    """A world whose levels a candidate chooses."""

    def __init__(self, job: Job, candidate: Candidate) -> None:
        super().__init__(job)
        strategy = {} if candidate.rule is None else {"strategy": "external"}
        self.config = dataclasses.replace(self.config, **candidate.fields, **strategy)
        self._rule = candidate.rule

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[InProcess, Curriculum]]:
        envs = FastMiniGrid(self.levels, NUM_ENVS, self.actions)
        if self._rule is None:
            curriculum = Curriculum(self.config)
            yield InProcess(envs, curriculum), curriculum
        else:
            rated = Rated(self.config, self._rule)
            yield InProcess(envs, rated), rated.curriculum


def area_on_lock(candidate: Candidate, copies: int, luck: float, seed: int) -> float:
    """Returns the success rate over all levels, averaged over the course of a training on the combination lock."""
    strategy = {} if candidate.rule is None else {"strategy": "external"}
    config = lock.config_of(candidate.fields | strategy, copies=copies, seed=seed)
    chooser = Curriculum(config) if candidate.rule is None else Rated(config, candidate.rule)
    agent = lock.Agent(np.random.default_rng(seed), copies, luck)
    return float(np.mean(lock.course(agent, chooser.sample, chooser.update)[0]))


LOCKS = {"128 levels": (8, 1.0), "128 levels, a fifth of the wins lost by chance": (8, 0.8), "1 024 levels": (64, 1.0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=CANDIDATES, action="append", metavar="NAME", help="which (default: all)")
    parser.add_argument("--lock-seeds", type=int, default=16, help="runs of each on the lock (default: %(default)s)")
    parser.add_argument("--task", default="keys16", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each on the task (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=256, help="of 16 384 env steps (default: %(default)s)")


def measure(options: argparse.Namespace) -> None:
    """Plays the lock, then the task, and prints areas under the curves: mean and standard deviation over runs."""
    seeds = range(lock.FIRST_SEED, lock.FIRST_SEED + options.lock_seeds)
    names = options.only or list(CANDIDATES)
    if seeds:
        print(f"| lock ({len(seeds)} runs each) | {' | '.join(LOCKS)} |\n|{'---|' * (1 + len(LOCKS))}")
        for name in names:
            areas = [np.array([area_on_lock(CANDIDATES[name], *each, s) for s in seeds]) for each in LOCKS.values()]
            cells = (f"{each.mean():.3f} ± {each.std(ddof=1):.3f}" for each in areas)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for seed in range(options.seeds):
        for name in names:
            job = Job(options.task, "learnability", seed)
            rows = run(job, CandidateWorld(job, CANDIDATES[name]), options.updates)
            *curve, final = (row["heldout_return"] for row in rows if row["difficulty"] == ALL)
            area = np.mean(curve[1:])
            print(f"{options.task}, seed {seed}, {name}: area {area:.3f}, final {final:.3f}", flush=True)
