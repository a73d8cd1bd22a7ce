"""What the README shows runs as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import plr_server
from plr_server import __main__ as command_line

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_first_example_runs(monkeypatch):
    launched = []

    def launch(config):
        context = plr_launch(config)
        launched.append(config)
        return context

    plr_launch = plr_server.launch
    monkeypatch.setattr(plr_server, "launch", launch)
    code = re.search(r"```python\n(import gymnasium.*?)```", README, re.DOTALL).group(1)
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)  # noqa: S102  it is our own
    assert [config.levels for config in launched] == [range(200)]
    assert scope["envs"].levels.shape == (8,)


def test_the_map_names_every_module_and_room_and_a_room_its_modules():
    root = Path(__file__).parents[1]
    for folder in ("plr_client", "plr_server", "wrappers"):
        for module in (root / folder).glob("[a-z]*.py"):
            assert re.search(rf"\b{module.stem}\b", README), f"{folder}/{module.name} is not in the README's map"
    for room in (root / "plr_server").rglob("[a-z]*/__init__.py"):
        house = room.parents[1]
        told = (
            README if house.name == "plr_server" else ast.get_docstring(ast.parse((house / "__init__.py").read_text()))
        )
        assert f"{room.parent.name}/" in told, f"{room.parent} is on no map"
        words = ast.get_docstring(ast.parse(room.read_text()))
        for module in room.parent.glob("[a-z]*.py"):
            assert re.search(rf"\b{module.stem}\b", words), f"{module} is not named in its room's docstring"


def test_the_commands_it_shows_parse():
    for line in re.findall(r"\$ plr-server (.*)", README):
        command_line._parser().parse_args(line.split())


def test_no_two_test_files_share_a_name():
    names = [path.name for path in Path(__file__).parent.rglob("*.py")]
    assert len(set(names)) == len(names)  # or one pytest command could not run both
