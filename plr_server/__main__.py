"""The command line: reads arguments, prints, leaves the work to the rest."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr_client.address import MAX_PORT
from plr_client.errors import ConfigError, PlrError, counted
from plr_client.protocol import DEFAULT_CURRICULUM, MAX_FRAME_BYTES
from plr_client.trainer import Trainer
from plr_server.curriculum.config import Config, named_configs
from plr_server.curriculum.presets import PRESETS
from plr_server.curriculum.state_machine import Curriculum
from plr_server.durability.recovery import History, read_history
from plr_server.durability.state_dir import FSYNC, StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.keys import make_key, read_keys
from plr_server.serving.loop import serve
from plr_server.serving.restart import configs_of, replay
from plr_server.serving.roles import ROLES
from plr_server.viewer.watch import table, watch

if TYPE_CHECKING:
    from plr_server.viewer.watched import Functions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger("plr_server")

DEFAULT_BIND = "tcp://127.0.0.1:5555"
DEFAULT_VIEW_PORT = 8787
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: those of the command line; by default the process's own.

    Returns:
        The exit code: 0, 1 after printing what was wrong (2 where argparse refuses the arguments), or 130 after
        Ctrl-C. Of `check-env`: 0 where the env is fine, 1 where it is not, 2 where there is no such env.
    """
    options, unknown = _parser().parse_known_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if unknown:
        options.parser.error(_unrecognized(unknown, options.parser.format_help()))
    commands = {
        "serve": _serve,
        "stats": _stats,
        "view": _view,
        "top": _top,
        "keygen": _keygen,
        "inspect": _inspect,
        "replay": _replay,
        "check-env": _check_env,
    }
    try:
        return commands[options.command](options)
    except PlrError as error:
        print(f"plr-server: {error}", file=sys.stderr)
        return 2 if options.command == "check-env" else 1
    except KeyboardInterrupt:
        return 130  # as a shell says of a command that SIGINT ended


def _unrecognized(words: Sequence[str], help_text: str) -> str:
    """Says that words are no options of a command, and which of those in its help each resembles."""
    known = set(re.findall(r"--[a-z][a-z-]*", help_text))
    asked = (word.partition("=")[0] for word in words if word.startswith("--"))
    nearest = [near for word in asked for near in difflib.get_close_matches(word, known, 1)]
    return f"unrecognized arguments: {' '.join(words)}" + (f" (did you mean {', '.join(nearest)}?)" if nearest else "")


