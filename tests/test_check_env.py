"""plr_server/check_env.py: what it finds in sound envs, in deliberately broken ones, and in all 16 Procgen games."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import level_env
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from plr_client import InvalidInput
from plr_server.__main__ import main
from plr_server.check_env import check_env, env_maker
from wrappers.procgen import ProcgenVector

GAMES = (
    *("bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot"),
    *("heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot"),
)
needs_procgen = pytest.mark.skipif(not importlib.util.find_spec("procgen"), reason="no wheel for this Python")


class Sound(gym.Env):
    """A walk whose steps, pay and length the seed decides; what is broken in the others is the difference to it."""

    observation_space = spaces.Dict(
        {"at": spaces.Box(-np.inf, np.inf, (2,)), "pair": spaces.Tuple([spaces.Discrete(9), spaces.Text(9)])}
    )
    action_space = spaces.Box(-1, 1, (2,))
    made, closed = 0, 0

    def __init__(self):
        type(self).made += 1

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.at, self.left = self.np_random.normal(size=2), int(self.np_random.integers(5, 40))
        return self.observe(), {}

    def observe(self):
        return {"at": self.at.copy(), "pair": (self.left % 9, f"{self.left} left")}

    def step(self, action):
        self.at += action + self.np_random.normal(size=2)
        self.left -= 1
        return self.observe(), float(self.at.sum()), self.left == 0, False, {}

    def close(self):
        type(self).closed += 1


class GlobalGenerator(Sound):
    def step(self, action):
        self.at += np.random.normal(size=2)  # noqa: NPY002
        return super().step(action)


class Clock(Sound):
    def observe(self):
        return {"at": self.at, "pair": (0, str(time.perf_counter_ns()))}


class IgnoresItsSeed(Sound):
    """Every reset is another episode, as of a generator of the env's own; here the same in every run of the test."""

    ticks = itertools.count()

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        return super().reset(seed=1000 + next(self.ticks))


class OneLevel(Sound):
    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        return super().reset(seed=4)


class KeepsItsFirstSeed(Sound):
    seeded = False

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        seed, self.seeded = None if self.seeded else seed, True
        return super().reset(seed=seed)


class Leaks(Sound):
    """What the last episode ended with comes back at the fourth step of the next."""

    at = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        self.old, self.steps = self.at, 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.steps == 4:
            self.at = self.at + self.old
        return super().step(action)


class RewardsDiffer(Sound):
    ticks = itertools.count()

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + next(self.ticks) / 64, *rest


class EndsDiffer(Sound):
    ticks = itertools.count()

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, np.random.default_rng(next(self.ticks)).random() < 0.2, info


class RaisesAtReset(Sound):
    def reset(self, *, seed=None, options=None):
        if seed % 2:
            raise ValueError(f"no level {seed}")
        return super().reset(seed=seed, options=options)


class RaisesInStep(Sound):
    def step(self, action):
        if self.left == 3:
            raise RuntimeError("out of \n steps")
        return super().step(action)


class RaisesAfterAnother(Sound):
    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        assert self.episodes < 2, "one episode is enough"
        return super().reset(seed=seed, options=options)


class RaisesWhenMade(Sound):
    def __init__(self):
        raise OSError("no display")


class RaisesWhenClosed(Sound):
    def close(self):
        raise OSError("no display")


class NothingComparable(Sound):
    def observe(self):
        return object()


def found(report):
    return {finding.what: (finding.levels, finding.first) for finding in report.findings}


def test_a_sound_env_is_fine():
    Sound.made = Sound.closed = 0
    report = check_env(Sound, range(10, 40), max_steps=25)
    assert report.ok
    assert report.findings == ()
    assert (report.num_levels, report.distinct_first, report.distinct_episodes) == (30, 30, 30)
    assert Sound.made == Sound.closed == 60
    lengths = []
    for seed in range(10, 40):
        env = Sound()
        env.reset(seed=seed)
        lengths.append(env.left)
    assert report.ended == sum(length <= 25 for length in lengths) < 30
    assert report.steps == 3 * sum(min(length, 25) for length in lengths)
    assert report.text() == (
        "30 levels, up to 25 steps each, three times under the same actions\n"
        "  observations repeat  yes\n"
        "  rewards repeat       yes\n"
        "  ends repeat          yes\n"
        "  state leaks          no\n"
        "  raised               nothing\n"
        f"  episodes that ended  {report.ended} of 30\n"
        "  distinct levels      30 of 30 by their first observation, 30 by the episode\n"
        "fine: a level determines the episode"
    )


