"""wrappers/rllib.py: PPO trains for real, and every step it learnt from reaches the right level, once.

The level is read from the observations that the learners were given, and compared with what was pushed.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import runpy
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env
from rllib_recording import RecordingLearner, ShowsLevel, load, pushed_rows, seen_rows

from plr_client import InvalidInput, MissingDependency, MissingField, ServerUnreachable, Trainer, UnknownCurriculum
from plr_server import Config, launch
from plr_server.serving.keys import make_key
from wrappers import LevelReplay, rllib
from wrappers.rllib import LevelReplayPPOTorchLearner, _Chunk, _PushChunks

pytestmark = [  # what Ray and RLlib do to themselves
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0:UserWarning"),
]
GAMMA, LAMBDA = 0.9, 0.8


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # Ray's processes find the modules of the tests
    ray.init("local", num_cpus=8, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    register_env("levels", make_env)
    yield
    ray.shutdown()


def make_env(context):
    env = ShowsLevel(context["shortest"], context["longest"])
    return LevelReplay(env, context["address"], curriculum=context.get("curriculum", "default"))


def config_of(address, env_config, *, learner_class=RecordingLearner, **learner_config):
    return (
        PPOConfig()
        .environment("levels", env_config=env_config | {"address": address})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3)
        .fault_tolerance(restart_failed_env_runners=False)  # else RLlib swallows what an env raises
        .learners(learner_class=learner_class, learner_config_dict={"plr_address": address} | learner_config)
        .training(gamma=GAMMA, lambda_=LAMBDA, num_epochs=1, minibatch_size=64, lr=1e-3)
        .rl_module(model_config={"fcnet_hiddens": [16], "vf_share_layers": False})
        .debugging(seed=3)
    )


@contextlib.contextmanager
def trained(config, iterations):
    algorithm = config.build_algo()
    try:
        for _ in range(iterations):
            algorithm.last_result = algorithm.train()
        yield algorithm
    finally:
        algorithm.stop()


def lose_the_way(learner):
    piece = next(piece for piece in learner._learner_connector.connectors if isinstance(piece, _PushChunks))
    piece._trainer = Trainer(piece._trainer.address, curriculum="elsewhere")


def mean_magnitude(rewards, values, *, terminated):
    """The mean |A| of T steps by the equations, one after the other; values (T + 1,)."""
    total, carried = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        bootstrap = 0.0 if terminated and t == len(rewards) - 1 else values[t + 1]
        carried = rewards[t] + GAMMA * bootstrap - values[t] + GAMMA * LAMBDA * carried
        total += abs(carried)
    return total / len(rewards)


def joined(chunks):
    """Joins chunks of one episode in order: level, rewards (T,), values (T + 1,), terminated, done."""
    chunks = sorted(chunks, key=lambda chunk: chunk["start"])
    for before, after in itertools.pairwise(chunks):
        assert before["start"] + len(before["rewards"]) == after["start"]
    values = np.concatenate([chunk["values"][:-1] for chunk in chunks] + [chunks[-1]["values"][-1:]])
    last = chunks[-1]
    return (
        int(last["observations"][0, 0]),
        np.concatenate([chunk["rewards"] for chunk in chunks]).astype(float),
        values.astype(float),
        last["terminated"],
        last["terminated"] or last["truncated"],
    )


def expected_scores(seen, partial):
    """{level: score}, for levels whose last scores came one in an update, so that their order does not matter."""
    parts = collections.defaultdict(list)
    for update, chunks in seen:
        for chunk in chunks:
            key = (chunk["episode"], update if partial == "commit" else 0)
            parts[key].append((update, chunk))
    scored = collections.defaultdict(list)
    for part in parts.values():
        level, rewards, values, terminated, done = joined([chunk for _, chunk in part])
        if done or partial == "commit":
            scored[level].append(
                (max(update for update, _ in part), mean_magnitude(rewards, values, terminated=terminated))
            )
    last = {}
    for level, found in scored.items():
        found.sort()
        if len(found) == 1 or found[-2][0] < found[-1][0]:
            last[level] = found[-1][1]
    return last, len(scored)


def check_scores(address, seen, partial, at_least):
    expected, scored = expected_scores(seen, partial)
    with Trainer(address) as trainer:
        ids, scores, _, known = trainer.scores()
    assert known.sum() == scored
    assert len(expected) >= at_least
    table = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    for level, score in expected.items():
        assert table[level] == pytest.approx(score, rel=1e-3, abs=1e-5)


def check_metrics(algorithm, trainer):
    """What RLlib reports of the curriculum is what the server says, but for what has been drawn since."""
    logged, stats = algorithm.last_result["learners"]["curriculum"], trainer.stats()
    assert len(logged) == 12
    for name in ("seen_share", "mean_score", "max_score", "episodes", "pushes"):
        assert logged[name] == pytest.approx(stats[name]), name
    assert 1 < logged["effective_levels"] <= stats["levels_seen"]
    assert 0 < logged["draws"] <= stats["draws"]


def test_several_env_runners_cut_episodes_and_the_scores_are_those_of_the_equations(tmp_path):
    curriculum = Config(levels=range(400), gamma=GAMMA, gae_lambda=LAMBDA, replay_prob=0.3)
    with launch(curriculum) as server, Trainer(server.address) as trainer:
        config = config_of(server.address, {"shortest": 1, "longest": 30}, records=str(tmp_path))
        config.env_runners(num_env_runners=2).training(train_batch_size_per_learner=200)
        with trained(config, 4) as algorithm:
            check_metrics(algorithm, trainer)
        seen, pushed = load(tmp_path, "seen"), load(tmp_path, "pushed")
        rows = seen_rows(seen)
        assert rows.total() >= 4 * 190
        assert len({level for level, *_ in rows}) >= 30
        assert min(level for level, *_ in rows) >= 0  # each was assigned
        assert pushed_rows(pushed) == rows
        assert len(pushed) == len(seen) == 4
        assert trainer.stats()["steps"] == rows.total()
        assert any(chunk["start"] for _, chunks in seen for chunk in chunks)
        check_scores(server.address, seen, "commit", at_least=30)


def test_two_learners_share_episodes_and_stitch_sees_them_whole(tmp_path):
    curriculum = Config(levels=range(60), gamma=GAMMA, gae_lambda=LAMBDA, replay_prob=0.5, partial="stitch")
    with launch(curriculum) as server, Trainer(server.address) as trainer:
        config = config_of(server.address, {"shortest": 40, "longest": 150}, records=str(tmp_path))
        config.env_runners(num_env_runners=2, num_envs_per_env_runner=2)
        config.learners(num_learners=2).training(train_batch_size_per_learner=80)
        with trained(config, 10) as algorithm:
            check_metrics(algorithm, trainer)
            algorithm.learner_group.foreach_learner(lose_the_way)
            with pytest.raises(UnknownCurriculum, match="got 'elsewhere'"):
                algorithm.train()  # nor does a learner wait for ever for the one that failed
        seen, pushed = load(tmp_path, "seen"), load(tmp_path, "pushed")
        rows = seen_rows(seen)
        assert rows.total() >= 10 * 150
        assert pushed_rows(pushed) == rows
        assert len(pushed) == 10  # one learner for both
        assert len(seen) == 20
        assert trainer.stats()["steps"] == rows.total()
        dealt = collections.defaultdict(set)
        for i, (_, chunks) in enumerate(seen):
            for chunk in chunks:
                dealt[chunk["episode"]].add(i)
        assert sum(len(learners) > 2 for learners in dealt.values()) >= 10  # long episodes, dealt out in pieces
        check_scores(server.address, seen, "stitch", at_least=8)


def test_a_remote_learner_with_memory_and_one_curriculum_of_several(tmp_path):
    curricula = {"eval": Config(), "train": Config(levels=range(50), gamma=GAMMA, gae_lambda=LAMBDA)}
    with launch(curricula) as server, Trainer(server.address, curriculum="train") as trainer:
        env_config = {"shortest": 5, "longest": 60, "curriculum": "train"}
        config = config_of(server.address, env_config, records=str(tmp_path), plr_curriculum="train")
        config.learners(num_learners=1).training(train_batch_size_per_learner=100)
        config.rl_module(model_config={"use_lstm": True, "max_seq_len": 8, "lstm_cell_size": 8, "fcnet_hiddens": [8]})
        with trained(config, 3):
            pass
        seen, pushed = load(tmp_path, "seen"), load(tmp_path, "pushed")
        for _, chunks in seen:  # V has a memory here: it cannot be had from an observation alone
            for chunk in chunks:
                chunk["values"] = np.zeros(len(chunk["rewards"]) + 1)
        for _, block in pushed:
            assert len(np.unique(block["values"][block["valid"]])) > 50
            block["values"][:] = 0
        assert pushed_rows(pushed) == seen_rows(seen)
        assert trainer.stats()["steps"] == seen_rows(seen).total() >= 300


class Trials(gym.Wrapper):
    """Plays three episodes as if they were one: it resets inside its step."""

    trial = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.trial += terminated or truncated
        if (terminated or truncated) and self.trial % 3:
            return self.env.reset()[0], reward, False, False, info
        return observation, reward, terminated, truncated, info


def test_a_wrapper_that_resets_inside_its_step_is_refused():
    with launch(Config(levels=range(50))) as server, Trainer(server.address) as trainer:
        register_env("trials", lambda context: Trials(make_env(context)))
        config = config_of(server.address, {"shortest": 5, "longest": 9}, learner_class=LevelReplayPPOTorchLearner)
        config.environment("trials").training(train_batch_size_per_learner=100)
        expected = r"infos: expected one reset in an episode .*, got another one before step \d"
        with pytest.raises(InvalidInput, match=expected), trained(config, 1):
            pass
        assert trainer.stats()["pushes"] == 0


def test_a_server_that_is_gone_is_waited_for_as_long_as_said():
    with launch(Config(levels=range(50))) as server:
        config = config_of(server.address, {"shortest": 5, "longest": 9}, learner_class=LevelReplayPPOTorchLearner)
        config.learners(learner_config_dict={"plr_address": "ipc:///nowhere/plr.sock", "plr_timeout_s": 0.2})
        with pytest.raises(ServerUnreachable) as raised, trained(config, 1):
            pass
    assert 0.2 <= raised.value.waited_s < 5.0


def test_with_keys_the_learner_is_a_trainer(tmp_path, monkeypatch):
    worker, trainer = (make_key(tmp_path, name=role, role=role) for role in ("worker", "trainer"))
    monkeypatch.setenv("PLR_KEYS", str(worker))  # of the envs
    with launch(Config(levels=range(50)), keys=tmp_path) as server, Trainer(server.address, keys=trainer) as reading:
        env_config = {"shortest": 5, "longest": 9}
        config = config_of(server.address, env_config, learner_class=LevelReplayPPOTorchLearner, plr_keys=str(trainer))
        config.training(train_batch_size_per_learner=100)
        with trained(config, 1):
            pass
        assert reading.stats()["pushes"] == 1


def test_a_learner_without_an_address():
    config = config_of("ipc:///nowhere", {"shortest": 3, "longest": 5}, learner_class=LevelReplayPPOTorchLearner)
    del config.learner_config_dict["plr_address"]
    with pytest.raises(MissingField, match="plr_address: expected where the server listens"):
        config.build_algo()


def test_without_rllibs_own_connectors_there_is_nothing_to_bootstrap_from():
    config = config_of("ipc:///nowhere", {"shortest": 3, "longest": 5}, learner_class=LevelReplayPPOTorchLearner)
    config.learners(add_default_connectors_to_learner_pipeline=False)
    with pytest.raises(InvalidInput, match="learner connectors: expected RLlib's own"):
        config.build_algo()


@pytest.fixture
def pushing():
    """A learner's last piece and a trainer that reads what came of it."""
    curriculum = Config(levels=range(10), strategy="value_l1", gamma=GAMMA, gae_lambda=LAMBDA, partial="stitch")
    with launch(curriculum) as server, Trainer(server.address) as trainer:
        yield _PushChunks(Trainer(server.address), None), trainer


