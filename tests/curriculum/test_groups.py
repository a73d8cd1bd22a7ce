"""groups.py: one score for the agents of one env, whenever each of them ends, by a plain-loop model."""

from __future__ import annotations

import itertools
import pickle

import model
import numpy as np
import pytest

from plr_client import InvalidInput, Trainer
from plr_server import Config, Curriculum, launch

NUM_LEVELS, ENVS, AGENTS = 4, 3, 3
GROUPS = np.repeat([40, 7, 12], AGENTS)


def play(rng, num_steps):
    """A stream (T, envs x agents) of episodes whose agents end, or are cut by a time limit, at steps of their own."""
    shape = (num_steps, ENVS * AGENTS)
    stream = {
        "values": rng.integers(-16, 17, size=shape) / 8,
        "rewards": rng.integers(-8, 9, size=shape) / 8,
        "dones": np.zeros(shape, bool),
        "truncated": np.zeros(shape, bool),
        "levels": np.zeros(shape, int),
        "valid": np.zeros(shape, bool),
        "final_values": rng.integers(-16, 17, size=shape) / 8,
        "logits": rng.normal(size=(*shape, 3)),
        "episode": np.zeros(shape, int),
    }
    for env in range(ENVS):
        t = 0
        for episode in range(num_steps):
            lengths = rng.integers(1, 14, size=AGENTS)
            begin, level = t, int(rng.integers(NUM_LEVELS))
            for agent, length in enumerate(lengths.tolist()):
                n, rows = env * AGENTS + agent, slice(begin, begin + length)
                stream["levels"][rows, n] = level
                stream["valid"][rows, n] = True
                stream["episode"][rows, n] = episode
                if begin + length <= num_steps:
                    stream["dones"][begin + length - 1, n] = True
                    stream["truncated"][begin + length - 1, n] = rng.random() < 0.5
            t += int(lengths.max())
            if t >= num_steps:
                break
    return stream


def cut(stream, start, stop):
    after = np.minimum(stop, len(stream["values"]) - 1)
    block = {name: array[start:stop] for name, array in stream.items() if name != "episode"}
    return {**block, "next_values": stream["values"][after]}


def found(stream, block, start, strategy, config):
    """[(last row, env, level, step scores, finished)] of one block, by env and episode."""
    episodes = {}
    arrays = {**block, "logits": block["logits"].tolist()}
    for level, n, rows, finished in model.episodes(block["dones"], block["levels"], block["valid"]):
        scores = model.step_scores(strategy, rows, n, finished, arrays, config.gamma, config.gae_lambda)
        key = (n // AGENTS, int(stream["episode"][start + rows[0], n]))
        episodes.setdefault(key, []).append((start + rows[-1], int(level), list(scores), finished))
    return episodes


def applied(episodes, config, table):
    """Applies one block's episodes in the order in which they end: by group where that is the same step."""
    ended = [
        (
            max(part[0] for part in parts),
            GROUPS[env * AGENTS],
            parts[0][1],
            [score for part in parts for score in part[2]],
        )
        for (env, _), parts in episodes.items()
    ]
    for _, _, level, scores in sorted(ended, key=lambda episode: episode[:2]):
        mixed = (1 - config.max_score_coef) * np.mean(scores) + config.max_score_coef * max(scores)
        table[level] = mixed if level not in table else (1 - config.alpha) * table[level] + config.alpha * mixed


def scored(curriculum):
    ids, scores, _, seen = curriculum.scores()
    return dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))


