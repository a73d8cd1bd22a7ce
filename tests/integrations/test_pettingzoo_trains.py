"""wrappers/pettingzoo.py on real PettingZoo envs: which level every agent's step is credited to, and what it scores."""

from __future__ import annotations

import importlib
import runpy
import sys
import tracemalloc
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import eventually
from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper, ParallelEnv

from plr_client import InvalidInput, LevelOutsideSpace, MissingDependency, MissingField, ServerUnreachable, Trainer
from plr_server import Config, launch
from plr_server.serving.keys import make_key
from wrappers import pettingzoo as module
from wrappers.pettingzoo import LevelReplayParallel

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # as an error inside Box2D's import it would abort Python
    from pettingzoo.sisl import multiwalker_v9
    from pettingzoo.test import parallel_seed_test

GAMMA, GAE_LAMBDA, ALPHA, NUM_LEVELS = 0.9, 0.8, 0.5, 6


class TellsLevel(BaseParallelWrapper):
    """Puts the level, the seed of the reset, at the end of every agent's observation."""

    def reset(self, seed=None, options=None):
        self.seed, self.options = seed, options
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._told(observations), infos

    def step(self, actions):
        observations, *rest = self.env.step(actions)
        return self._told(observations), *rest

    def _told(self, observations):
        return {agent: np.append(observation, self.seed) for agent, observation in observations.items()}


def spread():
    return TellsLevel(simple_spread_v3.parallel_env(max_cycles=9))  # all are cut by the time limit


def falling_walkers():
    """Each walker that falls leaves while the others go on; a time-out is a termination here."""
    return TellsLevel(
        multiwalker_v9.parallel_env(terminate_on_fall=False, remove_on_fall=True, max_cycles=120, position_noise=0.0)
    )


def walkers():
    return TellsLevel(multiwalker_v9.parallel_env(max_cycles=70))


def config(**fields):
    known = {"levels": range(NUM_LEVELS), "alpha": ALPHA, "gamma": GAMMA, "gae_lambda": GAE_LAMBDA, "temperature": 1.0}
    return Config(**{**known, **fields})


class Learner:
    """A linear critic and a random policy: what is pushed comes from values that are learnt, and change."""

    def __init__(self, env, seed):
        self.env, self.rng = env, np.random.default_rng(seed)
        size = env.observation_space(env.possible_agents[0]).shape[0]
        self.weights = self.rng.normal(size=size) / size

    def value(self, observation):
        return float(np.clip(np.tanh(observation[:-1]) @ self.weights, -50, 50))

    def play(self, num_steps, observations):
        """Plays on; returns what every episode was, by the observations alone, and the observations at the end.

        An episode: its level, and for each agent its steps (reward, value), whether it ended, and V at its end.
        """
        episodes = [self.begun(observations)] if self.env.agents else []
        for _ in range(num_steps):
            if not self.env.agents:
                observations, infos = self.env.reset(seed=3)
                assert {infos[agent]["plr_level"] for agent in infos} == {self.env.level}
                episodes.append(self.begun(observations))
            episode = episodes[-1]
            actions = {agent: self.action(agent) for agent in self.env.agents}
            for agent in actions:
                assert observations[agent][-1] == episode["level"]
                episode["steps"][agent].append([None, self.value(observations[agent])])
            observations, rewards, terminations, truncations, _ = self.env.step(actions)
            for agent in actions:
                episode["steps"][agent][-1][0] = float(rewards[agent])
                self.learn(observations[agent], rewards[agent])
                if terminations[agent] or truncations[agent]:
                    cut = truncations[agent] and not terminations[agent]
                    episode["after"][agent] = self.value(observations[agent]) if cut else 0.0
                    episode["cut"][agent] = cut
        for agent in self.env.agents:
            episodes[-1]["after"][agent] = self.value(observations[agent])
        return episodes, observations

    def begun(self, observations):
        (level,) = {int(observation[-1]) for observation in observations.values()}
        return {"level": level, "steps": defaultdict(list), "after": {}, "cut": {}}

    def action(self, agent):
        space = self.env.action_space(agent)
        return int(self.rng.integers(space.n)) if hasattr(space, "n") else self.rng.uniform(-1, 1, 4).astype("f4")

    def learn(self, observation, reward):
        gap = np.clip(float(reward) - self.value(observation), -1, 1)
        self.weights += 0.01 * gap * np.tanh(observation[:-1])


