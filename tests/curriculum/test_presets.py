"""plr_server/curriculum/presets.py: what each preset is, and that whatever is said beside it wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr_client import ConfigError
from plr_server import Config
from plr_server.curriculum.config import named_configs
from plr_server.curriculum.presets import PRESETS

ROBUST = {
    "strategy": "positive_value_loss",
    "temperature": 0.3,
    "staleness_coef": 0.3,
    "replay_schedule": "fixed",
    "min_fill_ratio": 0.5,
    "robust": True,
}
EXPECTED = {
    "paper-procgen": Config(strategy="value_l1", transform="rank", temperature=0.1, staleness_coef=0.1),
    "learnability": Config(strategy="learnability", transform="power", temperature=1.0, staleness_coef=0.3),
    "robust": Config(**ROBUST, replay_prob=0.5),
    "accel": Config(**ROBUST, replay_prob=0.8, levels="payloads", capacity=4000),
}


def test_each_is_what_it_says():
    assert {name: Config.preset(name) for name in PRESETS} == EXPECTED
    assert {name: Config.from_dict({"preset": name}) for name in PRESETS} == EXPECTED
    assert all(preset.source and preset.measured for preset in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_field_that_is_said_wins_over_the_presets(name):
    for field, value in {"temperature": 0.7, "levels": range(3), "strategy": "maxmc", "robust": True}.items():
        assert getattr(Config.preset(name, **{field: value}), field) == value
        assert getattr(Config.from_dict({field: value, "preset": name}), field) == value
    assert Config.preset("learnability", temperature=0.7).transform == "power"
    assert Config.preset("robust", robust=False).robust is False


@pytest.mark.parametrize("name", ["paper", "", None, 3, ["accel"]])
def test_an_unknown_one_is_refused_by_name(name):
    for make in (Config.preset, lambda name: Config.from_dict({"preset": name})):
        with pytest.raises(ConfigError) as raised:
            make(name)
        assert str(raised.value) == f"preset: expected one of {', '.join(PRESETS)}, got {name!r}"


def test_a_wrong_field_beside_it_is_refused():
    with pytest.raises(ConfigError, match=r"^temperature: expected a finite number above 0, got 0"):
        Config.preset("accel", temperature=0)


def test_each_curriculum_of_a_server_may_have_its_own():
    fields = {"preset": "robust", "alpha": 0.5, "curricula": {"a": {}, "b": {"preset": "learnability"}}}
    robust, learnability = Config.preset("robust", alpha=0.5), Config.preset("learnability", alpha=0.5)
    assert named_configs(fields) == {"a": robust, "b": learnability}
    assert named_configs(fields, {"preset": "learnability"}) == {"a": learnability, "b": learnability}


def test_the_page_about_choosing_shows_them():
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text()
    for name, preset in PRESETS.items():
        assert f"| `{name}` | " in page
        if name != "accel":  # "as robust, but"
            said = ", ".join(f"{field}={value!r}" for field, value in preset.fields.items()).replace("'", '"')
            assert f"| `{name}` | `{said}`" in page
