"""wrappers.level_replay on rollouts of level-replay's shapes, from real envs that tell their level in observations."""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from level_replay_loop import (
    ENVS,
    GAE_LAMBDA,
    GAMMA,
    PAPER,
    SEEDS,
    SPACES,
    STEPS,
    Rollouts,
    Training,
    train_and_check,
    value_score,
)

from plr_client import ConfigError, InvalidInput, LevelOutsideSpace, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers.level_replay import POLICY_STRATEGIES, VALUE_STRATEGIES, LevelSampler


@pytest.mark.parametrize("tells_next", [False, True])
@pytest.mark.parametrize("strategy", [*VALUE_STRATEGIES, *POLICY_STRATEGIES])
def test_its_train_loop_scores_what_was_played(strategy, tells_next):
    train_and_check(strategy, Rollouts(), tells_next=tells_next)


def test_new_scores_are_mixed_with_old_ones_by_alpha():
    with_old = {}
    sampler = LevelSampler(SEEDS, *SPACES, num_actors=ENVS, strategy="value_l1", alpha=0.25, **PAPER)
    rollouts = Rollouts()
    rollouts.level_seeds += 110
    for advantage in (4.0, 8.0):
        rollouts.returns[:] = advantage
        for n in range(1, ENVS):
            rollouts.level_seeds[:, n] = 110 + n
        sampler.update_with_rollouts(rollouts)
        with_old[advantage] = sampler.seed_scores[10]
    assert with_old == {4.0: 4.0, 8.0: 5.0}
    sampler.close()


def draws(strategy, seed=None):
    sampler = LevelSampler(range(1000), *SPACES, strategy=strategy, seed=seed)
    drawn = [sampler.sample() for _ in range(20)]
    sampler.close()
    return drawn


@pytest.mark.parametrize("strategy", ["value_l1", "random"])
def test_ten_seeds_are_ten_streams_of_levels(strategy):
    by_seed = [draws(strategy, seed) for seed in range(10)]
    assert len(set(map(tuple, by_seed))) == 10
    assert draws(strategy, 3) == by_seed[3]


def test_without_a_seed_numpys_global_generator_decides_as_its_train_script_seeds_it():
    drawn = []
    for seed in (5, 5, 6):
        np.random.seed(seed)  # noqa: NPY002  it seeds this one
        drawn.append(draws("value_l1"))
    assert drawn[0] == drawn[1] != drawn[2]


def test_scores_of_ones_own():
    sampler = LevelSampler(SEEDS[::-1], *SPACES, strategy="value_l1", alpha=0.25, **PAPER)
    assert sampler.seed2index == {seed: index for index, seed in enumerate(SEEDS[::-1])}
    assert sampler.update_seed_score(0, sampler.seed2index[107], 4.0, 12) is None
    sampler.update_seed_score(2, sampler.seed2index[107], 8.0, 1)  # the first one was taken whole
    assert sampler.seed_scores.tolist() == [5.0 if seed == 107 else 0.0 for seed in SEEDS[::-1]]
    assert sampler.unseen_seed_weights.tolist() == [float(seed != 107) for seed in SEEDS[::-1]]
    assert sampler.sample_weights().argmax() == sampler.seed2index[107]
    for wrong, match in (
        ((0, 30, 1.0, 1), "seed_idx: expected 0 to 29, got 30"),
        ((0, -1, 1.0, 1), "seed_idx"),
        ((0, 0.5, 1.0, 1), "seed_idx"),
        ((0, 0, float("inf"), 1), "score: expected finite"),
        ((0, 0, 1.0, 0), "num_steps: expected 1 or more"),
    ):
        with pytest.raises(InvalidInput, match=match):
            sampler.update_seed_score(*wrong)
    assert sampler.unseen_seed_weights.sum() == 29
    sampler.close()


def test_what_a_daemon_of_more_levels_tells_is_in_the_order_of_the_seeds(ipc):
    with launch(Config(levels=range(50)), ipc):
        sampler = LevelSampler([40, 7], strategy="value_l1", address=ipc)
        sampler.update_seed_score(0, sampler.seed2index[7], 3.0, 1)
        assert sampler.seed_scores.tolist() == [0.0, 3.0]
        assert sampler.unseen_seed_weights.tolist() == [1.0, 0.0]
        assert sampler.sample_weights().tolist() == [0.0, 1.0]
        assert sampler.seed_staleness.shape == (2,)
        sampler.close()
        with pytest.raises(InvalidInput, match="seed: expected None beside an address"):
            LevelSampler([40, 7], strategy="value_l1", address=ipc, seed=1)