def chunk_of(episode, start, rewards, values, level=None, *, terminated=False, truncated=False):
    info = {} if level is None else {"plr_level": level, "plr_train": True, "plr_scored": True}
    return _Chunk(episode, start, len(rewards), terminated, truncated, info, None, np.array(rewards), np.array(values))


def test_pieces_are_put_together_within_a_batch_and_across(pushing):
    push, trainer = pushing
    rewards, values = np.arange(7) / 3, np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    push._push(
        [
            chunk_of("a", 2, rewards[2:3], values[2:4]),  # as two learners may have had them
            chunk_of("b", 0, [1.0], [0.5, 9.0], 4, terminated=True),
            chunk_of("a", 0, rewards[:2], values[:3], 7),
            chunk_of("c", 0, [2.0], [0.5, 9.0], 5, truncated=True),
        ]
    )
    assert trainer.stats()["levels_seen"] == 2  # a goes on
    push._push([chunk_of("a", 3, rewards[3:], values[3:], truncated=True)])
    _, scores, _, seen = trainer.scores()
    assert seen.tolist() == [level in {4, 5, 7} for level in range(10)]
    assert scores[7] == pytest.approx(mean_magnitude(rewards, values, terminated=False))
    assert scores[4] == pytest.approx(0.5)
    assert scores[5] == pytest.approx(2.0 + GAMMA * 9 - 0.5)