@pytest.mark.parametrize("max_score_coef", [0.0, 0.25])
@pytest.mark.parametrize("strategy", ["value_l1", "gae", "one_step_td_error", "policy_entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_a_part_is_scored_as_the_mean_over_the_steps_of_all_agents(seed, strategy, max_score_coef):
    rng = np.random.default_rng(seed)
    config = Config(levels=range(NUM_LEVELS), strategy=strategy, alpha=0.3, gamma=0.9, max_score_coef=max_score_coef)
    curriculum, table, num_parts, num_scored = Curriculum(config), {}, 0, 0
    stream = play(rng, 200)
    for start in range(0, 200, 20):
        block = cut(stream, start, start + 20)
        episodes = found(stream, block, start, strategy, config)
        applied(episodes, config, table)
        num_parts += len(episodes)
        num_scored += curriculum.update(**block, groups=GROUPS)
        assert scored(curriculum) == pytest.approx(table, rel=1e-9)
    assert num_scored == num_parts > 60
    assert len(table) == NUM_LEVELS


@pytest.mark.parametrize("cuts", [[0, 200], [0, 1, 4, 30, 31, 90, 200], list(range(0, 201, 5))], ids=len)
@pytest.mark.parametrize("strategy", ["value_l1", "policy_entropy"])
def test_a_stitched_episode_is_the_mean_over_all_its_steps_however_it_was_cut(cuts, strategy):
    config = Config(
        levels=range(NUM_LEVELS), strategy=strategy, alpha=0.3, gamma=0.9, partial="stitch", max_score_coef=0.25
    )
    stream = play(np.random.default_rng(7), 200)
    whole = found(stream, cut(stream, 0, 200), 0, strategy, config)
    ended = {key: parts for key, parts in whole.items() if all(part[3] for part in parts)}
    table = {}
    # A later block applies later, so the order is the same only where each block is applied in the order of ends.
    applied(ended, config, table)
    curriculum, num_scored = Curriculum(config), 0
    order = np.random.default_rng(1)
    for start, stop in itertools.pairwise(cuts):
        columns = order.permutation(ENVS * AGENTS)  # whichever order the columns come in
        block = {
            name: array[..., columns] if array.ndim < 3 else array[:, columns]
            for name, array in cut(stream, start, stop).items()
        }
        num_scored += curriculum.update(**block, groups=GROUPS[columns], columns=columns)
        curriculum = Curriculum.from_state(curriculum.state())
    assert scored(curriculum) == pytest.approx(table, rel=1e-9)
    assert num_scored == curriculum.stats()["episodes"] == len(ended) > 30


def column(rewards, dones, level=0, **fields):
    rewards = np.asarray(rewards, float)
    return {
        "values": np.zeros(rewards.shape),
        "rewards": rewards,
        "dones": np.asarray(dones, bool),
        "levels": np.broadcast_to(level, rewards.shape),
        "next_values": np.zeros(rewards.shape[1]),
        **fields,
    }


def test_without_pooling_the_last_agent_would_win_and_with_it_all_count():
    config = Config(levels=range(2), strategy="one_step_td_error")
    apart, together = Curriculum(config), Curriculum(config)
    block = column([[1.0, 2.0], [3.0, 9.0]], [[0, 1], [1, 0]], valid=[[True, True], [True, False]])
    assert apart.update(**block) == 2
    assert together.update(**block, groups=[5, 5]) == 1
    assert scored(apart) == {0: 2.0}
    assert scored(together) == {0: 2.0}  # (1 + 3 + 2) / 3
    assert together.stats()["episodes"] == 1
    block["rewards"] = block["rewards"] * [1.0, 4.0]
    assert together.update(**block, groups=[5, 5]) == 1
    assert scored(together) == {0: 4.0}


@pytest.mark.parametrize("strategy", ["value_l1", "maxmc", "learnability", "tscl", "min_margin"])
@pytest.mark.parametrize("partial", ["commit", "stitch"])
def test_groups_of_one_column_change_nothing(strategy, partial):
    stream = play(np.random.default_rng(2), 120)
    config = Config(levels=range(NUM_LEVELS), strategy=strategy, alpha=0.5, partial=partial)
    without, alone = Curriculum(config), Curriculum(config)
    for start in range(0, 120, 15):
        block = cut(stream, start, start + 15)
        assert without.update(**block) == alone.update(**block, groups=np.arange(ENVS * AGENTS))
    assert scored(alone) == pytest.approx(scored(without), rel=1e-12)
    assert alone.stats()["episodes"] == without.stats()["episodes"] > 40


def test_every_agents_return_is_one_of_the_window():
    curriculum = Curriculum(Config(levels=range(2), strategy="learnability"))
    assert curriculum.update(**column([[1.0, 0.0, 1.0, 1.0]], [[1, 1, 1, 1]]), groups=[0, 0, 0, 0]) == 4
    assert scored(curriculum) == {0: 3 / 16}


def test_steps_pushed_one_by_one_score_as_the_block():
    stream = play(np.random.default_rng(4), 96)
    config = Config(levels=range(NUM_LEVELS), num_steps=16, alpha=0.5)
    by_block, by_step = Curriculum(config), Curriculum(config)
    for start in range(0, 96, 16):
        block = cut(stream, start, start + 16)
        by_block.update(**block, groups=GROUPS)
        for t in range(start, start + 16):
            step = {name: array[t - start] for name, array in block.items() if name != "next_values"}
            step["next_values"] = block["next_values"]
            by_step.update_step(**step, groups=GROUPS)
    assert scored(by_step) == scored(by_block)


def test_a_group_that_is_not_pushed_waits():
    curriculum = Curriculum(Config(levels=range(3), strategy="one_step_td_error", partial="stitch"))
    ones = {"groups": [0, 0], "columns": [0, 1]}
    curriculum.update(**column([[1.0, 2.0]], [[1, 0]]), **ones)
    curriculum.update(**column([[9.0, 9.0]], [[1, 1]], level=1), groups=[1, 1], columns=[2, 3])
    assert curriculum.update(**column([[0.0, 6.0]], [[0, 1]], valid=[[False, True]]), **ones) == 1
    assert scored(curriculum) == {0: 3.0, 1: 9.0}


def test_an_episode_abandoned_by_all_is_dropped_with_what_had_ended():
    curriculum = Curriculum(Config(levels=range(3), strategy="one_step_td_error", partial="stitch"))
    curriculum.update(**column([[1.0, 2.0]], [[1, 0]]), groups=[0, 0])
    assert curriculum.update(**column([[4.0, 8.0]], [[1, 1]], level=1), groups=[0, 0]) == 1
    assert scored(curriculum) == {1: 6.0}
    assert curriculum.update(**column([[4.0, 8.0]], [[1, 1]]), groups=[0, 0]) == 1
    assert scored(curriculum) == {0: 6.0, 1: 6.0}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0], r"^groups: expected shape \(2,\), by the shape of levels, got shape \(1,\)$"),
        ([0.5, 1.0], r"^groups: expected an array of integers, got dtype float64$"),
        (
            [3, 3],
            r"^levels: expected one level for the agents of a group at a time .*, got levels 0 and 1 in group 3$",
        ),
    ],
)
@pytest.mark.parametrize("partial", ["commit", "stitch"])
def test_bad_groups_are_refused_whole(groups, message, partial):
    curriculum = Curriculum(Config(levels=range(3), strategy="maxmc", partial=partial))
    curriculum.update(**column([[1.0, 2.0]], [[1, 0]]), groups=[0, 0])
    before = pickle.dumps(curriculum.state())
    with pytest.raises(InvalidInput, match=message):
        curriculum.update(**column([[1.0, 2.0]], [[1, 1]], level=[[0, 1]]), groups=groups)
    assert pickle.dumps(curriculum.state()) == before


