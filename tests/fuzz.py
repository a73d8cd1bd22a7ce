"""Malformed messages by the million, against a real server: `make fuzz`.

Random bytes; messages that were valid, changed at random places; messages whose parts are of the wrong kind; and ones
in which everything is right but what they say. Nothing of that may be applied, and the server may neither end, nor fail
(`ServerError`), nor grow. A random change of a valid message may leave it valid. So what is changed here has a wound
that a few bytes cannot heal, such as a dozen levels outside the space; only what reads may come through.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path

import faults
import msgpack
import numpy as np

from plr_client import ServerError, Trainer
from plr_client.protocol import Request, decode_reply, encode_request
from plr_server import Config, launch

HALF = 0.5
UNDER_WAY = 16  # messages sent and not answered; the server holds 32 replies
CURRICULA = {
    "default": Config(levels=range(10), num_steps=3),
    "mazes": Config(levels="payloads", capacity=50, replay_prob=0.5),
}
READS = ("stats", "counters", "weights", "scores", "describe")

# What no field of a header may be, but for those that take it.
ODD = (
    None, True, -1, 0, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "", "x" * 300, b"", b"\xff" * 40,
    [], [[]], [0] * 100, {}, {"a": {"b": [1]}}, msgpack.ExtType(5, b"\0"), msgpack.Timestamp(0),
)  # fmt: skip
DTYPES = ("<f4", "<f8", "<f2", "<i8", "<i4", "|i1", "|u1", "|b1", ">f8", "|O", "<U8", "<c16", "", "f8", "<f16")
SHAPES = (
    [], [0], [-1], [1], [2**31], [2**40, 2**40], [2**63, 0], [0, 2**62], [1] * 5, [True], ["3"], [3.0], [[3]], "3", {},
)  # fmt: skip


class Malformed:
    """A stream of messages, the same for a seed.

    Attributes:
        session: that they are said in.
        seq: of the message made last.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numpy = np.random.default_rng(seed)
        self.session = f"fuzz {seed}"
        self.seq = 1

    def next(self) -> tuple[str, list[bytes], bool]:
        """Returns which kind of message, its frames, and whether it may be answered by other than an error."""
        self.seq += 1
        kind = self._random.choice(("noise", "changed", "changed", "odd header", "odd arrays", "wrong", "read"))
        if kind == "noise":
            return kind, self._noise(), False
        if kind == "wrong":
            return kind, self._frames(*self._wounded(in_floats=self._random.random() < HALF)), False
        if kind == "read":
            return kind, self._changed(self._frames(self._random.choice(READS), {}, {})), True
        frames = self._frames(*self._wounded())
        if kind == "changed":
            return kind, self._changed(frames), False
        header = msgpack.unpackb(frames[0])
        if kind == "odd header":
            for _ in range(self._random.randint(1, 2)):
                self._make_odd(header)
        else:
            header, frames = self._odd_arrays(header, frames)
        with contextlib.suppress(OverflowError, ValueError, UnicodeError):
            frames[0] = msgpack.packb(header)
        return kind, frames, False

    def _frames(self, op, arrays, args):
        curriculum = "mazes" if op in ("insert", "levels") else "default"
        return [
            bytes(each) for each in encode_request(Request(self.session, 1, self.seq, curriculum, op, args, arrays))
        ]

    def _noise(self):
        sizes = self._random.choices((0, 1, 7, 60, 2000), k=self._random.randint(1, 4))
        return [self._random.randbytes(size) for size in sizes]

    def _wounded(self, *, in_floats=False):
        """Returns op, arrays and args of a request that everything is right about but what it says.

        Floats that are not finite would be healed by another dtype.
        """
        choose = self._random.choice
        op = choose(("push", "push", "push", "push_step", "push_scores", "next", "insert", "levels", "fly"))
        if op in ("push", "push_step"):
            return op, self._block(steps=None if op == "push_step" else choose((1, 3, 64)), in_floats=in_floats), {}
        if op == "push_scores":
            num = choose((12, 300))
            levels, scores = self._numpy.integers(10, 2**40, num), self._numpy.normal(size=num)
            if in_floats:
                levels, scores = levels % 10, np.full(num, choose((np.nan, np.inf, -1e300, 1e31)))
            return op, {"levels": levels, "scores": scores}, {}
        if op == "next":
            slots = [choose((5, -3, 2**40))] * 20
            return choose(
                ((op, {"slots": np.array(slots * 20)}, {}), (op, {}, {"slots": slots}), (op, {}, {"k": "k" * 20}))
            )
        if op == "insert":
            joined, lengths = np.full(600, 0xC1, np.uint8), np.full(60, 10)  # 0xc1 begins no msgpack value
            return op, {"payloads": joined, "payload_bytes": choose((lengths, lengths * 7, -lengths))}, {}
        if op == "levels":
            return op, {"levels": np.full(20, 2**40)}, {}
        return op, {}, {"k": 1}

    def _block(self, steps, *, in_floats):
        """Returns a block, or a step, of levels outside the space, or of the right levels and no finite numbers."""
        shape = (12,) if steps is None else (steps, 12)
        floats = lambda: self._numpy.normal(size=shape).astype(self._random.choice((np.float32, np.float64)))  # noqa: E731
        block = {
            "values": floats(),
            "rewards": floats(),
            "dones": np.ones(shape, dtype=bool),
            "levels": self._numpy.integers(10, 2**40, shape),
            "next_values": self._numpy.normal(size=12),
        }
        more = {
            "truncated": np.zeros(shape, dtype=bool),
            "final_values": floats(),
            "groups": np.zeros(12, dtype=np.int64),
            "columns": np.arange(12),
            "prices": floats(),
        }
        block |= {name: more[name] for name in self._random.sample(list(more), self._random.randint(0, 2))}
        if in_floats:
            block["levels"] %= 10
            name = self._random.choice(("values", "rewards"))
            block[name] = np.full(shape, self._random.choice((np.nan, np.inf, -np.inf)))
        return block

    def _changed(self, frames):
        """Changes a few bytes or frames, but not the number, to one that all later ones would be below."""
        changed = list(frames)
        for _ in range(self._random.randint(1, 3)):
            place = self._random.randrange(len(changed))
            frame = bytearray(changed[place])
            at = self._random.randrange(len(frame) + 1)
            how = self._random.randrange(7)
            if how == 0 and frame:
                frame[at % len(frame)] ^= 1 << self._random.randrange(8)
            elif how == 1 and frame:
                frame[at % len(frame)] = self._random.randrange(256)
            elif how == 2:
                frame[at:at] = self._random.randbytes(self._random.randint(1, 9))
            elif how == 3:
                del frame[at : at + self._random.randint(1, 9)]
            elif how == 4:
                del frame[at:]
            elif how == 5:
                changed.insert(place, bytes(frame))
            else:
                self._random.shuffle(changed)
                continue
            changed[place] = bytes(frame)
        return changed if self._numbered_within(changed) else frames[:-1] or [b""]

    def _numbered_within(self, frames):
        try:
            return int(msgpack.unpackb(frames[0])[3]) <= self.seq
        except Exception:  # noqa: BLE001  whatever it is, it carries no number
            return True

    def _make_odd(self, header):
        place = self._random.randrange(len(header))
        value = self._random.choice(ODD)
        if place in (3, 4, 5) and type(value) is int:  # no seq, no after and no run that could be right
            value = -1 - abs(value)
        header[place] = value

    def _odd_arrays(self, header, frames):
        choose = self._random.choice
        described = header[-1] or [["levels", "<i8", [20]]]
        about = choose(described)
        part = self._random.randrange(3)
        if part == 0:
            about[0] = choose((1, None, "", b"x", "x" * 200, [], "values"))
        elif part == 1:
            about[1] = choose((*DTYPES, 8, None, []))
        else:
            about[2] = choose(SHAPES)
        header[-1] = described + choose(([], [[]], [about], [None], [["y", "|u1", [1], b"1"]] * 300))
        if choose((True, False)):
            frames = [*frames, *[b"\0" * choose((0, 1, 8, 5000))] * choose((1, 3, 20))]
        return header, frames


