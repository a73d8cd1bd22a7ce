"""wrappers/di_engine.py without DI-engine: rows in the order in which its collector hands them over, as plain arrays.

tests/integrations/test_di_engine.py has its real run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest

from plr_client import InvalidInput, LevelOutsideSpace, MissingDependency, MissingField, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers import di_engine
from wrappers.di_engine import LevelSampler, serial_pipeline_plr

STRATEGIES = ["policy_entropy", "least_confidence", "min_margin", "gae", "value_l1", "one_step_td_error"]
NUM_LEVELS, ALPHA, GAMMA, LAM = 12, 0.5, 0.9, 0.8


@pytest.fixture(scope="module")
def address():
    """A server with a curriculum for each strategy, under its name."""
    configs = {name: Config(levels=range(NUM_LEVELS), strategy=name, alpha=ALPHA) for name in [*STRATEGIES, "random"]}
    with launch(configs) as server:
        yield server.address


@pytest.fixture
def sampler(address, request):
    strategy = getattr(request, "param", "min_margin")
    with contextlib.closing(LevelSampler(range(NUM_LEVELS), (2,), 3, 4, section(address, strategy))) as made:
        yield made


def section(address, strategy):
    return {
        "strategy": strategy,
        "address": address,
        "curriculum": strategy,
        "discount_factor": GAMMA,
        "gae_lambda": LAM,
    }


def collected(rng, num_envs, longest):
    """Returns the columns of rows as DI-engine's collector hands them over; an observation is (env, step of the env).

    Each env plays one level. A trajectory is handed over when its episode ends or it has `longest` rows, until there
    are `num_envs * longest` rows; what is more is dropped. Beside DI-engine's columns: `episode` of the env, and
    `error`, the one-step TD error; NaN where rows cannot tell it: at the last one, if a trajectory was cut again there.
    """
    levels = rng.integers(NUM_LEVELS // 3, size=num_envs) * 3  # several envs on one level
    waiting, episode = [[] for _ in range(num_envs)], np.zeros(num_envs, int)
    rows, num_rows, step = [], num_envs * longest, 0
    while len(rows) < num_rows:
        for env, level in enumerate(levels):
            row = {"seed": np.float32(level), "episode": episode[env], "done": np.float32(rng.random() < 1.2 / longest)}
            row |= {"obs": np.array([env, step], np.float32), "next_obs": np.array([env, step + 1], np.float32)}
            row |= {"reward": rng.normal(), "value": rng.normal(), "logit": rng.normal(size=3)}
            waiting[env].append(row)
            episode[env] += row["done"] == 1
            if row["done"] or len(waiting[env]) == longest:
                advantage, next_value = 0.0, 0.0 if row["done"] else rng.normal()
                for earlier in reversed(waiting[env]):
                    earlier["error"] = earlier["reward"] + GAMMA * next_value - earlier["value"]
                    earlier["adv"] = advantage = earlier["error"] + GAMMA * LAM * advantage
                    next_value = earlier["value"]
                if len(rows) < num_rows < len(rows) + len(waiting[env]):
                    waiting[env][num_rows - len(rows) - 1]["error"] = np.nan
                rows += waiting[env]
                waiting[env] = []
        step += 1
    return {name: np.stack([row[name] for row in rows[:num_rows]]) for name in row | {"error": 0, "adv": 0}}


def by_the_equations(strategy, columns):
    """Returns what each row scores, (B,)."""
    if strategy not in STRATEGIES[:3]:
        return {"gae": columns["adv"], "value_l1": abs(columns["adv"]), "one_step_td_error": abs(columns["error"])}[
            strategy
        ]
    chances = np.exp(columns["logit"])
    chances /= chances.sum(axis=1, keepdims=True)
    second, first = np.sort(chances, axis=1)[:, -2:].T
    entropy = -(chances * np.log(chances)).sum(axis=1) / np.log(chances.shape[1])
    return {"policy_entropy": entropy, "least_confidence": 1 - first, "min_margin": 1 - (first - second)}[strategy]


@pytest.mark.parametrize("sampler", STRATEGIES, indirect=True)
def test_the_servers_scores_are_those_of_each_episodes_own_rows(sampler):
    rng = np.random.default_rng(0)
    strategy, expected, num_joined, num_cut = sampler._strategy, {}, 0, 0
    with Trainer(sampler.address, curriculum=strategy) as trainer:
        for _ in range(40):
            columns = collected(rng, num_envs=4, longest=int(rng.integers(1, 12)))
            sampler.update_with_rollouts(columns, 4)
            of_episode = {}
            for row, place in enumerate(zip(columns["obs"][:, 0], columns["episode"], strict=True)):
                of_episode.setdefault(place, []).append(row)
            scores = by_the_equations(strategy, columns)
            num_cut += np.isnan(scores).sum()
            for rows in sorted(of_episode.values(), key=max):
                num_joined += len(rows) > len(columns["done"]) // 4
                if known := [scores[row] for row in rows if not np.isnan(scores[row])]:
                    level = int(columns["seed"][rows[0]])
                    expected[level] = (1 - ALPHA) * expected.get(level, np.mean(known)) + ALPHA * np.mean(known)
            ids, at_server, _, seen = trainer.scores()
            assert set(ids[seen].tolist()) == set(expected)
            np.testing.assert_allclose(at_server[seen], [expected[level] for level in ids[seen].tolist()], atol=1e-12)
    assert num_joined >= 10
    assert num_cut >= 10 or strategy != "one_step_td_error"


def test_nested_observations_are_compared_whole(sampler):
    """Two envs on one level, both cut at the second step; the third trajectory goes on with the first one's episode."""
    obs = np.array([0, 1, 10, 11, 2, 12])
    columns = {
        "seed": np.full(6, 5.0),
        "done": np.array([0, 0, 0, 0, 1, 1.0]),
        "obs": {"image": np.zeros((6, 2)), "place": {"step": obs}},
        "next_obs": {"image": np.zeros((6, 2)), "place": {"step": obs + 1}},
        "logit": np.array([[9.0, 0], [9, 0], [0, 0], [0, 0], [9, 0], [0, 0]]),
    }
    with Trainer(sampler.address, curriculum="min_margin") as trainer:
        before = trainer.stats()["scores"]
        sampler.update_with_rollouts(columns, 3)
        assert trainer.stats()["scores"] == before + 2