def _joined(arguments: Sequence[str]) -> list[str]:
    """Joins `--levels -5:5` to `--levels=-5:5`: argparse takes what begins with a minus for an option."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] == "--levels" and word[:1] == "-" and word[1:2].isdigit():
            joined[-1] = f"--levels={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plr-server", description="A Prioritized Level Replay curriculum server.")
    parser.add_argument("--version", action="version", version=f"plr-server {version('plr-server')}")
    commands = parser.add_subparsers(dest="command", required=True)

    serving = commands.add_parser(
        "serve",
        help="serve a curriculum until SIGINT or SIGTERM",
        description="Serves a curriculum until SIGINT or SIGTERM. Prints 'plr-server ready at ADDRESS' once clients "
        "can connect. An option on the command line wins over the same field in the TOML file, in "
        "every curriculum.",
    )
    serving.add_argument(
        "--bind",
        default=DEFAULT_BIND,
        metavar="ADDRESS",
        help="ipc://PATH, or tcp://HOST:PORT with port 0 for a free one (default: %(default)s)",
    )
    serving.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="ask clients for a key: a folder that plr-server keygen made. SIGHUP has its list read again (default: "
        "whoever reaches the address may do everything)",
    )
    serving.add_argument(
        "--insecure",
        action="store_true",
        help="allow a tcp address beyond loopback without --keys: whoever reaches it may change everything",
    )
    serving.add_argument(
        "--allow-pickle",
        action="store_true",
        help="take score functions from clients (Trainer.set_score_function): whoever can connect, with --keys "
        "whoever is an operator, can then run code as this process; never without keys beyond loopback",
    )
    serving.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="the folder that the state lives in: a server started on it goes on where the last one ended, however "
        "that was (default: in memory, and every start is afresh)",
    )
    serving.add_argument(
        "--fsync",
        choices=FSYNC,
        help="with --state-dir, when a command is on the disk: always (before its reply), interval (within about a "
        "second) or never (when the system sees fit) (default: interval)",
    )
    serving.add_argument(
        "--accept-loss",
        action="store_true",
        help="with --state-dir, go on from what can be trusted of a damaged folder; the rest is kept as .broken",
    )
    serving.add_argument(
        "--take-over",
        action="store_true",
        help="with --state-dir, take the folder over where another server has it, as on a machine that was cut off: "
        "that one notices before it acknowledges anything more, and ends",
    )
    serving.add_argument(
        "--max-frame-bytes",
        type=int,
        default=MAX_FRAME_BYTES,
        metavar="BYTES",
        help="the largest array taken from a client (default: %(default)s)",
    )
    serving.add_argument(
        "--config",
        metavar="FILE",
        help='a TOML file of the fields below, such as: levels = "0:200". Tables [curricula.NAME] make several, '
        "each with fields of its own over those at the top",
    )
    serving.add_argument(
        "--view",
        type=_port,
        metavar="PORT",
        help="show what happens at http://127.0.0.1:PORT/ as well, as plr-server view does, in a process of its own",
    )
    serving.add_argument("--config-json", help=argparse.SUPPRESS)  # "-": from standard input; how launch() calls
    serving.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    serving.add_argument("--parent-pid", type=int, help=argparse.SUPPRESS)
    serving.add_argument("--own-folder", action="store_true", help=argparse.SUPPRESS)  # goes with the socket
    fields = serving.add_argument_group("configuration of the curriculum")
    fields.add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help=f"fields that belong together; whatever else is said, here or in the file, wins. {_presets()}",
    )
    docs = Config.docs()
    for field in dataclasses.fields(Config):
        default = "0:200" if field.name == "levels" else field.default
        flag: dict[str, Any] = {"type": type(field.default), "metavar": field.name.upper().rpartition("_")[2]}
        if isinstance(field.default, range):
            flag["type"] = str
        elif isinstance(field.default, bool):
            flag = {"action": argparse.BooleanOptionalAction}
        fields.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{docs[field.name]} (default: {default})".replace("%", "%%"),
            **flag,
        )

    stats = commands.add_parser("stats", help="print what a running server has done so far")
    stats.add_argument("address", metavar="ADDRESS", help="where the server listens")
    stats.add_argument(
        "--curriculum", default=DEFAULT_CURRICULUM, metavar="NAME", help="which one, where the server has several"
    )
    _add_keys(stats)
    stats.add_argument("--json", action="store_true", help="print one JSON object")
    stats.add_argument(
        "--watch", action="store_true", help="again and again, with rates, until Ctrl-C; with --json an object a line"
    )
    stats.add_argument(
        "--timeout-s", type=float, default=5.0, help="seconds to wait for the server (default: %(default)s)"
    )

    _add_view(commands)
    watching = commands.add_parser(
        "top",
        help="show in a terminal what a server does",
        description="Shows what plr-server view shows, in a terminal: the verdict, the course of the run, and the "
        "level table, which can be sorted and searched. Needs textual: the extra 'top'.",
    )
    watching.add_argument("address", metavar="ADDRESS", help="where the server listens")
    _add_keys(watching)
    _add_keygen(commands)
    _add_state_dir(commands)
    _add_check_env(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _presets() -> str:
    return " ".join(
        f"{name}: {', '.join(f'{field} {value}' for field, value in preset.fields.items())}. Source: {preset.source}. "
        f"Measured: {preset.measured}."
        for name, preset in PRESETS.items()
    )


def _add_view(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    viewing = commands.add_parser(
        "view",
        help="show in a browser what a server does",
        description="Shows at http://127.0.0.1:PORT/ what a running server does, until SIGINT or SIGTERM; or what it "
        "did, where it is given the file of a --history. It is one more client of the server, which does not feel it, "
        "and may be started and stopped at any time.",
    )
    viewing.add_argument("source", metavar="ADDRESS|FILE", help="where the server listens, or a file of --history")
    viewing.add_argument(
        "--port", type=_port, default=DEFAULT_VIEW_PORT, help="of the page; 0: a free one (default: %(default)s)"
    )
    _add_keys(viewing)
    viewing.add_argument("--open", action="store_true", help="open the page in the default browser")
    viewing.add_argument(
        "--history", type=Path, metavar="FILE", help="keep the past in a file, and go on from it where it is there"
    )
    viewing.add_argument(
        "--group",
        metavar="MODULE:FUNCTION",
        help="a function from a level, its id or its payload, to its group, such as its number of rooms: shows what "
        "each group gets and returns",
    )
    viewing.add_argument(
        "--render",
        metavar="MODULE:FUNCTION",
        help="a function from a level, its id or its payload, to an RGB array (height, width, 3): shows what levels "
        "look like",
    )
    viewing.add_argument("--parent-pid", type=int, help=argparse.SUPPRESS)


def _add_keys(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keys",
        metavar="FILE",
        help="the key file of a trainer or an operator, where the server asks for keys (default: what PLR_KEYS names)",
    )


def _add_keygen(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    roles = "; ".join(f"{role}: {what}" for role, what in ROLES.items())
    making = commands.add_parser(
        "keygen",
        help="make the key of a client, or list who may do what",
        description="Makes DIR/NAME.key, the one file that a client needs to connect to plr-server serve --keys DIR: "
        "copy it to the client's machine. On first use it makes the server's own pair in DIR too. Without --name it "
        "lists who may do what. To withdraw a key, take its line out of DIR/clients.txt. A running server reads that "
        "file again at SIGHUP.",
    )
    making.add_argument("folder", type=Path, metavar="DIR", help="what the server is given as --keys")
    making.add_argument("--name", help="of the client: letters, digits, dots, underscores and hyphens")
    making.add_argument("--role", choices=tuple(ROLES), help=roles)


def _add_state_dir(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspecting = commands.add_parser(
        "inspect",
        help="show what a state directory holds",
        description="Reads a state directory, whether a server uses it or not, checks every checksum in it, and prints "
        "what is there. The exit code is 1 where something is damaged.",
    )
    inspecting.add_argument("folder", type=Path, metavar="DIR", help="what a server was given as --state-dir")
    inspecting.add_argument("--json", action="store_true", help="print one JSON object")
    inspecting.add_argument("--verify", action="store_true", help="print damage alone, as a cron job wants it")

    replaying = commands.add_parser(
        "replay",
        help="rebuild the state at any command that a state directory holds",
        description="Reads a state directory, whether a server uses it or not, applies its commands again up to one of "
        "them, and prints what a server would have said of its curricula then.",
    )
    replaying.add_argument("folder", type=Path, metavar="DIR", help="what a server was given as --state-dir")
    replaying.add_argument(
        "--until", type=int, metavar="N", help="up to the N-th command, none before the newest snapshot (default: all)"
    )
    replaying.add_argument("--json", action="store_true", help="print one JSON object")
    replaying.add_argument("--allow-pickle", action="store_true", help="load a score function that a client has sent")


def _add_check_env(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    checking = commands.add_parser(
        "check-env",
        help="check that in an env a level determines the episode",
        description="Plays levels of an env three times under the same actions, and says whether observations, rewards "
        "and ends repeat, whether state leaks from one episode into the next, and how many levels are distinct. The "
        "exit code is 0 where the env is fine, 1 where it is not, and 2 where there is no such env.",
    )
    checking.add_argument(
        "env_id",
        metavar="ENV_ID",
        help="an env registered with Gymnasium; MODULE:ENV_ID, registered by importing the module; or MODULE:FACTORY, "
        "what makes an env or a vector env of one",
    )
    checking.add_argument(
        "--kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="arguments of the env or its factory, such as '{\"size\": 8}'",
    )
    checking.add_argument(
        "--levels", default="0:50", help="START:STOP, START:STOP:STEP or ids: the seeds to play (default: %(default)s)"
    )
    checking.add_argument(
        "--steps", type=int, default=200, help="how long to play an episode that does not end (default: %(default)s)"
    )
    checking.add_argument("--seed", type=int, default=0, help="of the actions (default: %(default)s)")
    checking.add_argument("--json", action="store_true", help="print one JSON object")


def _serve(options: argparse.Namespace) -> int:
    level = logging.INFO if options.parent_pid is None else logging.WARNING  # launched: the terminal is the trainer's
    logging.basicConfig(format="plr-server: %(message)s", level=level, stream=sys.stderr)

    def say(message: dict[str, Any]) -> None:
        if options.ready_fd is not None:
            with os.fdopen(options.ready_fd, "w") as ready:
                print(json.dumps(message), file=ready)
            options.ready_fd = None  # closed; another file may have its number

    def ready(address: str) -> None:
        served = [f"{_levels(c)}, {c.strategy}, {c.transform}" for c in configs.values()]
        if len(configs) > 1:
            served = [f"{name}: {what}" for name, what in zip(configs, served, strict=True)]
        print(f"plr-server ready at {address} ({'; '.join(served)})", flush=True)
        say({"address": address})
        if options.view is not None:
            viewers.enter_context(_viewer(address, options.view, viewer_keys))

    viewers = contextlib.ExitStack()
    viewer_keys = None
    try:
        if options.view is not None:
            _check_free(options.view, options.bind)
            viewer_keys = None if options.keys is None else _viewer_keys(options.keys)
        configs = _configs(options)
        _warn_of_what_has_no_effect(configs)
        if any(":" in config.strategy for config in configs.values()):
            _find_modules_here()
        serve(
            {name: Curriculum(config) for name, config in configs.items()},
            options.bind,
            keys=options.keys,
            insecure=options.insecure,
            allow_pickle=options.allow_pickle,
            max_frame_bytes=options.max_frame_bytes,
            parent_pid=options.parent_pid,
            log=_state_dir(options),
            ready=ready,
        )
    except PlrError as error:
        say({"error": error.to_wire()})
        raise
    finally:
        viewers.close()
        if options.own_folder:
            with contextlib.suppress(OSError):
                Path(options.bind.removeprefix("ipc://")).parent.rmdir()
    return 0


@contextlib.contextmanager
def _viewer(address: str, port: int, keys: Path | None) -> Iterator[None]:
    """Runs `plr-server view` beside the server; it ends with the context, and when this process dies."""
    command = [sys.executable, "-m", "plr_server", "view", address, "--port", str(port), "--keys", str(keys or "")]
    with subprocess.Popen(  # noqa: S603  our own command
        [*command, "--parent-pid", str(os.getpid())], start_new_session=True
    ) as process:
        yield
        process.terminate()


def _check_free(port: int, bind: str) -> None:
    """Refuses a port that the page beside a server cannot have, before there is a server without it."""
    if port and bind.endswith(f":{port}"):
        raise ConfigError("view", "another port than that of --bind", str(port))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise ConfigError("view", "a free port for the page (0 takes any)", f"{port} ({exc.strerror})") from exc


def _warn_of_what_has_no_effect(configs: Mapping[str, Config]) -> None:
    """Says what was set in vain. It is not refused: who tries one strategy after the other changes that field alone."""
    for name, config in configs.items():
        table = "" if name == DEFAULT_CURRICULUM else f"[curricula.{name}] "
        for field, why in config.without_effect().items():
            logger.warning("%s%s: %s changes nothing: %s", table, field, getattr(config, field), why)


def _viewer_keys(folder: Path) -> Path:
    """Returns the key file of the page beside the server, made where it is not there yet."""
    read_keys(folder)  # only beside the keys of others
    path = folder / "viewer.key"
    return path if path.exists() else make_key(folder, name="viewer", role="trainer")


def _keygen(options: argparse.Namespace) -> int:
    if options.name is None and options.role is None:
        for client in read_keys(options.folder).clients.values():
            print(f"{client.name}: {client.role}, {ROLES[client.role]}")
        return 0
    if options.name is None or options.role is None:
        missing, given = ("name", "role") if options.name is None else ("role", "name")
        raise ConfigError(missing, f"--{missing} beside --{given}", "none")
    print(make_key(options.folder, name=options.name, role=options.role))
    return 0


def _view(options: argparse.Namespace) -> int:
    from plr_server.viewer.collect import Collector, read_file  # noqa: PLC0415  a server must not pay for the pages
    from plr_server.viewer.web import serve_pages  # noqa: PLC0415

    def ready(url: str) -> None:
        print(f"plr-server view at {url}", flush=True)
        if options.open:
            webbrowser.open(url)

    if "://" in options.source:
        _give_back_memory()
        functions = _functions(options)
        with Collector(options.source, options.history, keys=options.keys, functions=functions) as collector:
            serve_pages(collector, options.port, ready=ready, parent_pid=options.parent_pid)
    elif Path(options.source).exists():
        serve_pages(read_file(Path(options.source)), options.port, ready=ready)
    else:
        expected = "an address, tcp://HOST:PORT or ipc://PATH, or a file that --history wrote"
        raise ConfigError("source", expected, f"{options.source!r}, which is neither")
    return 0


def _give_back_memory() -> None:
    """Has the C library give memory back at once: a page that looks at a million levels needs it for moments only."""
    with contextlib.suppress(AttributeError, OSError):  # another library than glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)  # otherwise it grows with what is freed, up to 32 MiB


def _functions(options: argparse.Namespace) -> Functions:
    """Returns the user's functions that a viewer is to call."""
    from plr_server.viewer.functions import OfLevel  # noqa: PLC0415
    from plr_server.viewer.pictures import Pictures  # noqa: PLC0415
    from plr_server.viewer.watched import Functions  # noqa: PLC0415

    _find_modules_here()
    return Functions(
        group=None if options.group is None else OfLevel("group", options.group),
        render=None if options.render is None else Pictures(OfLevel("render", options.render)),
    )


