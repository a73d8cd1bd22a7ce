"""launch: a server in a process of its own, from Python, as a context manager.

For users, tests and examples. The process runs the same command as `plr-server serve`; it ends with the context, and by
itself when the process that launched it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from plr_client.address import MAX_IPC_PATH
from plr_client.errors import ConfigError, ServerStartError, from_wire
from plr_client.protocol import DEFAULT_CURRICULUM
from plr_server.curriculum.config import Config
from plr_server.durability.state_dir import FSYNC

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
SOCKET_NAME = "plr.sock"


class Server:
    """A running server process.

    Attributes:
        address: where clients connect.
        process: the process.
    """

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.process = process

    def stop(self) -> None:
        """Has the server finish and end; kills it where it does not within 10 s. May be called twice."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def launch(
    config: Config | Mapping[str, Config],
    address: str | None = None,
    *,
    keys: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    allow_pickle: bool = False,
    state_dir: str | os.PathLike[str] | None = None,
    fsync: str = "interval",
    take_over: bool = False,
) -> Iterator[Server]:
    """Runs a server for as long as the context lasts.

    Args:
        config: the curriculum's configuration; or several by name, each a curriculum of its own in the one server.
        address: `ipc://PATH` or `tcp://127.0.0.1:PORT` (0 for a free port); by default an ipc path in a new folder
            that only this user can enter.
        keys: a folder that `plr-server keygen` made: clients need one of its keys (`keys=` of theirs), and may do what
            its role may.
        insecure: allow a tcp address beyond loopback without keys, where whoever reaches it may read and change the
            curriculum.
        allow_pickle: take score functions from clients (`Trainer.set_score_function`): whoever can connect, or with
            keys whoever is an operator, can then run code in the server.
        state_dir: the folder that the state lives in: a server started on it goes on where the last one ended, however
            that was. By default the state lives in memory.
        fsync: when a command is on the disk: "always" before its reply, "interval" within about a second, "never" when
            the system sees fit.
        take_over: take the state directory over where another server has it, which then ends; see docs/reliability.md.

    Yields:
        The server, with its `address`. It ends with the context, and when this process dies, however it dies.

    Raises:
        ConfigError: a flag is no bool, or a path none; the address is not one that may be served, or not without `keys`
            or `insecure`, or with `allow_pickle`; there is no such way to sync; the keys cannot be read; or the
            strategy names a function that the server cannot import. It looks in this process's working directory and on
            PYTHONPATH.
        AddressTaken: something already listens there.
        StateDirTaken, StateDamaged, StateDiverged: the state directory cannot be gone on with.
        ServerStartError: the server did not start.

    >>> from plr_client import LevelClient
    >>> with launch(Config(levels=range(3), strategy="sequential")) as server, LevelClient(server.address) as client:
    ...     [assignment.level for assignment in client.next(4)]
    [0, 1, 2, 0]
    """
    bind: tuple[str, ...]
    owner = os.getpid()
    flags = {"insecure": insecure, "allow_pickle": allow_pickle, "take_over": take_over}
    for name, said in flags.items():
        if not isinstance(said, bool):  # "no" would allow it
            raise ConfigError(name, "True or False", f"{said!r:.80}")
    for name, where in {"address": address, "keys": keys, "state_dir": state_dir}.items():
        if not isinstance(where, str | os.PathLike | None):
            raise ConfigError(name, "a str or a path", f"{where!r:.80}")
    if fsync not in FSYNC:
        raise ConfigError("fsync", f"one of {', '.join(FSYNC)}", repr(fsync))
    if state_dir is None and (fsync != "interval" or take_over):
        beside = "take_over" if take_over else f"fsync={fsync!r}"
        raise ConfigError("state_dir", f"a folder beside {beside}", "none: the state would be in memory")
    with contextlib.ExitStack() as stack:
        if address is None:
            folder = _new_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            bind = ("--bind", f"ipc://{folder}/{SOCKET_NAME}", "--own-folder")
        else:
            bind = ("--bind", address)
        named = {DEFAULT_CURRICULUM: config} if isinstance(config, Config) else config
        if not (isinstance(named, Mapping) and all(isinstance(one, Config) for one in named.values())):
            raise ConfigError("config", "a Config, or a dict from names to Configs", f"{config!r:.80}")
        kept = () if state_dir is None else ("--state-dir", os.fspath(state_dir), "--fsync", fsync)
        closed = () if keys is None else ("--keys", os.fspath(keys))
        options = (*bind, *kept, *closed, *(f"--{flag.replace('_', '-')}" for flag, said in flags.items() if said))
        server = _start({"curricula": {name: one.to_dict() for name, one in named.items()}}, options)
        stack.callback(server.stop)
        try:
            yield server
        finally:
            if os.getpid() != owner:  # in a forked child: the server is its parent's business
                stack.pop_all()


def _new_folder() -> str:
    """Makes a folder that only this user enters (0700), not where the path of a socket would be too long."""
    folder = tempfile.mkdtemp(prefix="plr-")
    if len(os.fsencode(f"{folder}/{SOCKET_NAME}")) > MAX_IPC_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="plr-", dir="/tmp")
    return folder


def _start(fields: dict[str, Any], options: tuple[str, ...]) -> Server:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as ready:
        try:
            process = subprocess.Popen(  # noqa: S603  our own command
                [
                    *(sys.executable, "-m", "plr_server", "serve", "--config-json", "-", *options),
                    *("--parent-pid", str(os.getpid()), "--ready-fd", str(write)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(write,),
                start_new_session=True,  # a Ctrl-C in the terminal is for the trainer, which then stops the server
            )
        finally:
            os.close(write)
        try:
            return Server(_await_ready(process, ready, fields), process)
        except BaseException:  # an interrupt too must leave nothing behind
            Server("", process).stop()
            raise


def _await_ready(process: subprocess.Popen[bytes], ready: BinaryIO, fields: dict[str, Any]) -> str:
    """Hands the configuration to a starting server and returns the address that it says it listens on."""
    assert process.stdin is not None  # noqa: S101  narrows the type
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(fields).encode())
    poll = select.poll()  # not select(), which knows no more than 1024 open files
    poll.register(ready, select.POLLIN)
    line = ready.readline() if poll.poll(1000 * START_TIMEOUT_S) else b""
    if not line:
        process.kill()
        raise ServerStartError(f"expected a ready server within {START_TIMEOUT_S:g} s, got exit code {process.wait()}")
    said = json.loads(line)
    if "error" in said:
        raise from_wire(*said["error"])
    return str(said["address"])