def test_an_observation_that_comes_again_joins_no_ended_episode(sampler):
    """One env, of which every observation is the same: two rows, two that end the episode, then two new episodes."""
    columns = {"seed": np.full(6, 3.0), "done": np.array([0, 0, 0, 1, 1, 1.0]), "logit": np.zeros((6, 3))}
    with Trainer(sampler.address, curriculum="min_margin") as trainer:
        before = trainer.stats()["scores"]
        sampler.update_with_rollouts(columns | {"obs": np.zeros((6, 1)), "next_obs": np.zeros((6, 1))}, 3)
        assert trainer.stats()["scores"] == before + 3


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("seed", np.array([1.0, 1, 1, 1.5]), r"train_data\['seed'\]: expected levels"),
        ("seed", np.array([1.0, 1, 1, np.nan]), r"train_data\['seed'\]: expected levels"),
        ("seed", np.zeros(0), r"train_data\['seed'\]: expected levels"),
        ("seed", np.zeros((4, 1)), r"train_data\['seed'\]: expected \(B,\)"),
        ("seed", np.array([1.0, 2, 1, 2]), r"train_data\['seed'\]: expected one in a trajectory"),
        ("done", np.array([0.0, 1, 2, 0]), r"train_data\['done'\]: expected shape \(4,\) of 0 and 1"),
        ("done", np.zeros(3), r"train_data\['done'\]: expected shape \(4,\)"),
        ("logit", np.zeros((3, 3)), r"train_data\['logit'\]: expected 4 rows"),
        ("logit", np.zeros(4), r"train_data\['logit'\]: expected \(B, A\)"),
        ("logit", np.full((4, 3), np.nan), "logits: expected finite"),
        ("adv", np.zeros(3), r"train_data\['adv'\]: expected shape \(4,\)"),
        ("adv", np.full(4, np.nan), "scores: expected finite"),
    ],
)
def test_bad_rows_change_nothing(address, column, value, error):
    strategy = "gae" if column == "adv" else "min_margin"
    good = {"seed": np.full(4, 1.0), "done": np.zeros(4), "adv": np.ones(4), "logit": np.zeros((4, 3))}
    good |= {"obs": np.zeros((4, 2)), "next_obs": np.ones((4, 2))}
    with (
        contextlib.closing(LevelSampler(range(NUM_LEVELS), (2,), 3, 2, section(address, strategy))) as sampler,
        Trainer(address, curriculum=strategy) as trainer,
    ):
        before = trainer.stats()
        with pytest.raises(InvalidInput, match=error):
            sampler.update_with_rollouts(good | {column: value}, 2)
        for name in ("seed", "done", column, "obs", "next_obs"):
            with pytest.raises(MissingField, match=rf"train_data\['{name}'\]"):
                sampler.update_with_rollouts({key: good[key] for key in good if key != name}, 2)
        with pytest.raises(LevelOutsideSpace):
            sampler.update_with_rollouts(good | {"seed": np.full(4, 1e6)}, 2)
        with pytest.raises(InvalidInput, match="num_actors"):
            sampler.update_with_rollouts(good, 0)
        assert trainer.stats() == before
        sampler.update_with_rollouts(good, 2)
        assert trainer.stats()["scores"] == before["scores"] + 2


