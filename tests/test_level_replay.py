"""wrappers.level_replay on rollouts of level-replay's shapes, from real envs that tell their level in observations."""

from __future__ import annotations

import gc
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from level_env import LevelEnv, episode_of, reward_of, value_of

from plr_client import ConfigError, InvalidInput, LevelOutsideSpace, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers.level_replay import LevelSampler

SEEDS = list(range(100, 130))
STEPS, ENVS = 32, 5
GAMMA, GAE_LAMBDA = 0.99, 0.9
SPACES = Box(-np.inf, np.inf, (2,)), Discrete(3)
PAPER = {
    "replay_schedule": "proportionate",
    "rho": 0.0,
    "score_transform": "rank",
    "temperature": 0.1,
    "staleness_coef": 0.1,
}


def log_dist_of(level, step):
    """Returns the log-probabilities (3,) that the tests' policy has there."""
    weights = np.array([1.0, 2.0 + level % 7, 1.0 + step])
    return np.log(weights / weights.sum())


class Rollouts:
    """The fields that the sampler reads, filled as level-replay's train loop fills them.

    Args:
        zeros: makes an array of a shape; numpy's, or torch's.
    """

    def __init__(self, zeros=np.zeros):
        self.level_seeds = zeros((STEPS, ENVS, 1))
        self.rewards = zeros((STEPS, ENVS, 1))
        self.action_log_dist = zeros((STEPS, ENVS, 3))
        self.masks = zeros((STEPS + 1, ENVS, 1)) + 1
        self.value_preds = zeros((STEPS + 1, ENVS, 1))
        self.returns = zeros((STEPS + 1, ENVS, 1))

    def compute_returns(self):
        advantage = 0
        for t in reversed(range(STEPS)):
            delta = self.rewards[t] + GAMMA * self.value_preds[t + 1] * self.masks[t + 1] - self.value_preds[t]
            advantage = delta + GAMMA * GAE_LAMBDA * self.masks[t + 1] * advantage
            self.returns[t] = advantage + self.value_preds[t]

    def after_update(self):
        self.masks[0] = self.masks[-1]


class Training:
    """Five envs, played with the seeds that a sampler gives; knows from their observations what was played.

    Args:
        sampler: the sampler.
        rollouts: where the rollouts go.
        tells_next: the row that ends an episode names the seed of the next one, as Procgen's info does; where it is the
            episode's only row, nothing tells what was played.
    """

    def __init__(self, sampler, rollouts, *, tells_next=False):
        self.sampler, self.rollouts, self.tells_next = sampler, rollouts, tells_next
        self.envs = [LevelEnv() for _ in range(ENVS)]
        self.observations = [env.reset(seed=sampler.sample("sequential"))[0] for env in self.envs]
        self.first_levels = [int(observation[0]) for observation in self.observations]
        self.true_levels = np.zeros((STEPS, ENVS), int)

    def play_block(self):
        rollouts = self.rollouts
        for t in range(STEPS):
            for n, env in enumerate(self.envs):
                level, step = map(int, self.observations[n])
                observation, reward, terminated, truncated, _ = env.step(0)
                if done := terminated or truncated:
                    observation, _ = env.reset(seed=self.sampler.sample())
                self.true_levels[t, n] = level
                rollouts.level_seeds[t, n, 0] = int(observation[0]) if self.tells_next else level
                rollouts.rewards[t, n, 0] = reward
                rollouts.value_preds[t, n, 0] = value_of(level, step)
                for action, log_probability in enumerate(log_dist_of(level, step)):
                    rollouts.action_log_dist[t, n, action] = log_probability
                rollouts.masks[t + 1, n, 0] = not done
                self.observations[n] = observation
        for n in range(ENVS):
            rollouts.value_preds[-1, n, 0] = value_of(*map(int, self.observations[n]))
        rollouts.compute_returns()

    def episodes(self):
        """Yields (env, level, rows) of each episode in the block, or part of one."""
        for n in range(ENVS):
            start = 0
            for t in range(STEPS):
                if float(self.rollouts.masks[t + 1, n, 0]) == 0 or t == STEPS - 1:
                    levels = set(self.true_levels[start : t + 1, n].tolist())
                    assert len(levels) == 1
                    yield n, levels.pop(), range(start, t + 1)
                    start = t + 1


def value_score(rollouts, n, rows, of):
    return np.mean([of(float(rollouts.returns[t, n, 0]) - float(rollouts.value_preds[t, n, 0])) for t in rows])