def resident_bytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def fuzzed_server():
    """A server of two curricula, with some state, and what tells all of it."""
    with launch(CURRICULA) as server, contextlib.ExitStack() as stack:
        default, mazes = (stack.enter_context(Trainer(server.address, curriculum=name)) for name in CURRICULA)
        default.push(**faults.block())
        step = faults.block()
        default.push_step(**{name: field if field.ndim == 1 else field[0] for name, field in step.items()})
        mazes.insert([{"maze": i} for i in range(20)], scores=np.arange(20) / 8)
        yield server, lambda: [faults.seen_from_outside(trainer) for trainer in (default, mazes)]


def fuzz(server, seen, *, messages: int, seed: int):
    """Sends malformed messages; returns how often each kind was refused in which way, and memory before and after.

    Raises:
        AssertionError: one was applied, or failed in the server, or was not answered, or the server has ended or grown.
    """
    stream, under_way, told = Malformed(seed), deque(), Counter()
    before_state, before = seen(), resident_bytes(server.process.pid)
    with faults.Raw(server.address) as raw:
        assert raw.ask(faults.hello(stream.session)).error is None

        def hear():
            assert raw.socket.poll(int(faults.DEADLINE_S * 1000)), f"no reply to {under_way[0]!s:.3000}, seed {seed}"
            kind, frames, may_read = under_way.popleft()
            reply = decode_reply(raw.socket.recv_multipart())
            what = f"{kind}, seed {seed}: {frames!s:.3000}"
            assert may_read or reply.error is not None, f"applied: {what}"
            assert not isinstance(reply.error, ServerError), f"failed with {reply.error}: {what}"
            told[kind, "read" if reply.error is None else reply.error.code] += 1

        for _ in range(messages):
            message = stream.next()
            raw.send(message[1])
            under_way.append(message)
            if len(under_way) == UNDER_WAY:
                hear()
        while under_way:
            hear()
        assert raw.ask(faults.request("goodbye", session=stream.session, seq=stream.seq + 1)).error is None
    assert server.process.poll() is None
    assert faults.same(seen(), before_state), f"the state has changed, seed {seed}"
    return told, before, resident_bytes(server.process.pid)