def by_agent(episodes, agents):
    """What the trainer hands over: values in the order of the steps, and V where a time limit cut the episode."""
    values = {agent: [value for e in episodes for _, value in e["steps"].get(agent, ())] for agent in agents}
    finals = {agent: [e["after"][agent] for e in episodes if e["cut"].get(agent)] for agent in agents}
    return values, finals


def score(episode):
    """The rule: the mean of |A| over all steps of all agents, each agent's A from its own rewards and values."""
    magnitudes = []
    for agent, steps in episode["steps"].items():
        carried, following = 0.0, episode["after"][agent]
        for reward, value in reversed(steps):
            carried = reward + GAMMA * following - value + GAMMA * GAE_LAMBDA * carried
            magnitudes.append(abs(carried))
            following = value
    return np.mean(magnitudes)


def applied(table, episodes):
    for episode in episodes:
        new = score(episode)
        table[episode["level"]] = (1 - ALPHA) * table.get(episode["level"], new) + ALPHA * new


def scored(trainer):
    ids, scores, _, seen = trainer.scores()
    return dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))


@pytest.mark.parametrize(
    ("make", "blocks", "block_steps"),
    [(spread, 30, 20), (falling_walkers, 12, 100), (walkers, 8, 100)],
    ids=["spread", "walkers that fall and leave", "walkers"],
)
def test_every_step_of_every_agent_is_credited_to_the_level_that_its_observation_tells(make, blocks, block_steps):
    table, counted = {}, defaultdict(int)
    with launch(config()) as server, Trainer(server.address) as trainer:
        env = LevelReplayParallel(make(), server.address)
        learner, observations = Learner(env, seed=0), env.reset()[0]
        for _ in range(blocks):
            episodes, observations = learner.play(block_steps, observations)
            values, finals = by_agent(episodes, env.possible_agents)
            played, *_, levels, _ = map(np.array, zip(*env._rows, strict=True))
            told = [
                [e["level"]] * max(len(steps) for steps in e["steps"].values())  # an episode lasts as its last agent
                for e in episodes
            ]
            assert levels.tolist() == [level for levels_of in told for level in levels_of]
            counted["rows"] += int(played.sum())
            counted["early"] += sum(len(set(map(len, e["steps"].values()))) > 1 for e in episodes)
            next_values = {agent: learner.value(observations[agent]) for agent in env.agents}
            assert env.push(values, next_values, final_values=finals) == len(episodes)
            counted["episodes"] += len(episodes)
            applied(table, episodes)
            assert scored(trainer) == pytest.approx(table, rel=1e-9)
        stats = trainer.stats()
        env.close()
    assert stats["steps"] == counted["rows"] > 1500
    assert stats["scores"] == counted["episodes"] > 15
    assert len(table) >= 5
    if make is falling_walkers:
        assert counted["early"] >= 5


def test_stitched_episodes_are_scored_whole_though_agents_ended_blocks_before():
    table, open_episode, num_early = {}, None, 0
    with launch(config(partial="stitch")) as server, Trainer(server.address) as trainer:
        env = LevelReplayParallel(falling_walkers(), server.address)
        learner, observations = Learner(env, seed=1), env.reset()[0]
        for _ in range(40):
            episodes, observations = learner.play(23, observations)
            values, finals = by_agent(episodes, env.possible_agents)
            next_values = {agent: learner.value(observations[agent]) for agent in env.agents}
            num_scored = env.push(values, next_values, final_values=finals)
            if open_episode is not None:
                num_early += episodes[0]["steps"].keys() < open_episode["steps"].keys()
                for agent, steps in episodes[0]["steps"].items():
                    open_episode["steps"][agent] += steps
                open_episode["after"] |= episodes[0]["after"]
                episodes[0] = open_episode
            open_episode = episodes.pop() if env.agents else None
            applied(table, episodes)
            assert num_scored == len(episodes)
            assert scored(trainer) == pytest.approx(table, rel=1e-9)
        env.close()
    assert num_early >= 3
    assert len(table) >= 4


