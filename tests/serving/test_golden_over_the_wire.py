"""The golden numbers through running servers: each array is pushed or read by real clients, over real sockets."""

from __future__ import annotations

import multiprocessing

import golden
import numpy as np
import pytest

from plr_client import Trainer
from plr_server import Config, launch
from plr_server.serving.loop import serve


def scoring(case, **fields):
    levels = range(len(golden.SCORES[f"{case}/episodes"]))
    return Config(levels=levels, gamma=golden.GAMMA, gae_lambda=golden.GAE_LAMBDA, **fields)


def pushed_scores(address, curriculum, block):
    with Trainer(address, curriculum=curriculum) as trainer:
        trainer.push(**block)
        _, scores, _, _ = trainer.scores()
    return scores


def test_every_score():
    """A curriculum of its own for each case, strategy, and mean or maximum, all in one server."""
    keys = [f"{case}/{kind}/{name}" for case in golden.CASES for kind in ("mean", "max") for name in golden.STRATEGIES]
    configs = {
        key: scoring(key.split("/")[0], strategy=key.split("/")[2], max_score_coef=float("/max/" in key))
        for key in keys
    }
    with launch(configs) as server:
        for key in keys:
            scores = pushed_scores(server.address, key, golden.block(key.split("/")[0]))
            np.testing.assert_allclose(scores, golden.SCORES[key], rtol=1e-6, atol=1e-12, err_msg=key)


def test_every_advantage():
    """A_t of an episode is what the sum of its scores gains when the block begins one step earlier."""
    num_steps = 48
    with launch(
        {f"{case}/{t}": scoring(case, strategy="gae") for case in golden.CASES for t in range(num_steps)}
    ) as server:
        for case in golden.CASES:
            block, expected = golden.block(case), golden.SCORES[f"{case}/advantages"]
            stops = golden.SCORES[f"{case}/episodes"][:, 2]
            later = np.zeros(expected.shape[1])
            for t in reversed(range(num_steps)):
                rest = {name: x if name == "next_values" else x[t:] for name, x in block.items()}
                playing = block["levels"][t]
                sums = pushed_scores(server.address, f"{case}/{t}", rest)[playing] * (stops[playing] - t)
                advantages = sums - np.where(block["dones"][t], 0.0, later)
                np.testing.assert_allclose(advantages, expected[t], rtol=1e-6, atol=1e-9, err_msg=f"{case}, step {t}")
                later = sums


@pytest.fixture
def address_of_golden_states(tmp_path):
    """A server process whose curricula are in the states of weights.npz, one for each of its keys."""
    spawn = multiprocessing.get_context("spawn")
    read, write = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve_golden_states, args=(f"ipc://{tmp_path}/plr.sock", write))
    process.start()
    yield read.recv()
    process.terminate()
    process.join()
    assert process.exitcode == 0


def serve_golden_states(address, ready):
    serve({key: golden.curriculum(key) for key in golden.WEIGHT_KEYS}, address, ready=ready.send)


def test_every_weight(address_of_golden_states):
    for key in golden.WEIGHT_KEYS:
        with Trainer(address_of_golden_states, curriculum=key) as trainer:
            np.testing.assert_allclose(trainer.weights(), golden.WEIGHTS[key], rtol=1e-6, atol=1e-300, err_msg=key)
            _, _, staleness, seen = trainer.scores()
        np.testing.assert_array_equal(staleness, golden.WEIGHTS["staleness"])
        np.testing.assert_array_equal(seen, golden.WEIGHTS["seen"])
