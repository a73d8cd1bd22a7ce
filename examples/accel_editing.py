"""ACCEL on small mazes: levels that a trainer edits, scores and inserts, instead of seeds (arXiv 2203.01302).

The level is the maze itself: rows of text, the payload that the server interns and hands out. New mazes are random and
inserted without a score; the ones that teach most are edited, and the children inserted with scores from real episodes.
Run it with `python examples/accel_editing.py`; it needs nothing beyond the project, and takes some seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from plr_client import Level, Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

SIZE, MAX_STEPS = 9, 64
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
NUM_STATES = 16 * 9 * 5  # walls on four sides, direction of the goal, last move
NUM_ENVS, NUM_STEPS, GAMMA, GAE_LAMBDA = 8, 128, 0.99, 0.95
NEW_MAZES, PARENTS, CHILDREN = 32, 4, 4  # kept waiting; edited after every update; of each of them

Maze = list[str]


class MazeEnv(gym.Env):
    """A maze to walk through from S to G; # is a wall. The agent sees its four neighbours and where the goal lies."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Discrete(NUM_STATES)
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self.maze: Maze = ["SG"]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed, options=options)
        self._cells = {(r, c): cell for r, row in enumerate(self.maze) for c, cell in enumerate(row)}
        self._at, self._goal = (next(at for at, cell in self._cells.items() if cell == mark) for mark in "SG")
        self._steps, self._last_move = 0, len(MOVES)
        return self._state(), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        following = self._at[0] + MOVES[action][0], self._at[1] + MOVES[action][1]
        if self._is_free(following):
            self._at = following
        self._steps, self._last_move = self._steps + 1, int(action)
        there = self._at == self._goal
        reward = 1.0 - 0.9 * self._steps / MAX_STEPS if there else 0.0
        return self._state(), reward, there, not there and self._steps == MAX_STEPS, {}

    def _is_free(self, at: tuple[int, int]) -> bool:
        return self._cells.get(at, "#") != "#"

    def _state(self) -> int:
        walls = sum(2**i for i, (r, c) in enumerate(MOVES) if not self._is_free((self._at[0] + r, self._at[1] + c)))
        direction = 3 * np.sign(self._goal[0] - self._at[0]) + np.sign(self._goal[1] - self._at[1]) + 4
        return int((walls * 9 + direction) * 5 + self._last_move)


def set_maze(env: gym.Env, maze: Maze) -> None:
    """Makes a payload the env's level: what LevelReplay calls before every reset."""
    env.unwrapped.maze = maze


def random_maze(rng: np.random.Generator) -> Maze:
    cells = np.where(rng.random((SIZE, SIZE)) < rng.uniform(0, 0.5), "#", ".")
    start, goal = rng.choice(SIZE * SIZE, 2, replace=False)
    cells.flat[start], cells.flat[goal] = "S", "G"
    return ["".join(row) for row in cells]


def walls_of(maze: Maze) -> str:
    """Returns the group of a maze on the live page: `plr-server view --group examples.accel_editing:walls_of`."""
    walls = sum(row.count("#") for row in maze)
    return f"{walls // 10 * 10} to {walls // 10 * 10 + 9} walls"


def picture_of(maze: Maze) -> np.ndarray:
    """Returns an RGB array: `plr-server view --render examples.accel_editing:picture_of`."""
    colours = {"#": (58, 64, 78), ".": (240, 242, 246), "S": (79, 70, 229), "G": (21, 160, 90)}
    cells = np.array([[colours[cell] for cell in row] for row in maze], dtype=np.uint8)
    return cells.repeat(8, axis=0).repeat(8, axis=1)


def edit(maze: Maze, rng: np.random.Generator) -> Maze:
    """Turns one to five cells from wall to floor or back."""
    cells = np.array([list(row) for row in maze])
    places = np.flatnonzero((cells != "S") & (cells != "G"))
    chosen = rng.choice(places, rng.integers(1, 6), replace=False)
    cells.flat[chosen] = np.where(cells.flat[chosen] == "#", ".", "#")
    return ["".join(row) for row in cells]


def advantages_of(
    values: np.ndarray, next_values: np.ndarray, rewards: np.ndarray, dones: np.ndarray, truncated: np.ndarray
) -> np.ndarray:
    """Returns GAE (T, N); where an episode was cut by the time limit, `values[t + 1]` is that of its last state."""
    following = np.concatenate([values[1:], next_values[np.newaxis]])
    deltas = rewards + GAMMA * following * (~dones | truncated) - values
    advantages, carried = np.zeros_like(values), np.zeros_like(next_values)
    for t in reversed(range(len(values))):
        advantages[t] = carried = deltas[t] + GAMMA * GAE_LAMBDA * ~dones[t] * carried
    return advantages