def test_arrays_in_the_order_of_possible_agents_score_as_values_by_agent():
    with launch({"a": config(), "b": config()}) as server:
        scores = []
        for name in ("a", "b"):
            env = LevelReplayParallel(falling_walkers(), server.address, curriculum=name)
            episodes, _ = Learner(env, seed=2).play(150, env.reset(options={"level": 3})[0])
            env.reset()  # an episode cut here ends here
            values, _ = by_agent(episodes, env.possible_agents)
            if name == "b":
                played = np.array([row[0] for row in env._rows])
                table = np.full(played.shape, np.nan)  # not read where an agent had left
                for n, agent in enumerate(env.possible_agents):
                    table[played[:, n], n] = values[agent]
                values = table
            env.push(values, {} if name == "a" else [np.nan] * 3)
            env.close()
            with Trainer(server.address, curriculum=name) as trainer:
                scores.append((trainer.stats()["steps"], scored(trainer)))
    assert scores[0] == scores[1]
    assert scores[0][0] > 0


@pytest.mark.parametrize("by", ["agent", "array"])
def test_rewards_that_the_trainer_scaled_score_in_place_of_those_recorded(by):
    with launch(config()) as server, Trainer(server.address) as trainer:
        env = LevelReplayParallel(falling_walkers(), server.address)
        episodes, _ = Learner(env, seed=2).play(400, env.reset()[0])
        env.reset()  # an episode cut here ends here
        agents = env.possible_agents
        values, _ = by_agent(episodes, agents)
        for episode in episodes:
            episode["after"] = dict.fromkeys(agents, 0.0)
            for steps in episode["steps"].values():
                steps[:] = [(0.01 * reward, value) for reward, value in steps]
        rewards = {a: [reward for e in episodes for reward, _ in e["steps"].get(a, ())] for a in agents}
        if by == "array":
            played = np.array([row[0] for row in env._rows])
            table = np.full(played.shape, np.nan)
            for n, agent in enumerate(agents):
                table[played[:, n], n] = rewards[agent]
            rewards = table
        env.push(values, {}, rewards=rewards)
        expected = {}
        applied(expected, episodes)
        assert scored(trainer) == pytest.approx(expected)
        assert len(episodes) >= 3
        env.close()


def test_logits_are_handed_over_by_agent_too():
    with launch(config(strategy="least_confidence")) as server, Trainer(server.address) as trainer:
        env = LevelReplayParallel(spread(), server.address)
        env.reset()
        logits = np.random.default_rng(0).normal(size=(9, 3, 5))
        for _ in range(9):
            env.step(dict.fromkeys(env.agents, 1))
        assert env.push(None, None, logits={f"agent_{n}": logits[:, n] for n in range(3)}) == 1
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert scored(trainer) == pytest.approx({env.level: np.mean(1 - p.max(-1))})
        env.close()


def test_a_picked_level_is_played_unscored_and_a_seed_picks_nothing():
    with launch(config(levels=range(10, 13), strategy="sequential")) as server, Trainer(server.address) as trainer:
        inner = spread()
        env = LevelReplayParallel(inner, server.address)
        for level in (10, 11, 12, 10):
            _, infos = env.reset(seed=5)
            assert (inner.seed, env.level, env.scored, env.train) == (level, level, True, True)
            told = {"plr_level": level, "plr_is_replay": False, "plr_train": True, "plr_scored": True}
            assert infos == dict.fromkeys(env.possible_agents, told)
        options = {"level": np.int64(77), "other": 1}
        _, infos = env.reset(options=options)
        assert (inner.seed, inner.options, env.level, env.scored) == (77, {"other": 1}, 77, False)
        assert infos["agent_1"]["plr_scored"] is False
        assert options == {"level": 77, "other": 1}
        for _ in range(9):
            *_, infos = env.step(dict.fromkeys(env.agents, 0))
        assert "plr_level" not in infos["agent_0"]
        assert not env.agents
        assert env.push(None, None) == 0
        assert trainer.stats()["draws"] == 4
        with pytest.raises(InvalidInput, match=r"^options\['level'\]: expected a level's id, an int, got 'x'$"):
            env.reset(options={"level": "x"})
        env.close()
        eventually(lambda: trainer.stats()["in_flight"] == 0, "its goodbye")


