"""A wheel built from this tree and installed elsewhere has the page in it. Run by `make test-browser`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs hatchling: make test-browser")
ROOT = Path(__file__).parents[2]


def run(*words, cwd):
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=True, timeout=300).stdout  # noqa: S603  our own


def test_a_wheel_has_the_page_and_the_licence_of_what_it_ships(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    static = ROOT / "plr_server" / "viewer" / "static"
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        for file in static.iterdir():
            assert packed.read(f"plr_server/viewer/static/{file.name}") == file.read_bytes()
        assert any(name.endswith("licenses/plr_server/viewer/static/uPlot.LICENSE") for name in names)
    installed = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed))
    run(*pip, str(wheel), cwd=tmp_path)
    page = "import sys; sys.path.insert(0, '.'); from plr_server.viewer import web; "
    page += "print(web.__file__); print(len(web.whole_page({})))"
    where, size = run(sys.executable, "-I", "-c", page, cwd=installed).split()
    assert Path(where).is_relative_to(installed)
    assert int(size) > 50_000
