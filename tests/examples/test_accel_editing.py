"""examples/accel_editing.py: mazes are edited, scored as the server scores, inserted, and played."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from plr_server import Config, Curriculum

PATH = Path(__file__).parents[2] / "examples" / "accel_editing.py"


@pytest.fixture(scope="module")
def accel():
    spec = importlib.util.spec_from_file_location("accel_editing", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_edit_changes_one_to_five_cells_and_neither_end(accel):
    rng = np.random.default_rng(0)
    for _ in range(200):
        maze = accel.random_maze(rng)
        child = accel.edit(maze, rng)
        pairs = [(a, b) for row, other in zip(maze, child, strict=True) for a, b in zip(row, other, strict=True)]
        changed = [pair for pair in pairs if pair[0] != pair[1]]
        assert 1 <= len(changed) <= 5
        assert set(changed) <= {("#", "."), (".", "#")}


def test_a_child_is_scored_as_the_server_scores_it(accel):
    """The same episode, played again and pushed; walls around the start make one that the time limit ends."""
    for maze in (["S..", "...", "..G"], ["S#.", "##.", "..G"]):
        agents = [accel.Agent(np.random.default_rng(3)) for _ in range(2)]
        for agent in agents:
            agent.values[:] = np.random.default_rng(4).normal(size=accel.NUM_STATES)
        env = accel.MazeEnv()
        accel.set_maze(env, maze)
        states, rewards, done, truncated = [env.reset()[0]], [], False, False
        while not (done or truncated):
            state, reward, done, truncated, _ = env.step(agents[0].act(np.array(states[-1:]))[0])
            states.append(state)
            rewards.append([reward])
        values = agents[0].values[states]
        last = np.arange(len(rewards))[:, np.newaxis] == len(rewards) - 1
        config = Config(
            levels="payloads", strategy="positive_value_loss", gamma=accel.GAMMA, gae_lambda=accel.GAE_LAMBDA
        )
        curriculum = Curriculum(config)
        level = curriculum.insert([maze])
        curriculum.update(
            values[:-1, np.newaxis],
            rewards,
            last,
            np.full(last.shape, level),
            np.zeros(1),
            truncated=last & truncated,
            final_values=np.full(last.shape, values[-1]),
        )
        assert curriculum.scores()[1].tolist() == pytest.approx([agents[1].score(maze)], rel=1e-9)


def test_edited_mazes_enter_the_table_and_are_replayed(accel):
    _, stats, levels, scores = accel.train(updates=12, seed=1)
    lineage = {level.level: level.parent for level in levels}
    assert len(levels) == stats["levels_seen"] > 50
    assert (np.diff(scores) <= 0).all()
    assert sum(parent is not None for parent in lineage.values()) > 20
    assert all(parent is None or parent < level for level, parent in lineage.items())
    assert any(lineage.get(parent) is not None for parent in lineage.values())  # an edit of an edit
    assert stats["replays"] > 0
    assert stats["waiting"] == accel.NEW_MAZES
    assert all(sorted("".join(level.payload)).count("S") == 1 for level in levels)


def test_the_agent_learns(accel):
    held_out = [accel.random_maze(np.random.default_rng(10_000 + i)) for i in range(100)]
    before = accel.success_rate(accel.Agent(np.random.default_rng(0)), held_out)
    agent, *_ = accel.train(updates=40, seed=0)
    assert accel.success_rate(agent, held_out) > before + 0.2
