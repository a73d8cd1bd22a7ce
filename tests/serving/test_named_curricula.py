"""Several curricula in one server know nothing of each other."""

from __future__ import annotations

import faults
import numpy as np
import pytest

from plr_client import ConfigError, LevelClient, Trainer, UnknownCurriculum
from plr_server import Config, launch
from plr_server.curriculum.config import named_configs

CONFIGS = {
    "train": Config(levels=range(50), seed=1, partial="stitch"),
    "eval": Config(levels=[7, 3, 99], seed=2, strategy="sequential"),
    "other": Config(levels=range(1000, 1020), seed=1, strategy="one_step_td_error", transform="softmax"),
}


def play(clients, trainers, order):
    """Samples and pushes for the curricula in that order; returns what each was handed, its scores and its weights."""
    rngs = {name: np.random.default_rng(5) for name in CONFIGS}
    handed = {name: [] for name in CONFIGS}
    for name in order:
        rng = rngs[name]
        levels = [assignment.level for assignment in clients[name].next(4)]
        handed[name] += levels
        dones = rng.random((8, 4)) < 0.2
        dones[-1] = True  # new levels at the next block
        trainers[name].push(
            rng.normal(size=(8, 4)), rng.normal(size=(8, 4)), dones, np.tile(levels, (8, 1)), rng.normal(size=4)
        )
    return {
        name: (handed[name], *(array.tolist() for array in trainers[name].scores()), trainers[name].weights().tolist())
        for name in CONFIGS
    }


def test_interleaved_they_equal_separate_servers_bit_for_bit():
    order = np.random.default_rng(0).choice(list(CONFIGS), size=90).tolist()
    with launch(CONFIGS) as together:
        clients = {name: LevelClient(together.address, curriculum=name) for name in CONFIGS}
        trainers = {name: Trainer(together.address, curriculum=name) for name in CONFIGS}
        one_server = play(clients, trainers, order)
        for client in (*clients.values(), *trainers.values()):
            client.close()
    apart = {}
    for name, config in CONFIGS.items():
        with launch(config) as alone, LevelClient(alone.address) as client, Trainer(alone.address) as trainer:
            only = [played for played in order if played == name]
            # the other names are not played: their clients are never asked
            result = play({name: client}, {name: trainer} | dict.fromkeys(set(CONFIGS) - {name}, trainer), only)
            apart[name] = result[name]
    assert one_server == apart


def test_an_unknown_name_is_refused_with_the_known_ones():
    with launch(CONFIGS) as server, Trainer(server.address, curriculum="nope") as trainer:
        with pytest.raises(UnknownCurriculum, match=r"expected one of eval, other, train \(.*got 'nope'"):
            trainer.stats()
        with LevelClient(server.address) as client, pytest.raises(UnknownCurriculum, match="got 'default'"):
            client.next()


def test_levels_in_flight_go_back_whichever_curriculum_they_are_of():
    with launch(CONFIGS) as server, Trainer(server.address, curriculum="other") as trainer:
        with LevelClient(server.address, curriculum="other") as client:
            client.next(3)
            assert trainer.stats()["in_flight"] == 3
        faults.eventually(lambda: trainer.stats()["in_flight"] == 0, "nobody waits for a goodbye to be answered")


def test_a_table_takes_from_the_top_what_it_lacks():
    configs = named_configs({"levels": "0:9", "alpha": 0.5, "curricula": {"a": {}, "b": {"levels": [4, 2]}}})
    assert configs == {"a": Config(levels=range(9), alpha=0.5), "b": Config(levels=[4, 2], alpha=0.5)}
    assert named_configs({}) == {"default": Config()}
    for wrong in ({}, [], {"a": 3}):
        with pytest.raises(ConfigError, match="curricula: expected a table"):
            named_configs({"curricula": wrong})