def test_set_level_gets_the_payload_and_the_seed_stays_the_users():
    seen = []
    levels = Config(levels="payloads", capacity=4)
    with launch(levels) as server, Trainer(server.address) as trainer:
        inner = spread()
        env = LevelReplayParallel(inner, server.address)
        trainer.insert([{"wind": 3}])
        with pytest.raises(InvalidInput, match="set_level: expected a function that makes a payload the env's level"):
            env.reset()
        env.close()
        env = LevelReplayParallel(inner, server.address, set_level=lambda env, level: seen.append((env, level)))
        env.reset(seed=4)
        assert seen == [(inner, {"wind": 3})]
        assert inner.seed == 4
        env.close()


def test_robust_new_levels_are_not_for_learning():
    with launch(config(robust=True)) as server:
        env = LevelReplayParallel(spread(), server.address)
        _, infos = env.reset()
        assert (env.is_replay, env.train, infos["agent_2"]["plr_train"]) == (False, False, False)
        env.close()


class Deserted(ParallelEnv):
    """Agent b is gone after two steps, though nobody said that it ended; nobody ever says anything."""

    possible_agents = ("a", "b")

    def reset(self, seed=None, options=None):  # noqa: ARG002
        self.agents, self.steps = ["a", "b"], 0
        return dict.fromkeys(self.agents, seed), {}

    def step(self, actions):
        self.steps += 1
        rewards = {agent: 1.0 if agent == "a" else 10.0 for agent in actions}
        if self.steps == 2:
            self.agents = ["a"]
        no = dict.fromkeys(actions, False)
        return dict.fromkeys(self.agents, 0), rewards, no, no, {}


@pytest.mark.parametrize("partial", ["commit", "stitch"])
def test_who_has_gone_has_ended_and_a_reset_ends_the_episode_for_all(partial):
    with launch(config(strategy="one_step_td_error", partial=partial, alpha=1.0)) as server:
        env = LevelReplayParallel(Deserted(), server.address)
        _, infos = env.reset(options={"level": 4})
        assert infos.keys() == {"a", "b"}
        env.step({"a": 0, "b": 0})
        env.reset()
        level = env.level
        for _ in range(4):
            env.step(dict.fromkeys(env.agents, 0))
        env.reset(options={"level": 5})
        values = {"a": [50.0, 2.0, 0.0, 0.0, 3.0], "b": [50.0, 0.0, 1.0]}
        assert env.push(values, {}) == 1
        with Trainer(server.address) as trainer:
            # |1 + 0.9 * 0 - 2|, 1, |1 + 0.9 * 3|, |1 - 3|; |10 + 0.9 * 1|, |10 - 1|
            assert scored(trainer) == pytest.approx({level: (1 + 1 + 3.7 + 2 + 10.9 + 9) / 6})
            assert trainer.stats()["episodes"] == 1
        env.close()


def test_an_episode_cut_right_after_a_push_is_not_taken_for_the_one_before():
    one_level = Config(levels=[5], strategy="one_step_td_error", gamma=GAMMA, partial="stitch")
    with launch(one_level) as server:
        env = LevelReplayParallel(Deserted(), server.address, prefetch=2)
        env.reset()
        env.step({"a": 0, "b": 0})
        env.push({"a": [50.0], "b": [50.0]}, {"a": 50.0, "b": 50.0})
        env.reset()
        for _ in range(3):
            env.step(dict.fromkeys(env.agents, 0))
        env.reset()
        env.push({"a": [2.0, 0.0, 3.0], "b": [0.0, 1.0]}, {})
        with Trainer(server.address) as trainer:  # |1 + 0.9 * 0 - 2|, |1 + 0.9 * 3|, |1 - 3|; |10 + 0.9 * 1|, |10 - 1|
            assert scored(trainer) == pytest.approx({5: (1 + 3.7 + 2 + 10.9 + 9) / 5})
        env.close()