def test_steps_of_a_level_nobody_knows_are_left_out_and_said(pushing, caplog):
    push, trainer = pushing
    push._push([chunk_of("a", 3, [1.0, 1.0], [0.0] * 3), chunk_of("b", 0, [1.0], [0.5, 0.0], 4)])
    assert "2 steps of episodes that began unseen are not scored" in caplog.text
    assert trainer.stats()["steps"] == 1
    caplog.clear()
    push._push([chunk_of("b", 2, [1.0], [0.5, 0.0], terminated=True)])  # its second step was lost on the way
    assert "1 steps" in caplog.text
    assert trainer.stats()["steps"] == 1
    assert trainer.stats()["levels_seen"] == 0


def test_an_abandoned_episode_is_not_gone_on_with(pushing):
    push, trainer = pushing
    push._push([chunk_of("a", 0, [1.0], [0.5, 0.0], 4)])
    push._push([chunk_of("b", 0, [1.0], [0.5, 0.0], 4, terminated=True)])
    assert trainer.scores()[1][4] == pytest.approx(0.5)  # of one step
    push._push([chunk_of("a", 1, [1.0], [0.5, 0.0], terminated=True)])
    assert trainer.stats()["steps"] == 2


def test_a_level_of_ones_own_choice_is_not_scored(pushing):
    push, trainer = pushing
    first = chunk_of("a", 0, [1.0], [0.5, 0.0])
    first.info = LevelReplay(ShowsLevel(3, 5), trainer.address).reset(options={"level": 4})[1]
    push._push([first])
    push._push([chunk_of("a", 1, [1.0], [0.5, 0.0], terminated=True)])
    assert trainer.stats()["pushes"] == 0