def test_an_evaluation_takes_levels_from_training_unless_it_has_a_sampler_of_its_own():
    """As docs/level_replay.md says: what is drawn for evaluation counts as drawn."""
    training = LevelSampler(SEEDS, *SPACES, strategy="value_l1")
    played = [training.sample() for _ in range(3)]  # an eval env with the training's sampler
    assert training._trainer.stats()["draws"] == 3
    evaluation = LevelSampler(SEEDS, strategy="sequential")
    assert [evaluation.sample() for _ in range(30)] == SEEDS
    assert training._trainer.stats()["draws"] == len(played)
    evaluation.close()
    training.close()


def test_a_daemon_computes_the_advantages_itself(ipc):
    config = Config(levels=SEEDS, gamma=GAMMA, gae_lambda=GAE_LAMBDA)
    with launch(config, ipc), Trainer(ipc) as trainer:
        sampler = LevelSampler(SEEDS[:20], *SPACES, num_actors=ENVS, strategy="value_l1", address=ipc)
        training = Training(sampler, Rollouts())
        training.play_block()
        sampler.update_with_rollouts(training.rollouts)
        possible = defaultdict(list)
        for n, level, rows in training.episodes():
            possible[level].append(value_score(training.rollouts, n, rows, abs))
        levels, scores, _, seen = trainer.scores()
        assert set(levels[seen].tolist()) == set(possible)
        for level, score in zip(levels[seen].tolist(), scores[seen].tolist(), strict=True):
            assert any(score == pytest.approx(one) for one in possible[level])
        sampler.close()
        assert trainer.stats()["pushes"] == 1  # it runs on
        with pytest.raises(LevelOutsideSpace, match="1 that it does not have"):
            LevelSampler([100, 99], strategy="value_l1", address=ipc)
        with pytest.raises(InvalidInput, match="value_l1, the daemon's"):
            LevelSampler(SEEDS, strategy="gae", address=ipc)


def test_rho_and_nu():
    """Below rho only new seeds; from there on a new one with probability nu; all seen, only replays."""
    sampler = LevelSampler(SEEDS, *SPACES, strategy="value_l1", rho=0.5, nu=0.2, seed=0)
    trainer = sampler._trainer
    trainer.push_scores(SEEDS[:14], np.ones(14))
    assert set(SEEDS[:14]).isdisjoint(sampler.sample() for _ in range(100))
    trainer.push_scores(SEEDS[14:15], [1.0])
    drawn = [sampler.sample() for _ in range(1000)]
    assert sum(seed in SEEDS[15:] for seed in drawn) == pytest.approx(200, abs=60)  # 4.7 standard deviations
    trainer.push_scores(SEEDS[15:], np.ones(15))
    assert trainer.stats()["replay_share"] < 0.8
    replays = trainer.stats()["replays"]
    for _ in range(100):
        sampler.sample()
    assert trainer.stats()["replays"] == replays + 100
    sampler.close()


def test_the_papers_schedule_replays_once_all_is_seen():
    sampler = LevelSampler(SEEDS, *SPACES, strategy="value_l1", **PAPER | {"rho": 1.0}, seed=0)
    sampler._trainer.push_scores(SEEDS[:29], np.arange(29.0))
    assert {sampler.sample() for _ in range(100)} == {129}
    sampler._trainer.push_scores([129], [0.5])
    assert [sampler.sample() for _ in range(200)].count(128) > 150
    sampler.close()


def test_the_baselines_learn_nothing():
    sequential, random = LevelSampler(SEEDS, *SPACES, strategy="sequential"), LevelSampler(SEEDS, *SPACES, seed=0)
    assert [sequential.sample() for _ in range(31)] == [*SEEDS, 100]
    assert sequential.sample("sequential") == 101
    assert len({random.sample() for _ in range(300)}) == 30
    for sampler in (sequential, random):
        assert sampler.sample_weights().tolist() == [0.0] * 30
        sampler.update_with_rollouts(Rollouts())
        assert sampler._trainer.stats()["pushes"] == 0
        assert not sampler.requires_value_buffers
        sampler.close()