@pytest.fixture
def played():
    """A wrapped env of spread, two steps into an episode, and its server's stats."""
    with launch(config()) as server, Trainer(server.address) as trainer:
        env = LevelReplayParallel(spread(), server.address)
        env.reset()
        for _ in range(2):
            env.step(dict.fromkeys(env.agents, 1))
        yield env, trainer
        env.close()


TWO = {f"agent_{n}": [0.0, 1.0] for n in range(3)}
ONE = dict.fromkeys(TWO, 0.0)


@pytest.mark.parametrize(
    ("values", "next_values", "more", "message"),
    [
        ({**TWO, "agent_1": [0.0]}, ONE, {}, r"^values\['agent_1'\]: expected shape \(2,\), by the steps .* \(1,\)$"),
        ({"agent_1": [0.0, 1.0]}, ONE, {}, r"^values\['agent_0'\]: expected shape \(2,\), .*, got shape \(0,\)$"),
        ({**TWO, "x": [0.0]}, ONE, {}, r"^values: expected agents among \['agent_0', .*\], got 'x'$"),
        (TWO, {"agent_0": 0.0}, {}, r"^next_values\['agent_1'\]: expected shape \(1,\)"),
        (np.zeros((3, 3)), ONE, {}, r"^values: expected shape \(2, 3\), of 2 steps and 3 possible agents, got .*"),
        (np.zeros(6), ONE, {}, r"^values: expected shape \(2, 3\)"),
        (TWO, ONE, {"rewards": {**TWO, "agent_1": [0.0]}}, r"^rewards\['agent_1'\]: expected shape \(2,\)"),
        (TWO, ONE, {"rewards": np.zeros((3, 3))}, r"^rewards: expected shape \(2, 3\), of 2 steps"),
        (TWO, np.zeros(2), {}, r"^next_values: expected shape \(1, 3\)"),
        (TWO, ONE, {"final_values": TWO}, r"^final_values\['agent_0'\]: expected shape \(0,\), .*, got shape \(2,\)$"),
        ({**TWO, "agent_1": [np.nan, 0.0]}, ONE, {}, r"^values: expected finite numbers"),
        (None, None, {}, r"^values: expected an array: the strategy value_l1 needs it, got none$"),
    ],
)
def test_a_bad_push_is_refused_whole_and_can_be_made_good(played, values, next_values, more, message):
    env, trainer = played
    with pytest.raises((InvalidInput, MissingField), match=message):
        env.push(values, next_values, **more)
    assert trainer.stats()["pushes"] == 0
    assert env.push(TWO, ONE) == 1
    assert trainer.stats()["steps"] == 6
    with pytest.raises(InvalidInput, match=r"^push: expected 1 to \d+ steps since the last one .*, got 0$"):
        env.push({}, {})


def test_a_recording_that_nobody_pushes_ends(monkeypatch):
    monkeypatch.setattr(module, "RECORDED_BYTES_MAX", 3 * (module.STEP_BYTES + 3 * module.AGENT_STEP_BYTES))
    with launch(config()) as server:
        env = LevelReplayParallel(spread(), server.address)
        env.reset()
        for _ in range(3):
            env.step(dict.fromkeys(env.agents, 1))
        assert len(env._rows) == 3
        env.step(dict.fromkeys(env.agents, 1))
        assert not env._rows
        with pytest.raises(InvalidInput, match=r"^push: expected 1 to 3 steps since the last one .*, got 4$"):
            env.push(np.zeros((4, 3)), ONE)
        env.close()


class Crowd(ParallelEnv):
    """So many agents, for ever."""

    def __init__(self, num_agents):
        self.possible_agents = list(range(num_agents))

    def reset(self, seed=None, options=None):  # noqa: ARG002
        self.agents = self.possible_agents
        return dict.fromkeys(self.agents, seed), {}

    def step(self, actions):
        no = dict.fromkeys(actions, False)
        return dict.fromkeys(actions, 0), dict.fromkeys(actions, 1.0), no, no, {}


