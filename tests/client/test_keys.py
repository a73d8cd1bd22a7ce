"""plr_client/keys.py: which key file is used, and which files are refused; and that a client carries no secret."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import zmq

from plr_client import InvalidInput, LevelClient, Trainer
from plr_client.keys import KEY_CHARS, ClientKeys, is_key, key_file, read_client_keys

SERVER, _ = zmq.curve_keypair()
PUBLIC, SECRET = zmq.curve_keypair()
GOOD = {"server": SERVER.decode(), "secret": SECRET.decode()}


def written(path, content, mode=0o600):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    path.chmod(mode)
    return str(path)


def test_a_key_file_holds_all_that_a_client_needs(tmp_path):
    assert read_client_keys(written(tmp_path / "a.key", GOOD)) == ClientKeys(SERVER, PUBLIC, SECRET)


def test_the_file_that_is_named_wins_over_the_environment(monkeypatch):
    monkeypatch.delenv("PLR_KEYS", raising=False)
    assert key_file(None) is key_file("") is None
    assert key_file("a.key") == key_file(Path("a.key")) == "a.key"
    monkeypatch.setenv("PLR_KEYS", "b.key")
    assert (key_file(None), key_file("a.key"), key_file("")) == ("b.key", "a.key", None)
    monkeypatch.setenv("PLR_KEYS", "")
    assert key_file(None) is None


# What is in the file, and which key is missing in it.
MALFORMED = {
    "nothing": ("", "secret"),
    "no JSON": ("secret", "secret"),
    "no object": ([GOOD], "secret"),
    "the server's own file": ({"secret": GOOD["secret"]}, "server"),
    "no secret": ({"server": GOOD["server"]}, "secret"),
    "a number": (GOOD | {"secret": 7}, "secret"),
    "a key too short": (GOOD | {"secret": GOOD["secret"][1:]}, "secret"),
    "a key that is no Z85": (GOOD | {"server": " " * KEY_CHARS}, "server"),
    "a key of other letters": (GOOD | {"server": "ä" * KEY_CHARS}, "server"),
    "a key beyond 256 bits": (GOOD | {"server": "#" * KEY_CHARS}, "server"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused(tmp_path, name):
    content, missing = MALFORMED[name]
    path = written(tmp_path / "a.key", content)
    with pytest.raises(InvalidInput) as refusal:
        read_client_keys(path)
    assert str(refusal.value) == (
        f"keys: expected a file made by plr-server keygen DIR --role ROLE --name NAME, got {path}, which has no key "
        f"{missing!r}"
    )


def test_a_file_that_is_not_there_or_cannot_be_read_is_refused(tmp_path):
    for path, why in ((tmp_path / "a.key", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidInput, match=rf"keys: expected a file made by .* got {path} \({why}\)"):
            read_client_keys(str(path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    path = written(tmp_path / "a.key", GOOD, mode)
    with pytest.raises(InvalidInput) as refusal:
        read_client_keys(path)
    assert str(refusal.value) == (
        f"keys: expected a key file that no other user can read (chmod 600 FILE), got {path} of mode {mode:03o}"
    )


def test_a_file_of_another_owner_is_taken_as_it_is(tmp_path, monkeypatch):
    """As ssh does: a cluster mounts secrets that belong to root, and who may read them is not ours to say."""
    path = written(tmp_path / "a.key", GOOD, 0o644)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_client_keys(path).secret == SECRET


def test_what_is_a_key():
    assert is_key(PUBLIC.decode())
    assert not is_key(PUBLIC)
    assert not is_key(None)


@pytest.mark.parametrize("make", [LevelClient, Trainer])
def test_a_client_carries_the_path_of_its_keys_and_not_what_is_in_them(tmp_path, make):
    path = tmp_path / "a.key"
    carried = pickle.dumps(make("ipc:///nobody", keys=path)._connection)  # which is before there is a file
    written(path, GOOD)
    assert carried == pickle.dumps(make("ipc:///nobody", keys=path)._connection)
    assert SECRET not in carried
    assert pickle.loads(carried).keys == path  # noqa: S301  made here


@pytest.mark.parametrize("make", [LevelClient, Trainer])
def test_keys_that_are_no_path_are_refused_at_once(make):
    with pytest.raises(InvalidInput, match="keys: expected the path of a key file, got 7"):
        make("ipc:///nobody", keys=7)


def test_keys_are_read_when_the_connection_opens(tmp_path):
    client = LevelClient("ipc:///nobody", keys=tmp_path / "a.key")
    with pytest.raises(InvalidInput, match=r"keys: expected a file made by .*No such file"):
        client.next()