def test_what_its_train_loop_reads():
    sampler = LevelSampler(SEEDS[::-1], *SPACES, num_actors=3, strategy="value_l1")
    assert sampler.seed_range() == (100, 129)
    assert sampler.requires_value_buffers
    assert sampler.seeds.tolist() == SEEDS[::-1]
    assert [sampler.sample("sequential") for _ in range(31)] == [*SEEDS[::-1], 129]
    assert sampler.sample_weights().tolist() == [0.0] * 30
    assert (sampler.unseen_seed_weights == 1).all()
    assert isinstance(sampler.sample("value_l1"), int)
    assert sampler.seed_staleness.shape == (30,)
    with pytest.raises(InvalidInput, match="sequential or value_l1"):
        sampler.sample("random")
    sampler.close()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"masks": None}, InvalidInput, "with masks"),
        ({"returns": None}, InvalidInput, "with returns"),
        ({"masks": np.ones((STEPS, ENVS, 1))}, InvalidInput, r"masks: expected shape \(33, 5\)"),
        ({"returns": np.full((STEPS + 1, ENVS, 1), np.nan)}, InvalidInput, "finite"),
        ({"value_preds": np.zeros((STEPS + 1, ENVS, 2))}, InvalidInput, "value_preds"),
        ({"level_seeds": np.full((STEPS, ENVS, 1), 99)}, LevelOutsideSpace, "99"),
    ],
)
def test_a_bad_rollout_is_refused_whole(change, error, match):
    sampler = LevelSampler(SEEDS, *SPACES, num_actors=ENVS, strategy="value_l1")
    fields = vars(Rollouts()) | {"level_seeds": np.full((STEPS, ENVS, 1), 100)}
    bad = {name: value for name, value in (fields | change).items() if value is not None}
    with pytest.raises(error, match=match):
        sampler.update_with_rollouts(SimpleNamespace(**bad))
    assert (sampler.unseen_seed_weights == 1).all()
    sampler.update_with_rollouts(SimpleNamespace(**fields))
    assert sampler.unseen_seed_weights[0] == 0
    sampler.close()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"strategy": "off"}, InvalidInput, "strategy: expected one of random, sequential"),
        ({"staleness_transform": "rank"}, InvalidInput, "power"),
        ({"num_actors": 0}, InvalidInput, "1 or more"),
        ({"replay_schedule": "proportionate"}, InvalidInput, "rho: expected 0 or 1 under the schedule proportionate"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"nu": 2.0}, InvalidInput, "nu: expected a number from 0 to 1, got 2.0"),
        ({"rho": -1}, InvalidInput, "rho: expected a number from 0 to 1, got -1"),
        ({"score_transform": "cubic"}, ConfigError, "score_transform: expected one of"),
        ({"seed": -1}, ConfigError, "seed: expected an integer, 0 or more, got -1"),
        ({"seed": 1.5}, ConfigError, "seed: expected an integer"),
        ({"curriculum": "eval"}, InvalidInput, "curriculum: expected an address beside it"),
        ({"seeds": [1.7, 2.2]}, InvalidInput, "seeds: expected a list of ints"),
        ({"seeds": 200}, InvalidInput, "seeds: expected a list of ints, got 200"),
        ({"seeds": [[1], [2, 3]]}, InvalidInput, "seeds: expected a list of ints"),
        ({"seeds": [1, 1]}, ConfigError, "seeds: .* an id twice"),
        ({"seeds": [2**63]}, ConfigError, "seeds: .* an id beyond int64"),
        ({"seeds": []}, ConfigError, "seeds: .*, got none"),
    ],
)
def test_what_is_not_here_says_what_to_do_instead(arguments, error, match):
    with pytest.raises(error, match=match):
        LevelSampler(**{"seeds": SEEDS, "strategy": "value_l1"} | arguments)


def test_what_the_page_shows_runs():
    page = (Path(__file__).parents[2] / "docs/level_replay.md").read_text()
    code = re.search(r"```python\n(import types.*?)```", page, re.DOTALL).group(1)
    scope = {}
    exec(compile(code.replace("sampler.close()", ""), "docs/level_replay.md", "exec"), scope)  # noqa: S102  our own
    assert scope["sampler"].unseen_seed_weights.sum() == 196
    scope["sampler"].close()


def test_the_server_ends_with_the_sampler():
    sampler = LevelSampler(SEEDS, *SPACES)
    address = sampler._client.address
    del sampler
    gc.collect()
    with pytest.raises(ServerUnreachable):
        Trainer(address, timeout_s=0.2).stats()