BROKEN = {
    GlobalGenerator: {"observations": (8, "level 0, after step 0"), "rewards": (8, "level 0, at step 0: ")},
    Clock: {"observations": (8, "level 0, at the reset")},
    IgnoresItsSeed: {
        "observations": (8, "level 0, at the reset"),
        "rewards": (8, "level 0, at step 0: "),
        "ends": (8, "level "),
    },
    OneLevel: {"same": (1, "the episodes of all 8 levels are the same, so that there is nothing to choose")},
    KeepsItsFirstSeed: {"leak": (8, "level 0 after level 7, observations at the reset")},
    Leaks: {"leak": (8, "level 0 after level 7, observations after step 3")},
    RewardsDiffer: {"rewards": (8, "level 0, at step 0: ")},
    EndsDiffer: {"ends": (7, "level 0, at step ")},
    RaisesAtReset: {"raised": (4, "level 1, at the reset: ValueError: no level 1")},
    RaisesInStep: {"raised": (8, "level 0, at step {steps}: RuntimeError: out of steps")},
    RaisesAfterAnother: {"raised": (8, "level 0 after level 7, at the reset: AssertionError: one episode is enough")},
    RaisesWhenMade: {"raised": (8, "level 0, when it was made: OSError: no display")},
    RaisesWhenClosed: {"raised": (8, "level 0, when it was closed: OSError: no display")},
    NothingComparable: {
        "raised": (
            8,
            "level 0, at the reset: TypeError: expected an observation of arrays, numbers and text, got a object in it",
        )
    },
}


@pytest.mark.parametrize("env", BROKEN, ids=lambda env: env.__name__)
def test_what_is_broken_is_found_and_nothing_else(env):
    for ticks in (IgnoresItsSeed, RewardsDiffer, EndsDiffer):
        ticks.ticks = itertools.count()
    report = check_env(env, range(8))
    sound = Sound()
    sound.reset(seed=0)
    assert not report.ok
    assert found(report).keys() == BROKEN[env].keys()
    for what, (levels, first) in found(report).items():
        assert levels == BROKEN[env][what][0]
        assert first.startswith(BROKEN[env][what][1].format(steps=sound.left - 3))
    text = report.text()
    assert text.splitlines()[-1].startswith("not fine: ")
    untold = "  state leaks          cannot be told of an env that does not repeat" in text
    assert untold == bool({"observations", "rewards", "ends"} & found(report).keys())
    assert len(text.splitlines()) == 9


def test_an_env_that_repeats_on_some_levels_only_is_reported_with_those():
    class Sometimes(Sound):
        ticks = itertools.count()

        def step(self, action):
            self.at[0] += next(self.ticks) * (self.left % 3 == 0)
            return super().step(action)

    report = check_env(Sometimes, [5, 3], max_steps=1)
    env, starts = Sound(), {}
    for seed in (5, 3):
        env.reset(seed=seed)
        starts[seed] = env.left % 3 == 0
    assert sum(starts.values()) == 1, "of the two levels one is broken; choose others"
    (broken,) = [seed for seed, is_broken in starts.items() if is_broken]
    assert found(report)["observations"] == (1, f"level {broken}, after step 0")


def test_levels_that_look_alike_at_first_are_told_apart_by_their_episodes():
    class AlikeAtFirst(Sound):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed, options=options)
            self.at, self.left = np.zeros(2), 30
            return self.observe(), {}

    report = check_env(AlikeAtFirst, range(6))
    assert (report.distinct_first, report.distinct_episodes, report.ok) == (1, 6, True)
    assert check_env(OneLevel, [3]).ok, "of one level nothing can be the same"