class Agent:
    """A table of preferences and one of values, learnt by advantage actor-critic."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.preferences, self.values = np.zeros((NUM_STATES, len(MOVES))), np.zeros(NUM_STATES)

    def probabilities(self, states: np.ndarray) -> np.ndarray:
        exps = np.exp(self.preferences[states] - self.preferences[states].max(-1, keepdims=True))
        return exps / exps.sum(-1, keepdims=True)

    def act(self, states: np.ndarray) -> np.ndarray:
        return (np.log(self.probabilities(states)) + self.rng.gumbel(size=(len(states), len(MOVES)))).argmax(-1)

    def learn(self, states: np.ndarray, actions: np.ndarray, advantages: np.ndarray) -> None:
        pull = np.eye(len(MOVES))[actions] - self.probabilities(states)
        np.add.at(self.preferences, states, 0.2 * advantages[:, np.newaxis] * pull)
        np.add.at(self.values, states, 0.02 * advantages)

    def score(self, maze: Maze) -> float:
        """Plays one episode and returns its positive value loss, as the server would score it."""
        env = MazeEnv()
        set_maze(env, maze)
        states, rewards, terminated, truncated = [env.reset()[0]], [], False, False
        while not (terminated or truncated):
            state, reward, terminated, truncated, _ = env.step(self.act(np.array(states[-1:]))[0])
            states.append(state)
            rewards.append(reward)
        values, last = self.values[states][:, np.newaxis], np.arange(len(rewards))[:, np.newaxis] == len(rewards) - 1
        advantages = advantages_of(values[:-1], values[-1], np.array(rewards)[:, np.newaxis], last, last & truncated)
        return float(np.maximum(advantages, 0).mean())


def success_rate(agent: Agent, mazes: Sequence[Maze]) -> float:
    """Returns the share of the mazes that the agent walks through within the time limit, one try each."""
    envs = gym.vector.SyncVectorEnv([MazeEnv] * len(mazes))
    envs.set_attr("maze", list(mazes))
    states, _ = envs.reset()
    solved, ended = np.zeros(len(mazes), bool), np.zeros(len(mazes), bool)
    for _ in range(MAX_STEPS):
        states, _, terminated, truncated, _ = envs.step(agent.act(states))
        solved |= terminated & ~ended
        ended |= terminated | truncated
    return float(solved.mean())


def train(updates: int, seed: int) -> tuple[Agent, dict, list[Level], np.ndarray]:
    """Returns the agent, the curriculum's stats, and the mazes it holds in the end, with their scores."""
    rng = np.random.default_rng(seed)
    agent = Agent(rng)
    config = Config(
        levels="payloads",
        capacity=512,
        strategy="positive_value_loss",
        temperature=0.3,
        staleness_coef=0.3,
        replay_schedule="fixed",
        replay_prob=0.8,
        min_fill_ratio=0.1,
        robust=True,  # as ACCEL: new mazes are only scored, replayed ones learnt from
        gamma=GAMMA,
        gae_lambda=GAE_LAMBDA,
        seed=seed,
    )
    with launch(config) as server, Trainer(server.address) as trainer:
        trainer.insert([random_maze(rng) for _ in range(NEW_MAZES)])
        envs = LevelReplayVector(
            gym.vector.SyncVectorEnv([lambda: LevelReplay(MazeEnv(), server.address, set_level=set_maze)] * NUM_ENVS),
            server.address,
        )
        states, _ = envs.reset()
        for _ in range(updates):
            rollout = []
            for _ in range(NUM_STEPS):
                actions, trains = agent.act(states), envs.train_mask
                before, (states, rewards, terminated, truncated, _) = states, envs.step(actions)
                learnt_from = envs.valid & trains
                rollout.append((before, actions, rewards, terminated | truncated, truncated, learnt_from))
            before, actions, rewards, dones, truncated, learnt_from = map(np.stack, zip(*rollout, strict=True))
            values, next_values = agent.values[before], agent.values[states]
            envs.push(values, next_values)
            advantages = advantages_of(values, next_values, rewards, dones, truncated)
            agent.learn(before[learnt_from], actions[learnt_from], advantages[learnt_from])

            ids, scores, _, _ = trainer.scores()
            parents = trainer.levels(ids[np.argsort(-scores)[:PARENTS]])
            children = [(edit(parent.payload, rng), parent.level) for parent in parents for _ in range(CHILDREN)]
            mazes, parent_ids = [maze for maze, _ in children], [parent for _, parent in children]
            trainer.insert(mazes, [agent.score(maze) for maze in mazes], parent_ids)
            missing = NEW_MAZES - trainer.stats()["waiting"]
            trainer.insert([random_maze(rng) for _ in range(missing)])
        ids, scores, _, _ = trainer.scores()
        best_first = np.argsort(-scores)
        levels = trainer.levels(ids[best_first])
        stats = trainer.stats()
        envs.close()
    return agent, stats, levels, scores[best_first]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=150, help="of the agent (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    held_out = [random_maze(np.random.default_rng(10_000 + i)) for i in range(200)]
    before = success_rate(Agent(np.random.default_rng(0)), held_out)
    agent, stats, levels, scores = train(args.updates, args.seed)
    edited = sum(level.parent is not None for level in levels)
    print(f"mazes in the table   {len(levels)} of {stats['levels']}, {edited} of them edited from another one")
    print(f"entered, turned away {stats['entered']:,}, {stats['rejected']:,}; pushed out {stats['evicted']:,}")
    after = success_rate(agent, held_out)
    print(f"held-out success     {before:.0%} before training, {after:.0%} after (some have no way through)")
    print(f"the highest score    {scores[0]:.3f}, level {levels[0].level}, made from {levels[0].parent}")
    print("\n".join(levels[0].payload))


if __name__ == "__main__":
    main()