def td_score(rollouts, n, rows, gamma):
    errors = []
    for t in rows:
        after = float(rollouts.value_preds[t + 1, n, 0]) * float(rollouts.masks[t + 1, n, 0])
        errors.append(abs(float(rollouts.rewards[t, n, 0]) + gamma * after - float(rollouts.value_preds[t, n, 0])))
    return np.mean(errors)


def margin_score(rollouts, n, rows):
    best = [np.sort(np.exp(np.asarray(rollouts.action_log_dist[t, n], float)))[::-1] for t in rows]
    return np.mean([1 - (probabilities[0] - probabilities[1]) for probabilities in best])


def entropy_score(rollouts, n, rows):
    logs = [np.asarray(rollouts.action_log_dist[t, n], float) for t in rows]
    return np.mean([-(np.exp(log) * log).sum() / np.log(3) for log in logs])


def confidence_score(rollouts, n, rows):
    return np.mean([1 - np.exp(np.asarray(rollouts.action_log_dist[t, n], float)).max() for t in rows])


SCORES = {
    "value_l1": lambda rollouts, n, rows: value_score(rollouts, n, rows, abs),
    "gae": lambda rollouts, n, rows: value_score(rollouts, n, rows, float),
    "one_step_td_error": lambda rollouts, n, rows: td_score(rollouts, n, rows, 0.7),
    "min_margin": margin_score,
    "policy_entropy": entropy_score,
    "least_confidence": confidence_score,
}


def train_and_check(strategy, rollouts, *, tells_next=False, blocks=12, **arguments):
    """Runs level-replay's train loop, and checks every score at the server against what the trainer really had."""
    seeds = [seed for seed in SEEDS if episode_of(seed)[0] > tells_next]
    sampler = LevelSampler(seeds, *SPACES, num_actors=ENVS, strategy=strategy, gamma=0.7, **PAPER | arguments)
    training = Training(sampler, rollouts, tells_next=tells_next)
    assert training.first_levels == seeds[:ENVS]
    latest = {}
    for _ in range(blocks):
        training.play_block()
        sampler.update_with_rollouts(rollouts)
        of_block = defaultdict(list)
        for n, level, rows in training.episodes():
            of_block[level].append(SCORES[strategy](rollouts, n, rows))
        latest |= of_block
        rollouts.after_update()
        sampler.after_update()
    seen = sampler.unseen_seed_weights == 0
    assert set(sampler.seeds[seen].tolist()) == set(latest)
    assert len(latest) >= 15
    for level, score in zip(sampler.seeds[seen].tolist(), sampler.seed_scores[seen].tolist(), strict=True):
        assert any(score == pytest.approx(possible, rel=1e-4, abs=1e-6) for possible in latest[level])
    stats = sampler._trainer.stats()
    assert stats["steps"] == blocks * STEPS * ENVS
    assert stats["episodes"] > 200
    assert sampler.sample_weights()[seen].min() > 0
    assert sampler.sample_weights().sum() == pytest.approx(1)
    sampler.close()


@pytest.mark.parametrize("tells_next", [False, True])
@pytest.mark.parametrize("strategy", SCORES)
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
    sampler = LevelSampler(SEEDS, *SPACES, strategy="value_l1", rho=0.5, nu=0.2)
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
    sampler = LevelSampler(SEEDS, *SPACES, strategy="value_l1", **PAPER | {"rho": 1.0})
    sampler._trainer.push_scores(SEEDS[:29], np.arange(29.0))
    assert {sampler.sample() for _ in range(100)} == {129}
    sampler._trainer.push_scores([129], [0.5])
    assert [sampler.sample() for _ in range(200)].count(128) > 150
    sampler.close()


def test_the_baselines_learn_nothing():
    sequential, random = LevelSampler(SEEDS, *SPACES, strategy="sequential"), LevelSampler(SEEDS, *SPACES)
    assert [sequential.sample() for _ in range(31)] == [*SEEDS, 100]
    assert sequential.sample("sequential") == 101
    assert len({random.sample() for _ in range(300)}) == 30
    for sampler in (sequential, random):
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
        ({"nu": 2.0}, ConfigError, "replay_prob"),
    ],
)
def test_what_is_not_here_says_what_to_do_instead(arguments, error, match):
    with pytest.raises(error, match=match):
        LevelSampler(SEEDS, *SPACES, **{"strategy": "value_l1"} | arguments)


def test_the_server_ends_with_the_sampler():
    sampler = LevelSampler(SEEDS, *SPACES)
    address = sampler._client.address
    del sampler
    gc.collect()
    with pytest.raises(ServerUnreachable):
        Trainer(address, timeout_s=0.2).stats()


def test_rewards_tell_their_level():
    """What the tests above rest on."""
    assert reward_of(105, 2) // 1 == 106
