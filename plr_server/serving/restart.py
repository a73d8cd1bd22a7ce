"""restart: brings a dispatcher to where a state directory ends, and on from there.

Used by the server loop when it starts, and by the command line, which replays to look. The commands since the newest
snapshot are applied again, one after the other, and the digests among them are compared with the state here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping

import numpy as np

from plr_client.errors import ConfigError, PlrError, StateDiverged, counted
from plr_server.curriculum.config import Config
from plr_server.durability.records import COMMANDS, Kind, read_digest
from plr_server.durability.recovery import History, Segment
from plr_server.durability.state_dir import StateDir, cpu_features
from plr_server.durability.values import digest, pack
from plr_server.serving.dispatch import Dispatcher

logger = logging.getLogger("plr_server")


def restart(dispatcher: Dispatcher, log: StateDir) -> None:
    """Brings a dispatcher to the state that a folder holds, if it holds one, and has it write there from then on.

    Args:
        dispatcher: one that has answered nothing yet.
        log: the folder; a divergence is accepted where a loss is.

    Raises:
        ConfigError: the folder is of curricula of another configuration.
        StateDiverged: the same commands lead to another state here.
        PickleRefused: a client's score function is in it, and functions of clients are not taken.
        ServerStartError: the folder cannot be written.
    """
    configs = {name: curriculum.config for name, curriculum in dispatcher.curricula.items()}
    history = log.history
    if history.state is None:
        logger.info("the state directory is new")
    else:
        _check_configs(configs_of(history), configs)
        try:
            replay(dispatcher, history)
        except StateDiverged as error:
            if not log.accept_loss:
                raise
            logger.error(  # noqa: TRY400
                "accepting another state than there was after command %s, which ran with %s; here is %s",
                error.command,
                error.there,
                error.here,
            )
            replay(dispatcher, history, compare=False)
        logger.info("the state directory goes on after %s", counted(log.sequence, "command"))
    text = json.dumps({name: config.to_dict() for name, config in configs.items()}, sort_keys=True)
    log.begin(dispatcher.state, text)
    dispatcher.write_to(log)


def configs_of(history: History) -> dict[str, Config]:
    """Returns the configurations of the curricula that a folder holds, by name."""
    return {name: Config.from_dict(state["config"]) for name, state in history.state["curricula"].items()}


def replay(dispatcher: Dispatcher, history: History, *, until: int | None = None, compare: bool = True) -> None:
    """Brings a dispatcher to a command of a history.

    Args:
        dispatcher: one with curricula of the same names.
        history: what a folder holds; with a state.
        until: how many commands the state has seen then; None for all.
        compare: compare the digests that were written down with the state here.

    Raises:
        StateDiverged: a digest is another one here.
        PlrError: a command needs what this server does not allow or have.
    """
    dispatcher.restore(history.state)
    records = (record for record in history.records() if record.kind is Kind.DIGEST)
    digests = dict(map(read_digest, records)) if compare else {}
    for segment in history.segments:
        for record in segment.records():
            if until is not None and record.sequence > until:
                return
            if record.kind in COMMANDS:
                dispatcher.replay(record.kind, record.payload)
                expected = digests.get(record.sequence)
                if expected is not None and digest(pack(dispatcher.state())) != expected:
                    raise _diverged(record.sequence, segment)


def _diverged(sequence: int, segment: Segment) -> PlrError:
    here, there = set(cpu_features()), set(segment.origin.cpu)
    return StateDiverged(
        sequence,
        _described(segment.origin.numpy, there - here),
        _described(np.__version__, here - there),
    )


def _described(numpy: str, features: set[str]) -> str:
    return f"numpy {numpy} and, of CPU features, beside the same, {' '.join(sorted(features)) or 'none'}"


def _check_configs(there: Mapping[str, Config], here: Mapping[str, Config]) -> None:
    """Refuses to go on with a state of another configuration.

    Raises:
        ConfigError: says which field differs.
    """
    way_out = "as in the state directory (for another configuration, take another --state-dir)"
    if there.keys() != here.keys():
        raise ConfigError("curricula", f"{', '.join(sorted(there))}, {way_out}", ", ".join(sorted(here)))
    for name, config in there.items():
        for field in dataclasses.fields(config):
            old, new = getattr(config, field.name), getattr(here[name], field.name)
            if old != new:
                raise ConfigError(field.name, f"{old!r:.80} {way_out}", f"{new!r:.80}")