def test_sampling_asks_the_curriculum_unless_told_otherwise(sampler):
    with Trainer(sampler.address, curriculum="min_margin") as trainer:
        draws = trainer.stats()["draws"]
        assert [sampler.sample("sequential") for _ in range(NUM_LEVELS + 2)] == [*range(NUM_LEVELS), 0, 1]
        assert {sampler.sample("random") for _ in range(200)} == set(range(NUM_LEVELS))
        assert trainer.stats()["draws"] == draws
        assert {type(sampler.sample()) for _ in range(9)} == {int}
        assert trainer.stats()["draws"] == draws + 9
        assert trainer.stats()["in_flight"] == 4  # the levels of four envs
    with pytest.raises(InvalidInput, match="strategy: expected None, sequential, random or min_margin"):
        sampler.sample("gae")


@pytest.mark.parametrize("sampler", ["random"], indirect=True)
def test_the_strategy_random_scores_nothing(sampler):
    sampler.update_with_rollouts({}, 4)
    assert 0 <= sampler.sample() < NUM_LEVELS


def config_of(section, seeds):
    return di_engine._config(di_engine._checked(section, LevelSampler.config), seeds)


def test_the_section_in_our_words():
    ours = config_of({"seed": 0}, range(500))
    assert ours == Config(
        levels=tuple(range(500)),
        strategy="policy_entropy",
        transform="rank",
        temperature=1.0,
        staleness_coef=0.0,
        replay_schedule="fixed",
        replay_prob=0.5,
        min_fill_ratio=0.2,
    )
    assert config_of({"nu": 0.2, "seed": 0}, [1]).replay_prob == 0.8
    greedy = config_of({"score_transform": "eps_greedy", "eps": 0.1, "rho": 0.4, "seed": 0}, [1])
    assert (greedy.transform, greedy.eps, greedy.min_fill_ratio) == ("eps_greedy", 0.1, 0.4)
    given = {"strategy": "gae", "replay_schedule": "proportionate", "score_transform": "power", "temperature": 0.3}
    given |= {"eps": 0.1, "rho": 0.4, "nu": 0.9, "alpha": 0.7, "staleness_coef": 0.6, "staleness_temperature": 2.0}
    assert config_of(given | {"seed": 3}, [7, 5]) == Config(
        levels=(7, 5),
        strategy="gae",
        replay_schedule="proportionate",
        transform="power",
        temperature=0.3,  # and neither eps nor min_fill_ratio, which change nothing here
        replay_prob=1.0,
        alpha=0.7,
        staleness_coef=0.6,
        staleness_temperature=2.0,
        seed=3,
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"beta": 1}, r"level_replay\.beta: expected a key among strategy, .*, got an unknown key"),
        ({"strategy": "maxmc"}, r"level_replay\.strategy: expected one of policy_entropy"),
        ({"strategy": "sequential"}, r"level_replay\.strategy"),
        ({"rho": 2.0}, r"level_replay\.rho: expected a number from 0 to 1, got 2.0"),
        ({"nu": -1}, r"level_replay\.nu: expected a number from 0 to 1, got -1"),
        ({"nu": "x"}, r"level_replay\.nu"),
        ({"score_transform": "best"}, r"level_replay\.score_transform: expected one of rank"),
        ({"staleness_transform": "rank"}, r"level_replay\.staleness_transform: expected power"),
        ({"curriculum": "train"}, r"level_replay\.curriculum: expected an address"),
        ({"strategy": "one_step_td_error"}, r"level_replay\.discount_factor: expected that of the policy"),
        ({"strategy": "one_step_td_error", "discount_factor": 0.9}, r"level_replay\.gae_lambda"),
        ({"strategy": "one_step_td_error", "discount_factor": 2, "gae_lambda": 1}, r"level_replay\.discount_factor"),
        ({"seed": -1}, r"level_replay\.seed: expected an integer, 0 or more, got -1"),
        ({"address": "ipc:///none", "seed": 1}, r"level_replay\.seed: expected none beside address"),
        ({"address": "ipc:///none", "temperature": 1.0}, r"level_replay\.temperature: expected none beside address"),
    ],
)
def test_a_bad_section_is_refused(changes, error):
    with pytest.raises(InvalidInput, match=error):
        LevelSampler(range(10), (2,), 3, 4, changes)