def test_steps_of_other_groups_are_refused():
    curriculum = Curriculum(Config(levels=range(3)))
    step = {
        name: np.asarray(array)[0] for name, array in column([[1.0, 2.0]], [[1, 0]]).items() if name != "next_values"
    }
    curriculum.update_step(**step, next_values=[0.0, 0.0], groups=[1, 1])
    for groups, got in (([1, 2], r"\[1, 2\]"), (None, "None")):
        with pytest.raises(
            InvalidInput, match=rf"^groups: expected the groups of the block's first step, \[1, 1\], got {got}$"
        ):
            curriculum.update_step(**step, next_values=[0.0, 0.0], groups=groups)


def test_groups_go_over_the_wire():
    block = column([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [1, 1]])
    config = Config(levels=range(3), strategy="one_step_td_error", num_steps=2)
    with launch(config) as server, Trainer(server.address) as trainer:
        assert trainer.push(**block, groups=[1, 1]) == 1
        assert trainer.scores()[1].tolist() == [2.5, 0.0, 0.0]
        for t in range(2):
            step = {name: array[t] for name, array in block.items() if name != "next_values"}
            scored_now = trainer.push_step(
                **{**step, "rewards": step["rewards"] + 4}, next_values=[0.0, 0.0], groups=[1, 1]
            )
        assert scored_now == 1
        assert trainer.scores()[1].tolist() == [6.5, 0.0, 0.0]
