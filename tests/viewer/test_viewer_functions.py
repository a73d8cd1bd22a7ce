"""plr_server/viewer/functions.py: the user's functions are found, or refused by name, and end nothing."""

from __future__ import annotations

import pytest

from plr_client import ConfigError
from plr_server.viewer.functions import OfLevel

MODULE = """
def rooms(level):
    return level // 10
def broken(level):
    raise RuntimeError(f"no level {level}")
number = 5
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "of_levels.py").write_text(MODULE)
    (tmp_path / "not_whole.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("functions")
def test_it_is_called_with_the_level_and_its_result_is_handed_on():
    assert OfLevel("group", "of_levels:rooms")(57, str) == "5"


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("of_levels:houses", "of_levels:houses (AttributeError: "),
        ("of_levels", "of_levels (AttributeError: "),
        ("nowhere:rooms", "nowhere:rooms (ModuleNotFoundError: "),
        ("not_whole:rooms", "not_whole:rooms (ZeroDivisionError: "),
        (":rooms", ":rooms (ValueError: "),
        ("of_levels:number", "of_levels:number, which is a int"),
    ],
)
def test_what_is_no_function_is_refused(name, got):
    with pytest.raises(ConfigError) as raised:
        OfLevel("render", name)
    assert raised.value.field == "render"
    assert raised.value.got.startswith(got)


@pytest.mark.usefixtures("functions")
def test_what_it_raises_is_said_once_and_ends_nothing(caplog):
    broken = OfLevel("group", "of_levels:broken")
    assert [broken(level, str) for level in (3, 4)] == [None, None]
    assert caplog.messages == ["of_levels:broken failed for level 3: RuntimeError: no level 3"]
    rooms = OfLevel("group", "of_levels:rooms")
    assert rooms(10, lambda _: 1 // 0) is None
    assert rooms(10, str) == "1"