@pytest.mark.parametrize("seeds", [[], [0.5], [[1, 2]], [-1, 2], [2**24 + 1], ["a"], [3, 3]])
def test_seeds_that_float32_cannot_carry_are_refused(seeds):
    with pytest.raises(InvalidInput, match="seeds: expected"):
        LevelSampler(seeds, (2,), 3, 4, {})


@pytest.mark.parametrize("num_actors", [0, -1, 1.5, True, None])
def test_a_number_of_envs_is_one_or_more(num_actors):
    with pytest.raises(InvalidInput, match="num_actors: expected an int, 1 or more"):
        LevelSampler([1, 2], (2,), 3, num_actors, {})


def test_a_running_server_must_fit(address):
    other = section(address, "min_margin") | {"curriculum": "gae"}
    with pytest.raises(InvalidInput, match=r"level_replay\.strategy: expected gae, that of the server, got min_margin"):
        LevelSampler(range(NUM_LEVELS), (2,), 3, 4, other)
    with pytest.raises(LevelOutsideSpace, match="seeds: expected levels of the daemon, got 1 that it does not have"):
        LevelSampler([0, 99], (2,), 3, 4, section(address, "gae"))
    with (
        contextlib.closing(LevelSampler([0], (2,), 3, 4, section(address, "gae"))) as sampler,
        pytest.raises(InvalidInput, match="seeds: expected all levels of the server"),
    ):
        [sampler.sample() for _ in range(100)]  # of twelve levels


def draws(seed=None, **section):
    cfg = {"strategy": "random", **section} | ({} if seed is None else {"seed": seed})
    with contextlib.closing(LevelSampler(range(1000), obs_space=(2,), action_space=3, num_actors=4, cfg=cfg)) as made:
        return [made.sample() for _ in range(20)], [made.sample("random") for _ in range(20)]


def test_ten_seeds_are_ten_streams_of_levels():
    by_seed = [draws(seed) for seed in range(10)]
    for streams in zip(*by_seed, strict=True):  # the curriculum's, and those outside of it
        assert len(set(map(tuple, streams))) == 10
    assert draws(3) == by_seed[3]
    of_numpy = []
    for seed in (5, 5, 6):  # where none is given, DI-engine's set_pkg_seed decides
        np.random.seed(seed)  # noqa: NPY002  it seeds this one
        of_numpy.append(draws())
    assert of_numpy[0] == of_numpy[1] != of_numpy[2]


