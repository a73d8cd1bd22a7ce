"""plr_client/errors.py: one tree, typed errors over the wire and through pickle, and messages that say what to do."""

from __future__ import annotations

import pickle

import msgpack
import numpy as np
import pytest

import plr_client.errors
from plr_client.errors import PlrError, ServerError, from_wire, needed

# class -> values, message
EXAMPLES = {
    "PlrError": (("something",), "something"),
    "InvalidInput": (("k", "1", "2"), "k: expected 1, got 2"),
    "MissingField": (("values", "an array", "none"), "values: expected an array, got none"),
    "LevelOutsideSpace": (("levels", "one of 3", "level 4"), "levels: expected one of 3, got level 4"),
    "ConfigError": (("alpha", "up to 1", "2"), "alpha: expected up to 1, got 2"),
    "StepsDropped": (
        (256, "why"),
        (
            "push_step: expected 256 steps that can be scored as one block, got: why; they are dropped, the next step "
            "begins a new block"
        ),
    ),
    "ServerUnreachable": (
        ("ipc:///run/plr", 3, 6.25, "start it"),
        "expected a reply from ipc:///run/plr, got none in 6.2 s and 3 attempts; start it",
    ),
    "ProtocolError": (("id: expected int",), "id: expected int"),
    "VersionMismatch": (
        (1, 2),
        "protocol version: expected 1 (the server's), got 2; install the same release at both ends",
    ),
    "UnknownCurriculum": (
        ("eval", "train, test"),
        "curriculum: expected one of train, test (curriculum=NAME, or --curriculum NAME), got 'eval'",
    ),
    "UnknownOperation": (("fly", "next, push"), "op: expected one of next, push, got 'fly'"),
    "MessageTooLarge": (
        ("values", 10, 20),
        "values: expected at most 10, got 20; push smaller blocks or raise the server's --max-frame-bytes",
    ),
    "NoLevels": (
        (),
        "levels: expected some to hand out, got none inserted yet; insert payloads first (Trainer.insert)",
    ),
    "SessionExpired": (
        ("push", "not applied"),
        "session: expected one that the server knows, got one it has forgotten; push: not applied",
    ),
    "NotAdmitted": (("a key file", "none"), "keys: expected a key file, got none"),
    "NotAllowed": (
        ("save", "the key of an operator", "that of the worker 'env-3'"),
        (
            "save: expected the key of an operator, got that of the worker 'env-3'; who runs the server makes keys "
            "(plr-server keygen DIR --role ROLE --name NAME)"
        ),
    ),
    "OutOfStep": (
        ("push", "seq 3 first", "seq 1 as the last"),
        "push: expected seq 3 first, got seq 1 as the last; it was not applied",
    ),
    "StateRolledBack": (
        (900, 500),
        (
            "state: expected the 900 commands that were on the server's disk, got 500 of them: its state directory was "
            "rolled back (a backup was put in its place, or the machine stopped under --fsync never). To go on from "
            "that older state, close() this client, and use it again or make a new one"
        ),
    ),
    "TooManySessions": (
        ("in all", 16384),
        "sessions: expected at most 16384 in all, got one more; close clients that are done",
    ),
    "RepliesUnread": (
        ("by one client", 100),
        "replies: expected at most 100 bytes unread by one client, got more; read a reply before you ask again",
    ),
    "TooManyOpenFiles": (
        (1024,),
        "open files: expected room for one more connection below the limit of 1024, got none; raise ulimit -Hn",
    ),
    "ServerError": (("the server failed at push",), "the server failed at push"),
    "ScoreFunctionError": (
        ("my_scores:fitness", "ValueError('no')"),
        "score function my_scores:fitness: expected (mean, max), two finite floats, got ValueError('no')",
    ),
    "PickleRefused": (
        ("set_score_function",),
        (
            "set_score_function: expected a server that takes pickled functions, got one that does not; its operator "
            "allows it with plr-server serve --allow-pickle or launch(..., allow_pickle=True), or configures strategy "
            "= 'module:function'"
        ),
    ),
    "ServerStartError": (("bind: expected a folder",), "bind: expected a folder"),
    "StateDirTaken": (
        ("/state", "the server of process 7"),
        (
            "state_dir: expected one that no server uses, got /state, used by the server of process 7; stop it or "
            "choose another"
        ),
    ),
    "StateDamaged": (
        ("/state/journal", "the record after command 3", "it is missing", "at least 2 commands"),
        (
            "/state/journal: expected the record after command 3 as it was written, got damage: it is missing. At "
            "stake: at least 2 commands. Restore the file from a copy; or give them up with plr-server serve "
            "--accept-loss, which keeps what is there as .broken"
        ),
    ),
    "StateDiverged": (
        (9, "numpy 1", "numpy 2"),
        (
            "state_dir: expected the state that was there after command 9, got another one from the same commands. "
            "They ran with numpy 1; here is numpy 2. Start the server there, or accept the state of here with "
            "plr-server serve --accept-loss"
        ),
    ),
    "StateNotWritten": (
        ("push", "No space left on device"),
        (
            "push: expected a server that can write to its state directory, got: No space left on device; nothing "
            "was applied, send it again once it can"
        ),
    ),
    "AddressTaken": (
        ("tcp://127.0.0.1:1", "another process"),
        (
            "address: expected a free one, got tcp://127.0.0.1:1, taken by another process; "
            "stop it or choose another --bind"
        ),
    ),
    "MissingDependency": (
        ("minigrid", "demo"),
        "expected package minigrid, which is not installed; pip install 'plr-server[demo]'",
    ),
}


