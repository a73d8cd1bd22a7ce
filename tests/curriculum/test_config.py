"""plr_server/curriculum/config.py: every field checked, levels in every spelling, and plain values that read back."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from plr_client import ConfigError
from plr_server import Config, Curriculum
from plr_server.curriculum.config import LEVELS_EXPECTED, named_configs
from plr_server.curriculum.presets import PRESETS

FIELDS = [field.name for field in dataclasses.fields(Config)]

# The default, two other values that are valid, and values that are not.
TABLE = {
    "strategy": (
        "value_l1",
        ["external", "min_margin", "maxmc", "learnability", "my_scores:fitness", "a.b_2:Scores.fitness"],
        [
            "VALUE_L1",
            "",
            None,
            3,
            ["gae"],
            ":",
            "a:",
            ":b",
            "a:b:c",
            "a b:c",
            "a:b()",
            "../a:b",
            "a..b:c",
            "1a:b",
            b"a:b",
        ],
    ),
    "transform": ("rank", ["match_rank", "eps_greedy"], ["ranks", None, 0]),
    "temperature": (0.1, [1e-3, 10], [0, -1.0, np.nan, np.inf, "0.1", None, True, 1j]),
    "staleness_coef": (0.1, [0, 1], [-0.1, 1.1, np.nan, "0", None, False]),
    "staleness_temperature": (1.0, [0.5, 100], [0.0, -2, np.inf, "1", None, True]),
    "eps": (0.05, [0.0, 1], [-1e-9, 1.0001, np.nan, "1", None]),
    "replay_schedule": ("proportionate", ["fixed"], ["always", None, True]),
    "capacity": (4000, [1, 10_000_000], [0, -3, 10_000_001, 4.0, "4000", None, True]),
    "replay_prob": (1.0, [0, 0.5], [-0.5, 2, np.nan, "1", None]),
    "min_fill_ratio": (0.0, [0.5, 1], [-0.5, 1.5, np.inf, "0", None]),
    "alpha": (1.0, [1e-6, 0.5], [0, 0.0, -1, 1.01, np.nan, "1", None]),
    "max_score_coef": (0.0, [0.5, 1], [-0.1, 1.1, np.nan, "0", None]),
    "gamma": (0.999, [0, 1], [-0.1, 1.1, np.nan, "1", None]),
    "gae_lambda": (0.95, [0, 1], [-0.1, 1.1, np.nan, "1", None]),
    "window": (10, [2, 1_000, np.int16(3)], [1, 0, -1, 1_001, 10.0, "10", None, True]),
    "num_steps": (256, [1, np.int32(7)], [0, -1, 1.0, "256", None, True]),
    "partial": ("commit", ["stitch"], ["drop", None, 1]),
    "robust": (False, [True], [1, 0, "true", None]),
    "max_in_flight": (0, [1, np.int32(7)], [-1, 1.0, "1", None, True]),
    "seed": (0, [1, 2**70], [-1, 1.0, "0", None, True]),
}
GOOD = [(name, value) for name, (_, good, _) in TABLE.items() for value in good]
BAD = [(name, value) for name, (_, _, bad) in TABLE.items() for value in bad]


def case(name, value):
    return f"{name}={value!r}"


def test_the_table_and_the_docs_have_every_field():
    assert set(TABLE) | {"levels"} == set(FIELDS) == set(Config.docs())
    assert all(Config.docs().values())


def test_the_defaults_are_the_papers_procgen_setting():
    assert {name: getattr(Config(), name) for name in TABLE} == {
        name: default for name, (default, _, _) in TABLE.items()
    }
    assert Config().levels == range(200)


@pytest.mark.parametrize(("name", "value"), GOOD, ids=[case(*pair) for pair in GOOD])
def test_valid_values_are_kept_as_plain_python(name, value):
    kept = getattr(Config(**{name: value}), name)
    assert kept == value
    assert type(kept) is type(TABLE[name][0])


@pytest.mark.parametrize(("name", "value"), BAD, ids=[case(*pair) for pair in BAD])
def test_other_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError) as raised:
        Config(**{name: value})
    assert raised.value.field == name
    assert re.fullmatch(rf"{name}: expected .+, got .+", str(raised.value))
    assert str(value) in raised.value.got


def test_it_cannot_be_changed_but_replaced_checked_again():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 0.5
    assert dataclasses.replace(config, alpha=0.5).alpha == 0.5
    with pytest.raises(ConfigError, match=r"^alpha: "):
        dataclasses.replace(config, alpha=2.0)


def test_fields_are_given_by_name():
    with pytest.raises(TypeError):
        Config(range(3))


# ---- levels

LEVELS = [
    ("0:200", range(200)),
    ("5:8", range(5, 8)),
    ("-3:3", range(-3, 3)),
    ("0:10:3", range(0, 10, 3)),
    ("10:0:-2", range(10, 0, -2)),
    ("7,", (7,)),
    ("3,14,15", (3, 14, 15)),
    ("-1,0", (-1, 0)),
    (range(4), range(4)),
    ([9, 2, 5], (9, 2, 5)),
    ((1,), (1,)),
    (np.array([4, 2], dtype=np.uint8), (4, 2)),
    (np.arange(3), (0, 1, 2)),
    ([2**63 - 1, 1 - 2**63], (2**63 - 1, 1 - 2**63)),
    ("9223372036854775800:9223372036854775807", range(2**63 - 8, 2**63 - 1)),
    ("0:9000000000000000000:5000000000", range(0, 9 * 10**18, 5 * 10**9)),
]


@pytest.mark.parametrize(("given", "levels"), LEVELS, ids=[str(given) for given, _ in LEVELS])
def test_levels(given, levels):
    config = Config(levels=given)
    assert config.levels == levels
    assert type(config.levels) is type(levels)
    assert all(type(level) is int for level in config.levels[:3])


BAD_LEVELS = [
    ("", "''"),
    ("all", "'all'"),
    ("0:", "'0:'"),
    ("0:5:0", "'0:5:0'"),
    ("0:5:1:1", "'0:5:1:1'"),
    ("0;5", "'0;5'"),
    ("1,,2", "'1,,2'"),
    ("1.5", "'1.5'"),
    (" 1", "' 1'"),
    ("5:5", "none"),
    ("10:0", "none"),
    (range(0), "none"),
    ([], "none"),
    ("1,2,1", "an id twice"),
    ([4, 4], "an id twice"),
    (None, "None"),
    (2.5, "2.5"),
    ({1, 2}, "{1, 2}"),
    ([1.0, 2.0], "[1.0, 2.0]"),
    ([True, False], "[True, False]"),
    (["1"], "['1']"),
    ([[1, 2]], "[[1, 2]]"),
    ([[1], [2, 3]], "[[1], [2, 3]]"),
    ([2**63], "an id beyond int64"),
    ([2**70], f"[{2**70}]"),
    ("9223372036854775808,", "an id beyond int64"),
    ("9223372036854775800:9223372036854775810", "an id beyond int64"),
    (range(2**64), "an id beyond int64"),
    ("0:" + "9" * 23, f"'0:{'9' * 23}'"),
    ("1" * 5000, "'1111"),
]


@pytest.mark.parametrize(("given", "got"), BAD_LEVELS, ids=[str(given)[:30] for given, _ in BAD_LEVELS])
def test_bad_levels(given, got):
    with pytest.raises(ConfigError) as raised:
        Config(levels=given)
    assert raised.value.field == "levels"
    assert raised.value.expected == LEVELS_EXPECTED
    assert raised.value.got.startswith(got)


@pytest.mark.parametrize("number", ["200", "-3", "07"])
def test_a_number_alone_may_mean_two_things_and_is_refused(number):
    with pytest.raises(ConfigError, match=rf"^levels: expected 0:{number} .* or \[{number}\] .*, got '{number}'$"):
        Config(levels=number)
    number = int(number)
    with pytest.raises(ConfigError, match=rf"^levels: expected '0:{number}' .* or \[{number}\] .*, got {number}$"):
        Config(levels=number)
    assert Config(levels=[200]).levels == Config(levels="200,").levels == (200,)


@pytest.mark.parametrize("levels", ["unbounded", "payloads"])
def test_open_spaces_are_named_and_have_no_baselines(levels):
    assert Config(levels=levels).levels == levels
    assert Config.from_dict(json.loads(json.dumps(Config(levels=levels, capacity=7).to_dict()))).capacity == 7
    for strategy in ("random", "sequential"):
        with pytest.raises(ConfigError, match=rf"^levels: expected a range or a list under the strategy {strategy}"):
            Config(levels=levels, strategy=strategy)


@pytest.mark.parametrize("levels", ["0:2147483647", "-9223372036854775807:9223372036854775807"])
def test_more_levels_than_can_be_counted_are_refused_at_once(levels):
    with pytest.raises(ConfigError, match=r"^levels: expected at most 2147483646 levels, got range"):
        Config(levels=levels)


def test_the_most_levels_cost_nothing_to_configure():
    assert len(Config(levels="0:2147483646").levels) == 2147483646


# ---- plain values

CHANGED = {name: good[0] for name, (_, good, _) in TABLE.items()}


@pytest.mark.parametrize(
    "config",
    [Config(), Config(levels=[3, 1]), Config(levels=range(9, 0, -2), **CHANGED)],
    ids=["defaults", "list", "all changed"],
)
def test_plain_values_go_through_json_and_back(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_fields_take_their_defaults():
    assert Config.from_dict({"alpha": 0.5}) == Config(alpha=0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("temprature", "a field such as temperature"),
        ("staleness-coef", "a field such as staleness_coef"),
        ("preset_", "a field such as preset"),
        ("colour", f"one of {', '.join(FIELDS)}, preset"),
    ],
)
def test_an_unknown_field_is_refused_and_the_nearest_one_named(name, expected):
    with pytest.raises(ConfigError) as raised:
        Config.from_dict({"alpha": 0.5, name: 0.1})
    assert str(raised.value) == f"{name}: expected {expected}, got an unknown name"


def test_an_unknown_keyword_is_a_type_error_that_names_it_as_of_every_dataclass():
    for make in (Config, lambda **fields: Config.preset("robust", **fields)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            make(temprature=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"curricula": {"maze": {"temprature": 0.1}, "eval": {}}},
            "[curricula.maze] temprature: expected a field such as temperature, got an unknown name",
        ),
        (
            {"curricula": {"maze": {"alpha": 0.5}, "eval": {"alpha": 2.0}}},
            "[curricula.eval] alpha: expected a number above 0, up to 1, got 2.0",
        ),
        ({"alpha": 2.0, "curricula": {"maze": {}}}, "alpha: expected a number above 0, up to 1, got 2.0"),
        (
            {"curriculum": {"maze": {}}},
            "curriculum: expected a field such as curricula, got an unknown name",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_the_table(fields, message):
    with pytest.raises(ConfigError) as raised:
        named_configs(fields)
    assert str(raised.value) == message


def test_a_table_is_not_blamed_for_what_was_said_over_it():
    with pytest.raises(ConfigError, match=r"^alpha: expected a number above 0, up to 1, got 3.0$"):
        named_configs({"curricula": {"maze": {"alpha": 0.5}}}, {"alpha": 3.0})


# ---- fields that change nothing

# What makes a field useless, the field with a value of its own, and why.
USELESS = [
    ({"strategy": "random"}, field, value, "random draws from all levels alike")
    for field, value in [
        ("transform", "power"),
        ("temperature", 0.5),
        ("eps", 0.5),
        ("staleness_coef", 0.9),
        ("staleness_temperature", 0.5),
        ("replay_schedule", "fixed"),
        ("replay_prob", 0.5),
        ("min_fill_ratio", 0.5),
        ("max_in_flight", 1),
    ]
] + [
    ({"strategy": "sequential"}, "seed", 5, "sequential draws nothing at random"),
    ({"strategy": "sequential"}, "staleness_coef", 0.5, "sequential draws from all levels alike"),
    ({"strategy": "uniform"}, "transform", "power", "uniform replays all seen levels alike"),
    ({"strategy": "uniform", "levels": "unbounded", "capacity": 5}, "transform", "power", "uniform replays all"),
    ({"staleness_coef": 1.0}, "temperature", 2.0, "under staleness_coef 1 no level is drawn by its score"),
    ({"staleness_coef": 1.0, "levels": "unbounded", "capacity": 5}, "transform", "match", "under staleness_coef 1"),
    ({"staleness_coef": 0.0}, "staleness_temperature", 2.0, "under staleness_coef 0 staleness does not count"),
    ({"transform": "max"}, "temperature", 2.0, "the transform max has no temperature"),
    ({"transform": "eps_greedy"}, "temperature", 2.0, "the transform eps_greedy has no temperature"),
    ({}, "eps", 0.5, "it belongs to the transform eps_greedy"),
    ({}, "min_fill_ratio", 0.5, "it belongs to the replay_schedule fixed"),
    ({}, "window", 3, "it belongs to the strategies learnability and tscl"),
    ({}, "capacity", 3, "it belongs to the levels unbounded and payloads"),
    ({"strategy": "learnability"}, "alpha", 0.5, "learnability remembers by its window; only push_scores reads alpha"),
    ({"strategy": "tscl"}, "alpha", 0.5, "tscl remembers by its window; only push_scores reads alpha"),
    ({"strategy": "tscl"}, "max_score_coef", 0.5, "tscl gives the steps of an episode no scores"),
    ({"strategy": "uniform"}, "max_score_coef", 0.5, "uniform gives the steps of an episode no scores"),
    ({"strategy": "min_margin"}, "gamma", 0.5, "min_margin discounts nothing"),
    ({"strategy": "maxmc"}, "gae_lambda", 0.5, "maxmc discounts nothing"),
    ({"strategy": "learnability"}, "gamma", 0.5, "learnability discounts nothing"),
    ({"strategy": "one_step_td_error"}, "gae_lambda", 0.5, "one_step_td_error has none"),
    ({"strategy": "alt_advantage_abs"}, "gae_lambda", 0.5, "alt_advantage_abs has none"),
    ({"strategy": "external"}, "num_steps", 3, "external takes scores, and no rollouts"),
    ({"strategy": "external"}, "partial", "stitch", "external takes scores, and no rollouts"),
]


def lived(config):
    """What a curriculum of this configuration draws and scores in a run that is the same for all of them."""
    curriculum, rng, drawn = Curriculum(config), np.random.default_rng(1), []
    for _ in range(30):
        levels = [assignment.level for assignment in curriculum.sample(4)]
        drawn += levels
        if config.strategy == "external":
            curriculum.update_scores(levels, rng.random(4))
            continue
        block = np.broadcast_to(levels, (8, 4))
        dones = rng.random((8, 4)) < 0.2
        dones[-1] = True
        logits = {"logits": rng.normal(size=(8, 4, 3))} if config.strategy == "min_margin" else {}
        values, rewards = rng.normal(size=(8, 4)), rng.random((8, 4)) - 0.7
        curriculum.update(values, rewards, dones, block, rng.normal(size=4), **logits)
    return drawn, [part.tolist() for part in (*curriculum.scores(), curriculum.weights())]


@pytest.mark.parametrize(("fields", "name", "value", "why"), USELESS)
def test_a_field_that_changes_nothing_is_told_and_changes_nothing(fields, name, value, why):
    fields = {"levels": range(12)} | fields
    without, config = Config(**fields), Config(**fields | {name: value})
    told = config.without_effect()
    assert told.keys() - without.without_effect().keys() == {name}
    assert told[name].startswith(why)
    assert lived(config) == lived(without)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        *({"preset": name} for name in PRESETS),
        {"strategy": "my_scores:fitness", "gamma": 0.5, "gae_lambda": 0.5, "max_score_coef": 0.5, "alpha": 0.5},
        {"strategy": "maxmc", "max_score_coef": 0.5, "partial": "stitch", "num_steps": 7, "robust": True},
        {"strategy": "learnability", "window": 5, "temperature": 0.5, "staleness_temperature": 2.0, "seed": 3},
        {"transform": "eps_greedy", "eps": 0.5, "replay_schedule": "fixed", "min_fill_ratio": 0.5, "max_in_flight": 2},
        {"levels": "unbounded", "capacity": 7, "strategy": "gae", "gamma": 0.5, "gae_lambda": 0.5},
        {"strategy": "external", "alpha": 0.5, "transform": "power"},
    ],
)
def test_what_may_change_something_is_not_told(fields):
    assert Config.from_dict(fields).without_effect() == {}
