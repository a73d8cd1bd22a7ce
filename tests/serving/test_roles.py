"""plr_server/serving/roles.py: who may ask for what."""

from __future__ import annotations

import pytest

from plr_client import NotAdmitted, NotAllowed
from plr_server.serving.roles import Client, allowed

WORKER = {"hello", "goodbye", "next", "levels", "describe"}
TRAINER = {
    "push",
    "push_step",
    "push_scores",
    "insert",
    "stats",
    "counters",
    "timings",
    "weights",
    "scores",
    "table",
    "sync",
}
OPERATOR = {"save", "set_score_function"}
RIGHTS = {"worker": WORKER, "trainer": WORKER | TRAINER, "operator": WORKER | TRAINER | OPERATOR}
CLIENTS = {f"key of the {role}": Client(f"some {role}", role) for role in RIGHTS}


@pytest.mark.parametrize("op", sorted(RIGHTS["operator"]))
@pytest.mark.parametrize("role", RIGHTS)
def test_what_each_role_may(role, op):
    if op in RIGHTS[role]:
        assert allowed(op, f"key of the {role}", CLIENTS) == f"some {role}"
        return
    needed = "an operator" if op in OPERATOR else "a trainer or an operator"
    with pytest.raises(NotAllowed) as refusal:
        allowed(op, f"key of the {role}", CLIENTS)
    assert str(refusal.value) == (
        f"{op}: expected the key of {needed}, got that of the {role} 'some {role}'; who runs the server makes keys "
        "(plr-server keygen DIR --role ROLE --name NAME)"
    )


def test_a_worker_may_nothing_that_is_not_said():
    with pytest.raises(NotAllowed):
        allowed("what comes next year", "key of the worker", CLIENTS)


@pytest.mark.parametrize("op", ["hello", "next", "push", "save"])
@pytest.mark.parametrize("key", ["withdrawn", "", None])
def test_who_has_no_key_any_more_may_nothing(key, op):
    with pytest.raises(NotAdmitted, match=r"keys: expected keys that the server knows .*, got some that have"):
        allowed(op, key, CLIENTS)
