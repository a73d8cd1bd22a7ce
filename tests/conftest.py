"""Addresses for the tests, and servers that several tests share."""

from __future__ import annotations

import signal
import sys

import hypothesis
import pytest

from plr_client import Trainer
from plr_server import Config, launch

# Where it was started with this ignored, as a shell's background jobs are, tests that interrupt could not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure; and a commit has one verdict, on every machine. make test-explore draws fresh examples.
hypothesis.settings.register_profile(
    "same", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.register_profile("fresh", hypothesis.settings.get_profile("same"), derandomize=False)
hypothesis.settings.load_profile("same")


@pytest.fixture
def ipc(tmp_path):
    """An ipc address at which nothing listens yet."""
    return f"ipc://{tmp_path}/plr.sock"


@pytest.fixture(params=["ipc", "tcp"])
def bind(request, tmp_path):
    """What a server binds to, once as ipc and once as tcp."""
    return f"ipc://{tmp_path}/plr.sock" if request.param == "ipc" else "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def server():
    """A server of the levels 0 to 9 for the tests of one module, which must not rely on its state."""
    with launch(Config(levels=range(10), num_steps=3)) as running:
        yield running


@pytest.fixture
def trainer(server):
    with Trainer(server.address, timeout_s=20.0) as connected:
        yield connected


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Makes a module of a name and a text that can be imported, afresh, until the test is over."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make