def test_what_it_tells_of_its_seeds():
    cfg = {"strategy": "gae", "alpha": 0.25}
    with contextlib.closing(LevelSampler([30, 10, 20], (2,), 3, 4, cfg)) as sampler:
        assert (len(LevelSampler.config), sampler.config["strategy"]) == (11, "policy_entropy")
        assert sampler.seeds.tolist() == [30, 10, 20]
        assert sampler.seed2index == {30: 0, 10: 1, 20: 2}
        assert sampler.unseen_seed_weights.tolist() == [1, 1, 1]
        assert sampler.update_seed_score(0, 2, 4.0, 12) is None
        sampler.update_seed_score(3, 2, 8.0, 1)
        sampler.update_seed_score(0, sampler.seed2index[30], -1.0, 1)
        assert sampler.seed_scores.tolist() == [-1.0, 0.0, 5.0]  # the first one whole, the second by a quarter
        assert sampler.unseen_seed_weights.tolist() == [0, 1, 0]
        assert sampler.seed_staleness.shape == (3,)


def test_defaults_of_a_class_of_ones_own_count():
    class Mine(LevelSampler):
        config = LevelSampler.config | {"strategy": "gae"}

    with contextlib.closing(Mine([1, 2], (2,), 3, 1, {})) as sampler, Trainer(sampler.address) as trainer:
        assert trainer.stats()["strategy"] == "gae"


def test_a_running_servers_table_is_told_in_the_order_of_the_seeds(address):
    with contextlib.closing(LevelSampler([7, 3], (2,), 3, 1, section(address, "value_l1"))) as sampler:
        before = sampler.seed_scores
        sampler.update_seed_score(0, 1, 6.0, 1)
        sampler.update_seed_score(0, 1, 6.0, 1)
        after, unseen = sampler.seed_scores, sampler.unseen_seed_weights
        assert after[0] == before[0]
        assert after[1] == pytest.approx(6.0 if before[1] == 0 else 6.0 - ALPHA**2 * (6.0 - before[1]))
        assert unseen[1] == 0
        for wrong, match in (
            ((0, 2, 1.0, 1), "seed_idx: expected 0 to 1, got 2"),
            ((0, -1, 1.0, 1), "seed_idx"),
            ((0, 0.5, 1.0, 1), "seed_idx"),
            ((0, 0, float("nan"), 1), "score: expected finite"),
            ((0, 0, "1", 1), "score: expected numbers"),
            ((0, 0, 1.0, 0), "num_steps: expected 1 or more"),
        ):
            with pytest.raises(InvalidInput, match=match):
                sampler.update_seed_score(*wrong)
        assert (sampler.seed_scores == after).all()


def test_its_own_server_ends_with_it():
    sampler = LevelSampler([2**24, 3], (2,), 3, 4, {})
    with Trainer(sampler.address) as trainer:
        assert trainer.stats()["levels"] == 2
        trainer._connection.timeout_s = 0.3
        sampler.close()
        sampler.close()
        with pytest.raises(ServerUnreachable):
            trainer.stats()


@pytest.mark.skipif(importlib.util.find_spec("ding") is not None, reason="DI-engine is installed")
def test_without_di_engine_the_run_says_what_is_missing():
    with pytest.raises(MissingDependency, match=r"expected package DI-engine, .*; docs/di_engine\.md says how"):
        serial_pipeline_plr(({}, {}))


def test_the_loop_on_the_page_runs():
    page = (Path(__file__).parents[2] / "docs/di_engine.md").read_text()
    scope = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), "docs/di_engine.md", "exec"), scope)  # noqa: S102  our own
    assert len(set(scope["seeds"])) == 4
    assert scope["sampler"].seeds.size == 500


def test_a_forked_child_does_not_stop_the_server():
    sampler = LevelSampler(range(3), (2,), 3, 1, {})
    child = os.fork()
    if not child:
        sampler.close()
        del sampler
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sampler.sample() in range(3)
    sampler.close()
    with pytest.raises(ServerUnreachable), Trainer(sampler.address, timeout_s=0.2) as trainer:
        trainer.stats()