def throw_garbage(server, seen, *, connections: int, seed: int):
    """Writes bytes that are no ZeroMQ, or stop being it, on connections of their own.

    Raises:
        AssertionError: the server has ended, or its state changed.
    """
    rng, before_state = random.Random(seed), seen()
    frame = faults.unfinished(100)
    for _ in range(connections):
        with contextlib.suppress(ConnectionError):
            if rng.random() < 0.3:
                with faults.plain(server.address) as connection:
                    connection.sendall(rng.randbytes(rng.randint(0, 3000)))
            else:
                with faults.by_hand(server.address) as connection:
                    size = rng.choice((0, 1, 200, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "big")
                    begun = rng.choice((b"\x02", b"\x03", b"\x06", b"\x04", b"\xff", frame + b"\x02"))
                    connection.sendall(begun + size + rng.randbytes(rng.randint(0, 3000)))
                    if rng.random() < 0.5:
                        connection.shutdown(socket.SHUT_WR)
    assert server.process.poll() is None
    assert faults.same(seen(), before_state), f"the state has changed, seed {seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats a run (default: the time)")
    given = parser.parse_args()
    with fuzzed_server() as (server, seen):
        fuzz(server, seen, messages=min(given.messages, 20_000), seed=given.seed + 1)  # it has its buffers then
        began_s = time.monotonic()
        told, before, after = fuzz(server, seen, messages=given.messages, seed=given.seed)
        took_s = time.monotonic() - began_s
        garbage = max(10, given.messages // 200)
        throw_garbage(server, seen, connections=garbage, seed=given.seed)
        for (kind, code), num in sorted(told.items()):
            print(f"{kind:12} {code:22} {num:9}")
        change, rate = after / before - 1, given.messages / took_s
        print(f"seed {given.seed}: {given.messages} malformed messages in {took_s:.0f} s ({rate:.0f}/s)")
        print(f"and {garbage} connections of garbage: 0 crashes, 0 state changes")
        print(f"resident memory {before / 1e6:.1f} -> {after / 1e6:.1f} MB ({change:+.1%})")
    return int(change > 0.02)


if __name__ == "__main__":
    sys.exit(main())