def test_new_levels_that_must_not_be_learnt_from_are_refused(pushing):
    push, _ = pushing
    with launch(Config(robust=True)) as server:
        env = LevelReplay(ShowsLevel(3, 5), server.address)
        first = chunk_of("a", 0, [1.0], [0.5, 0.0])
        first.info = env.reset()[1]
        env.close()
    with pytest.raises(InvalidInput, match="robust: expected False"):
        push._push([first])


def test_an_env_without_level_replay_is_refused(pushing):
    push, _ = pushing
    with pytest.raises(InvalidInput, match="infos: expected plr_level at the start of an episode"):
        push._push([chunk_of("a", 0, [1.0], [0.5, 0.0])])


def test_a_refused_push_leaves_the_open_episodes_as_they_were(pushing):
    push, trainer = pushing
    push._push([chunk_of("a", 0, [1.0], [0.5, 0.0], 4)])
    bad = chunk_of("a", 1, [np.nan], [0.5, 0.0], terminated=True)
    with pytest.raises(InvalidInput, match="rewards: expected finite numbers"):
        push._push([bad])
    push._push([chunk_of("a", 1, [1.0], [0.5, 0.0], terminated=True)])
    assert trainer.stats()["episodes"] == 1
    assert trainer.stats()["steps"] == 2


def test_without_a_module_of_the_extra_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"ray\[rllib\], .* pip install 'plr-server\[rllib\]'"):
        runpy.run_path(rllib.__file__)


def test_of_an_rllib_that_is_broken_the_import_says_what_broke(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.rllib.core.columns", types.ModuleType("columns"))
    with pytest.raises(ImportError, match="Columns") as raised:
        runpy.run_path(rllib.__file__)
    assert not isinstance(raised.value, MissingDependency)