def test_a_registered_env_and_the_seed_of_the_actions():
    reports = [check_env(env_maker("CartPole-v1", {}), range(20), seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].steps != reports[2].steps
    assert all(report.ok and report.ended == 20 for report in reports)


@pytest.mark.parametrize(
    "name", ["MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-DoorKey-8x8-v0", "MiniGrid-Empty-5x5-v0", "BabyAI-GoToObj-v0"]
)
def test_minigrid(name):
    pytest.importorskip("minigrid")
    report = check_env(env_maker(f"minigrid:{name}", {}), range(20), max_steps=60)
    env, seen = gym.make(name), set()
    for level in range(20):
        observation, _ = env.reset(seed=level)
        seen.add((observation["image"].tobytes(), observation["direction"], observation["mission"]))
    env.close()
    assert report.distinct_first == len(seen)
    assert [finding.what for finding in report.findings] == (["same"] if name == "MiniGrid-Empty-5x5-v0" else [])
    assert report.distinct_first <= report.distinct_episodes


@needs_procgen
@pytest.mark.parametrize("game", GAMES)
def test_procgen(game):
    make = env_maker("wrappers.procgen:ProcgenVector", {"env_name": game, "num_envs": 1, "num_threads": 0})
    report = check_env(make, range(6), max_steps=120)
    assert report.findings == ()
    assert report.distinct_episodes == 6
    assert report.distinct_first >= 1


@needs_procgen
def test_a_procgen_that_patches_the_running_state_leaks_in_dodgeball():
    """How levels are not to be set: what the running engine holds is handed on. The check finds it."""

    class Patched(ProcgenVector):
        def reset(self, *, seed=None, options=None):
            self._first_states._states.clear()
            self._first_states._template = self._engine.get_state()[0]
            return super().reset(seed=seed, options=options)

    report = check_env(lambda: Patched("dodgeball", 1, num_threads=0), range(6), max_steps=200)
    assert found(report).keys() == {"leak"}


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_env_of_one_env_is_checked_as_that_env(mode):
    class Restless(level_env.LevelEnv):
        """What it begins of itself does not repeat."""

        def reset(self, *, seed=None, **_):
            return super().reset(seed=int(np.random.default_rng().integers(10**6)) if seed is None else seed)

    def make():
        envs = gym.vector.SyncVectorEnv([Restless], autoreset_mode=mode)
        for other in AutoresetMode:  # before Gymnasium 1.4 the last one made changes the metadata of all
            gym.vector.SyncVectorEnv([level_env.LevelEnv], autoreset_mode=other).close()
        return envs

    report, plain = check_env(make, range(12)), check_env(level_env.LevelEnv, range(12))
    assert report == plain
    assert report.ok
    assert report.ended == 12


def test_the_observation_after_autoreset_is_no_part_of_the_episode():
    envs = []

    def make():
        envs.append(level_env.NativeLevelEnvs(1, AutoresetMode.SAME_STEP))
        return envs[-1]

    class WithoutFinal(gym.vector.VectorWrapper):
        def step(self, actions):
            *step, infos = self.env.step(actions)
            first = step[0].copy()
            first[step[2] | step[3]] = np.random.default_rng().normal()
            return first, *step[1:], {key: info for key, info in infos.items() if "final" not in key}

    assert check_env(make, range(5)).ok
    assert check_env(lambda: WithoutFinal(make()), range(5)).ok


@pytest.mark.parametrize(
    ("make", "levels", "fields", "message"),
    [
        (Sound, [], {}, r"^levels: expected one or more distinct seeds, 0 or above, got \[\]$"),
        (Sound, [1, 1], {}, r"^levels: expected .*, got \[1, 1\]$"),
        (Sound, range(-1, 4), {}, r"^levels: expected .*, got range\(-1, 4\)$"),
        (Sound, [1], {"max_steps": 0}, r"^max_steps: expected at least 1 \(--steps on the command line\), got 0$"),
        (
            lambda: gym.make_vec("CartPole-v1", 2),
            [1],
            {},
            r"^env: expected a Gymnasium env, or a vector env of one env",
        ),
        (lambda: 7, [1], {}, r"^env: expected a Gymnasium env, or a vector env of one env, got 7$"),
    ],
)
def test_what_cannot_be_checked_is_refused(make, levels, fields, message):
    with pytest.raises(InvalidInput, match=message):
        check_env(make, levels, **fields)


# ---- the command


def test_the_command_says_what_it_found(capsys):
    assert main(["check-env", "CartPole-v1", "--levels", "3:40:3", "--steps", "9"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "CartPole-v1: 13 levels, up to 9 steps each, three times under the same actions\n  observations"
    )
    assert out.endswith("\nfine: a level determines the episode\n")
    assert not err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of envs, one of which prints."""
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Broken(gym.wrappers.TransformReward):\n"
        "    def __init__(self, env_id='CartPole-v1', scale=1.0):\n"
        "        print('making', env_id)\n"
        "        super().__init__(gym.make(env_id), lambda reward: reward * scale * np.random.random())\n"
        "gym.register('My/Own-v3', lambda: gym.make('CartPole-v1'))\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_in_a_process_of_its_own_finds_modules_beside_it(folder):
    def run(*arguments):
        command = [sys.executable, "-m", "plr_server", "check-env", *arguments]
        root = str(Path(__file__).parents[1])
        env = {**os.environ, "PYTHONPATH": root}
        return subprocess.run(  # noqa: S603  our own command
            command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
        )

    broken = run("my_envs:Broken", "--json", "--levels", "0:3", "--kwargs", '{"env_id": "Acrobot-v1", "scale": 0.5}')
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    assert (report["env_id"], report["ok"], report["num_levels"]) == ("my_envs:Broken", False, 3)
    assert [finding["what"] for finding in report["findings"]] == ["rewards"]
    assert broken.stderr.count("making Acrobot-v1") == 6
    own = run("my_envs:My/Own-v3", "--levels", "4,7")
    assert (own.returncode, own.stderr) == (0, "")
    assert own.stdout.startswith("my_envs:My/Own-v3: 2 levels, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["NoSuch-v0"],
            "env_id: expected ENV_ID, registered with Gymnasium, MODULE:ENV_ID, registered by the module, or ",
        ),
        (["CartPole-v99"], "got CartPole-v99 ("),
        (
            ["no_such_module:x"],
            "a module no_such_module that can be imported, got ModuleNotFoundError(",
        ),
        (["math:pi"], "got math:pi ("),
        (["CartPole-v1", "--levels", "5:5"], "levels: expected "),
        (["CartPole-v1", "--levels", "unbounded"], "levels: expected seeds, as START:STOP or 3,14,15, got unbounded"),
        (["CartPole-v1", "--levels=-3:5"], "levels: expected one or more distinct seeds, 0 or above, got range(-3, 5)"),
        (["CartPole-v1", "--steps", "0"], "max_steps: expected at least 1 (--steps on the command line), got 0"),
        (
            ["CartPole-v1", "--kwargs", "[1]"],
            "argument --kwargs: expected a JSON object, such as '{\"size\": 8}', got '[1]'",
        ),
        (
            ["CartPole-v1", "--kwargs", "{size: 8}"],
            "argument --kwargs: expected a JSON object, such as '{\"size\": 8}', got '{size: 8}'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_code_tells_a_wrong_command_from_a_wrong_env(arguments, said, capsys):
    try:
        code = main(["check-env", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2
    assert said in err
    assert not out


def test_a_factory_that_raises_is_a_wrong_env(capsys):
    assert main(["check-env", "math:sqrt"]) == 1
    out = capsys.readouterr().out
    assert "\n  raised               yes, on 50 of 50 levels; first: level 0, when it was made: TypeError: " in out
    assert out.endswith(
        "\nnot fine: the env raised, so that it cannot be told whether a level determines the episode\n"
    )


def test_serving_does_not_import_gymnasium():
    code = "import sys, plr_server.__main__; sys.exit('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0  # noqa: S603  ours