def _state_dir(options: argparse.Namespace) -> StateDir | None:
    if options.state_dir is None:
        said = {"--fsync": options.fsync, "--accept-loss": options.accept_loss, "--take-over": options.take_over}
        for option in (option for option, value in said.items() if value):
            raise ConfigError("state_dir", f"--state-dir DIR beside {option}", "none: the state would be in memory")
        return None
    fsync = options.fsync or "interval"
    return StateDir(options.state_dir, fsync=fsync, accept_loss=options.accept_loss, take_over=options.take_over)


def _levels(config: Config) -> str:
    if isinstance(config.levels, str):
        return f"{config.levels}, capacity {config.capacity}"
    return counted(len(config.levels), "level")


def _configs(options: argparse.Namespace) -> dict[str, Config]:
    fields: dict[str, Any] = _read_toml(options.config) if options.config else {}
    if options.config_json == "-":
        fields |= json.load(sys.stdin)
    known = (*Config.docs(), "preset")
    return named_configs(fields, {name: value for name, value in vars(options).items() if name in known})


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            fields: dict[str, Any] = tomllib.load(file)
    except (OSError, ValueError) as exc:  # ValueError: no TOML, or no UTF-8
        raise ConfigError("config", f"a TOML file at {path}", str(exc)) from exc
    return fields


