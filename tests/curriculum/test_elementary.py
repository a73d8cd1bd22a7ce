"""plr_server/curriculum/elementary.py: exp, log and power, as good as the mathematics and the same on every CPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from plr_server.curriculum.elementary import exp, log, power
from plr_server.durability.state_dir import cpu_features


def ulps(got, expected):
    return np.abs(got - expected) / np.spacing(np.abs(expected))


def test_exp_is_right_in_the_last_place():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-700.0, 709.0, 50_000), rng.uniform(-1.0, 1.0, 50_000), [0.0, -0.0, 709.0, 1e-300]])
    assert ulps(exp(x), np.array([math.exp(each) for each in x])).max() <= 1.0


def test_exp_runs_out_into_0():
    assert exp(np.array([-np.inf, -1e300, -746.0])).tolist() == [0.0, 0.0, 0.0]
    assert exp(np.array([-745.0])).item() == math.exp(-745.0) == 5e-324


def test_log_is_right_in_the_last_place():
    rng = np.random.default_rng(0)
    x = np.concatenate([exp(rng.uniform(-700.0, 700.0, 50_000)), rng.uniform(0.5, 2.0, 50_000), [5e-324, 2.0, 1e308]])
    assert ulps(log(x), np.array([math.log(each) for each in x])).max() <= 1.0
    assert log(np.array([1.0])).item() == 0.0


@pytest.mark.parametrize("exponent", [0.01, 1.0, 3.3, 10.0, 100.0])
def test_power_is_right_as_far_as_it_says(exponent):
    x = np.random.default_rng(0).uniform(0.0, 1.0, 50_000)
    expected = np.array([math.pow(each, exponent) for each in x])
    at = expected > 1e-300
    error = np.abs(power(x, exponent)[at] / expected[at] - 1.0)
    assert (error <= 4e-16 * (1.0 + np.abs(np.log(expected[at])))).all()
    assert power(np.array([0.0, 1.0]), exponent).tolist() == [0.0, 1.0]


def test_ranks_weigh_as_the_equation_says():
    ranks = np.arange(1.0, 2_000.0)
    assert np.allclose(power(ranks, -10.0 / 3.0), ranks ** (-10.0 / 3.0), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (8191,), (8193,), (3, 5000), (2, 0, 3)])
def test_every_number_comes_out_alone(shape):
    x = np.random.default_rng(0).uniform(0.1, 1.0, shape)
    for function in (exp, log):
        each = [function(np.array([number])).item() for number in x.ravel().tolist()[-100:]]
        assert function(x).shape == shape
        assert function(x).ravel().tolist()[-100:] == each


DIGESTS = """
    import numpy as np
    from plr_server import Config, Curriculum
    from plr_server.durability.state_dir import cpu_features
    from plr_server.durability.values import digest, pack

    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 1.0, 100_000)
    print(len(cpu_features()), digest([np.exp(x), np.log(x), x ** 3.3]).hex())
    for strategy in ("value_l1", "maxmc", "policy_entropy", "min_margin", "least_confidence", "learnability", "tscl"):
        for transform, temperature in (("rank", 0.3), ("softmax", 0.5), ("power", 0.7), ("match", 0.3)):
            for levels in ("0:300", "unbounded"):
                curriculum = Curriculum(Config(
                    levels=levels, capacity=40, strategy=strategy, transform=transform, temperature=temperature,
                    alpha=0.3, replay_prob=0.6, staleness_temperature=0.5, staleness_coef=0.3,
                ))
                for _ in range(12):
                    drawn = np.array([given.level for given in curriculum.sample(16)])
                    shape = (24, 16)
                    fields = {name: rng.normal(size=shape) for name in ("values", "rewards")}
                    curriculum.update(
                        **fields, dones=rng.random(shape) < 0.02, levels=np.broadcast_to(drawn, shape),
                        next_values=rng.normal(size=16), logits=3 * rng.normal(size=(*shape, 6)),
                    )
                print(strategy, transform, levels, digest(pack([curriculum.state(), curriculum.weights()])).hex())
"""


def test_the_state_is_the_same_whatever_the_cpu_can():
    """The same commands with all the vector instructions there are, and with none."""
    dispatched = set(numpy_dispatches()) & set(cpu_features())
    if not dispatched:
        pytest.skip("this CPU has nothing that could be taken away")
    tests = Path(__file__).parents[1]
    said = []
    for disabled in ("", " ".join(sorted(dispatched))):
        environment = os.environ | {
            "NPY_DISABLE_CPU_FEATURES": disabled,
            "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        }
        code = [sys.executable, "-c", textwrap.dedent(DIGESTS)]
        done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
        said.append(done.stdout.splitlines())
    assert len(said[0]) == 57
    assert said[0][0] != said[1][0]  # numpy's own differ, or else nothing was taken away
    assert said[0][1:] == said[1][1:]


def numpy_dispatches():
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__  # noqa: PLC0415
    except ImportError:  # numpy 1
        from numpy.core._multiarray_umath import __cpu_dispatch__  # noqa: PLC0415
    return __cpu_dispatch__
