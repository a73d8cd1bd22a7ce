"""Is the fast MiniGrid the stock one? Plays the same actions in both, and compares everything an agent meets.

Observations must be equal, and rewards, ends and time limits. Actions are random, or a trained agent's with a share of
random ones: random play seldom comes to the rare things, such as a key that was in a box behind a ball.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from fastgrid import CELLS, KIND_OF, NUM_KINDS, VIEW, FastMiniGrid, cell_of
from ppo import Agent
from tasks import Task

RANDOM = (0.1, 0.1, 0.35, 0.15, 0.1, 0.15, 0.05)  # of MiniGrid's seven actions: mostly forward
RANDOM_SHARE = 0.1  # beside a trained agent
ALL_ACTIONS = range(7)


@dataclasses.dataclass
class Compared:
    """How far two envs were equal.

    Attributes:
        steps, episodes, won: played in both.
    """

    steps: int = 0
    episodes: int = 0
    won: int = 0


class Difference(Exception):
    """The two envs differ: the message says where."""


def play(task: Task, first_seed: int, num_steps: int, agent: Agent | None = None) -> Compared:
    """Plays one level after the other in the stock env and in the fast one.

    Args:
        task: whose envs.
        first_seed: the levels are this one and those after it.
        num_steps: at least so many; the last episode is played to its end.
        agent: a trained one; None for random actions alone.

    Raises:
        Difference: of an observation, reward, end or time limit.
    """
    rng = np.random.default_rng(first_seed)
    make = task.maker()
    num_levels = 60
    seeds = range(first_seed, first_seed + num_levels)
    fast = FastMiniGrid(task.levels(seeds), 1, ALL_ACTIONS)
    compared = Compared()
    while compared.steps < num_steps:
        seed = seeds[compared.episodes % num_levels]
        stock, _ = make(seed)
        theirs, (ours, _) = stock.reset(seed=seed)[0], fast.reset(seed=[seed])
        over = False
        while not over:
            where = f"{task.name}, seed {seed}, step {compared.steps}"
            if not np.array_equal(inputs_of(theirs["image"]), ours[0]):
                raise Difference(f"observation: expected that of the stock env, got another, at {where}")
            action = int(rng.choice(7, p=RANDOM))
            if agent is not None and rng.random() > RANDOM_SHARE:
                action = task.actions[agent.act(ours)[0][0]]
            theirs, *said = stock.step(action)[:4]
            ours, *got = fast.step(np.array([action]))[:4]
            compared.steps += 1
            if tuple(said) != tuple(array[0] for array in got):
                raise Difference(f"reward, end, time limit: expected {said}, got {got}, at {where}")
            over = said[1] or said[2]
        compared.episodes += 1
        compared.won += said[0] > 0
    return compared


def inputs_of(image: np.ndarray) -> np.ndarray:
    """Returns a stock observation (7, 7, 3) as the fast env gives it, (49,)."""
    parts = image.astype(np.int64)
    kinds = KIND_OF[cell_of(parts[..., 0], parts[..., 1], parts[..., 2])].reshape(CELLS)
    return np.where(kinds > 0, np.arange(VIEW * VIEW) * NUM_KINDS + kinds, -1)