def _stats(options: argparse.Namespace) -> int:
    with Trainer(
        options.address, curriculum=options.curriculum, keys=options.keys, timeout_s=options.timeout_s
    ) as trainer:
        if options.watch:
            with contextlib.suppress(BrokenPipeError):  # whoever read it has gone, as `head` does
                watch(trainer, as_json=options.json)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush has no reader
            return 0
        stats = trainer.stats()
    print(json.dumps(stats) if options.json else table(stats))
    return 0


def _top(options: argparse.Namespace) -> int:
    from plr_server.viewer.collect import Collector  # noqa: PLC0415  a server must not pay for it
    from plr_server.viewer.top import Top  # noqa: PLC0415  optional

    if not sys.stdout.isatty():
        raise ConfigError("top", "a terminal (plr-server stats --watch needs none)", "an output that is none")
    with Collector(options.address, keys=options.keys) as collector:
        Top(collector).run()
    return 0


def _inspect(options: argparse.Namespace) -> int:
    history = _history(options)
    if options.json:
        print(json.dumps(history.report()))
    elif not options.verify:
        for name, value in history.report().items():
            for line in value if isinstance(value, list) else [value]:
                print(f"{name:8}  {' '.join(f'{k}={v}' for k, v in line.items()) if isinstance(line, dict) else line}")
    for error in history.damaged.values() if options.verify and not options.json else ():
        print(f"plr-server: {error}", file=sys.stderr)
    return 1 if history.damaged else 0