def tree(root):
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


# The wrappers derive some of their own, which are never on the wire.
CLASSES = {kind.__name__: kind for kind in tree(PlrError) if kind.__module__ == "plr_client.errors"}


@pytest.fixture(params=EXAMPLES)
def error(request):
    return CLASSES[request.param](*EXAMPLES[request.param][0])


def test_every_class_has_an_example_a_code_of_its_own_and_is_public():
    assert set(CLASSES) == set(EXAMPLES)
    assert len({kind.code for kind in CLASSES.values()}) == len(CLASSES)
    assert set(CLASSES) <= set(plr_client.__all__)


def test_the_message_names_the_values(error):
    assert str(error) == EXAMPLES[type(error).__name__][1]


def test_the_values_are_attributes(error):
    assert tuple(getattr(error, name) for name in error.fields) == EXAMPLES[type(error).__name__][0]


def test_the_wire_rebuilds_class_values_and_message(error):
    told = msgpack.unpackb(msgpack.packb(error.to_wire()))
    again = from_wire(*told)
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))


def test_pickle_rebuilds_class_and_values(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))


def test_an_error_can_be_made_from_another_as_asyncvectorenv_does(error):
    again = type(error)(error)
    assert (again.args, str(again)) == (error.args, str(error))


def test_a_number_agrees_with_what_it_counts():
    assert "got none in 0.2 s and 1 attempt; why" in str(plr_client.ServerUnreachable("ipc:///x", 1, 0.2, "why"))
    assert "expected 1 step that" in str(plr_client.StepsDropped(1, "why"))
    assert "expected the 1 command that" in str(plr_client.StateRolledBack(1, 0))


def test_a_state_that_does_not_know_a_run_claims_no_number():
    assert "got a state from before that run of the server: its" in str(plr_client.StateRolledBack(900, -1))


def test_only_the_package_itself_is_said_to_be_missing():
    with pytest.raises(plr_client.MissingDependency) as missing, needed("no-such", "extra", "no_such_package"):
        import no_such_package.within  # noqa: F401, PLC0415
    assert missing.value.args == ("no-such", "extra")
    with pytest.raises(ModuleNotFoundError) as raised, needed("no-such", "extra", "no_such_package"):
        import another_package  # noqa: F401, PLC0415
    assert type(raised.value) is ModuleNotFoundError


def test_built_in_families_hold():
    assert issubclass(plr_client.InvalidInput, ValueError)
    assert issubclass(plr_client.ConfigError, ValueError)
    assert issubclass(plr_client.MissingDependency, ImportError)


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(TypeError, match="InvalidInput takes field, expected, got, got 1 values"):
        plr_client.InvalidInput("k")


def test_values_that_msgpack_cannot_carry_become_text():
    error = plr_client.InvalidInput("k", "an integer", np.int64(3))
    assert error.to_wire() == ["invalid_input", ["k", "an integer", "3"]]
    assert plr_client.ServerError("\udc80").to_wire() == ["server_error", ["\\udc80"]]


@pytest.mark.parametrize(
    ("code", "fields"),
    [("from_the_future", ["a", 1]), ("invalid_input", ["a", 1])],
    ids=["unknown code", "other fields"],
)
def test_what_this_end_does_not_know_is_a_server_error_with_the_same_text(code, fields):
    error = from_wire(code, fields)
    assert type(error) is ServerError
    assert str(error) == f"{code}: a, 1"