@pytest.mark.parametrize("num_agents", [1, 50])
def test_a_recorded_step_takes_no_more_memory_than_it_is_counted_for(num_agents):
    env = LevelReplayParallel(Crowd(num_agents), "tcp://127.0.0.1:1")
    env.reset(options={"level": 0})
    actions = dict.fromkeys(env.agents, 0)
    tracemalloc.start()
    for _ in range(1000):
        env.step(actions)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counted = 1000 * (module.STEP_BYTES + num_agents * module.AGENT_STEP_BYTES)
    assert 0.5 * counted < taken < counted


def test_other_envs_are_refused():
    with pytest.raises(InvalidInput, match=r"^env: expected a parallel env \(pettingzoo.utils.aec_to_parallel makes"):
        LevelReplayParallel(simple_spread_v3.env(), "tcp://127.0.0.1:1")
    env = spread()
    env.possible_agents = []
    with pytest.raises(InvalidInput, match=r"^env: expected possible_agents, all that may ever play, got none$"):
        LevelReplayParallel(env, "tcp://127.0.0.1:1")
    with pytest.raises(InvalidInput, match=r"^address: expected"):
        LevelReplayParallel(spread(), "nowhere")
    inside = TellsLevel(LevelReplayParallel(spread(), "tcp://127.0.0.1:1"))
    with pytest.raises(InvalidInput, match=r"^env: expected .* no LevelReplayParallel inside, got "):
        LevelReplayParallel(inside, "tcp://127.0.0.1:1")


def test_a_picked_level_of_payloads_is_played_by_its_payload():
    given = []
    with launch(Config(levels="payloads", capacity=4)) as server, Trainer(server.address) as trainer:
        (level,) = trainer.insert([{"wind": 3}]).tolist()
        env = LevelReplayParallel(spread(), server.address, set_level=lambda _, payload: given.append(payload))
        env.reset(options={"level": level})
        assert (given, env.level, env.scored) == ([{"wind": 3}], level, False)
        with pytest.raises(LevelOutsideSpace, match=r"^options\['level'\]: expected the id of a level whose payload"):
            env.reset(options={"level": level + 1})
        env.close()


def test_with_keys_it_needs_those_of_a_trainer(tmp_path):
    keys = make_key(tmp_path, name="trainer", role="trainer")
    with launch(config(), keys=tmp_path) as server, Trainer(server.address, keys=keys) as trainer:
        env = LevelReplayParallel(spread(), server.address, keys=keys)
        env.reset()
        env.step({agent: env.action_space(agent).sample() for agent in env.agents})
        env.push({agent: [0.0] for agent in env.possible_agents}, dict.fromkeys(env.agents, 0.0))
        env.close()
        assert trainer.stats()["pushes"] == 1


def test_a_server_that_is_not_there_is_waited_for_as_long_as_said(tmp_path):
    env = LevelReplayParallel(spread(), f"ipc://{tmp_path}/plr.sock", timeout_s=0.2)
    with pytest.raises(ServerUnreachable) as raised:
        env.reset()
    assert 0.2 <= raised.value.waited_s < 5.0


def test_pettingzoos_seed_test_fails_by_design():
    with launch(config(levels=range(100_000))) as server, pytest.raises(AssertionError):
        parallel_seed_test(lambda: LevelReplayParallel(simple_spread_v3.parallel_env(), server.address))


def test_without_pettingzoo_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "wrappers.pettingzoo")
    with pytest.raises(MissingDependency, match=r"pip install 'plr-server\[pettingzoo\]'$"):
        importlib.import_module("wrappers.pettingzoo")


def test_the_example_trains_on_the_levels_it_was_assigned():
    torch.set_num_threads(1)
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "pettingzoo_spread.py"))
    rewards, stats = example["train"](rollouts=4, seed=0)
    assert np.isfinite(rewards).all()
    assert len(rewards) == 4
    assert stats["steps"] == 4 * 8 * 50 * 3
    assert stats["scores"] == stats["episodes"] == 4 * 8 * 2
    assert stats["levels_seen"] > 20