def _replay(options: argparse.Namespace) -> int:
    history = _history(options)
    for error in history.damaged.values():
        print(f"plr-server: {error}", file=sys.stderr)
    begin, end = history.begin.sequence, history.end.sequence
    until = end if options.until is None else options.until
    if history.state is None:
        raise ConfigError("DIR", "a state directory with a snapshot", f"{options.folder}, where none can be read")
    if not begin <= until <= end:
        expected = f"a command from {begin} (the newest snapshot) to {end} (the newest command)"
        raise ConfigError("until", expected, str(until))
    _find_modules_here()
    configs = configs_of(history)
    dispatcher = Dispatcher(
        {name: Curriculum(config) for name, config in configs.items()},
        max_frame_bytes=MAX_FRAME_BYTES,
        allow_pickle=options.allow_pickle,
    )
    replay(dispatcher, history, until=until)
    stats = {name: curriculum.stats() for name, curriculum in dispatcher.curricula.items()}
    if options.json:
        print(json.dumps({"commands": until, "curricula": stats}))
    else:
        print(f"after {until} of {counted(end, 'command')}")
        for name, each in stats.items():
            print(f"{name}:\n{table(each)}")
    return 0


def _history(options: argparse.Namespace) -> History:
    try:
        history = read_history(options.folder)
    except OSError as exc:
        raise ConfigError("DIR", "a state directory that can be read", f"{options.folder} ({exc.strerror})") from exc
    if not history.generation:  # a server that has started on it leaves files at once
        raise ConfigError("DIR", "a state directory", f"{options.folder}, which has no journal and no snapshot")
    return history


def _check_env(options: argparse.Namespace) -> int:
    from plr_server.check_env import check_env, env_maker  # noqa: PLC0415  a server must not pay for Gymnasium

    levels = Config(levels=options.levels).levels
    if isinstance(levels, str):
        raise ConfigError("levels", "seeds, as START:STOP or 3,14,15", levels)
    _find_modules_here()
    with contextlib.redirect_stdout(sys.stderr):  # some envs print
        make = env_maker(options.env_id, options.kwargs)
        report = check_env(make, levels, max_steps=options.steps, seed=options.seed)
    said = {"env_id": options.env_id, **report.to_dict()}
    print(json.dumps(said) if options.json else f"{options.env_id}: {report.text()}")
    return 0 if report.ok else 1


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"expected a port from 0 (a free one) to {MAX_PORT}, got {text!r}")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    fields = None
    with contextlib.suppress(ValueError):
        fields = json.loads(text)
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, such as '{{\"size\": 8}}', got {text!r}")
    return fields


def _find_modules_here() -> None:
    """Has modules in the working directory found, as by python -m."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)


if __name__ == "__main__":
    sys.exit(main())
