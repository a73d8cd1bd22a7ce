"""Clients that want a few things done: plr_client's own exchange, over the simulated network.

What plr_client.connection does with a socket and by waiting, a client does here step by step.
"""

from __future__ import annotations

import math

import numpy as np
from judge import require

from plr_client.errors import ServerUnreachable, StateRolledBack
from plr_client.exchange import Exchange, HangUp
from plr_client.protocol import join_payloads, pack_payloads

TIMEOUT_S = 100.0
THINKS_S = 1.0
LOOKS_AGAIN_S = 0.3
LEVELS = 6
COLUMNS = 1
READS = ("counters", "scores", "weights")
PUSHES = ("push", "push_step", "push_scores")
OPS = ("next", *PUSHES, "insert", *READS, "save", "save")


class Client:
    """One client.

    Args:
        world: tells the time, carries messages, hears what happens.
        name: its number.
        num_operations: how many it has to do.

    Attributes:
        cut_off: no message gets through.
        was_cut_off: that has been so.
        done: all is done, and durable.
    """

    def __init__(self, world, name, num_operations):
        self.world, self.rng, self.name = world, world.rng, name
        self.cut_off = self.was_cut_off = self.done = False
        self._left, self._turn, self._num_sessions, self._timer = num_operations, 0, 0, 0
        self._peer = None
        self._start_session()
        world.after(self.rng.random() * THINKS_S, self._begin)

    def _start_session(self):
        self._num_sessions += 1
        self.curriculum = self.rng.choice(("seeds", "payloads"))
        self._exchange = Exchange(
            f"{self.name}.{self._num_sessions}", address="simulated", curriculum=self.curriculum, pid=1
        )
        self._under_way = []  # operations and their requests
        self._awaited = self._then = None

    # ---- what it wants

    def _begin(self):
        """Does the next of what it wants; at the end, waits until all is durable."""
        exchange, rng = self._exchange, self.rng
        self._note_outcomes()
        exchange.errors.clear()
        if not self._left:
            self._flush(self._leave)
        elif self._turn and rng.random() < 0.1:
            self._flush(self._leave_and_come_back)
        else:
            self._left -= 1
            self._turn += 1
            op = rng.choice(OPS)
            waited = op not in PUSHES or rng.random() < 0.6
            operation = self.world.judge.begins(self.name, self._turn, op)
            pending = exchange.ask(op, *self._fields(op, operation.number), waited=waited)
            self._under_way.append((operation, pending))
            if waited:
                self._wait_for(pending, self._think)
            else:
                self._think()
            self._carry_out()

    def _think(self):
        self.world.after(self.rng.random() * THINKS_S, self._begin)

    def _wait_for(self, pending, then):
        self._awaited, self._then = pending, then
        self._exchange.expect(pending, self.world.now_s, TIMEOUT_S)

    def _fields(self, op, number):
        rng = self.rng
        level = rng.randrange(LEVELS)
        args, arrays = {"n": number}, {}
        if op == "next":
            args |= {"k": rng.randrange(1, 3), "ahead": rng.random() < 0.5, "begun": [rng.randrange(2)]}
        elif op == "push_scores":
            arrays = {"levels": np.array([level]), "scores": np.array([float(number)])}
        elif op == "insert":
            arrays = join_payloads(pack_payloads([number]))
            if rng.random() < 0.5:
                arrays["scores"] = np.array([float(number)])
        elif op in PUSHES:
            shape = (2, COLUMNS) if op == "push" else (COLUMNS,)
            arrays = {
                "values": np.full(shape, float(number)),
                "rewards": np.ones(shape),
                "dones": np.full(shape, rng.random() < 0.5),
                "levels": np.full(shape, level),
                "next_values": np.ones(COLUMNS),
            }
        return args, arrays

    def _flush(self, then):
        exchange = self._exchange
        if exchange.unanswered or exchange.undurable:
            self._wait_for(exchange.ask("sync"), lambda: self.world.after(LOOKS_AGAIN_S, self._flush, then))
            self._carry_out()
        else:
            then()

    def _leave(self):
        self._note_outcomes()
        if self.rng.random() < 0.5:
            self._say_goodbye()
        self.done = True

    def _leave_and_come_back(self):
        self._note_outcomes()
        self._say_goodbye()
        self._start_session()
        self._think()

    def _say_goodbye(self):
        if self._peer is None:
            self._peer = self.world.connect(self)
        self.world.to_server(self._peer, list(map(bytes, self._exchange.farewell()[1])))
        self._hang_up()

    # ---- how it gets it

    def _carry_out(self):
        exchange, now_s = self._exchange, self.world.now_s
        while (todo := exchange.act(now_s)) is not None:
            if isinstance(todo, HangUp):
                self._hang_up()
            else:
                if self._peer is None:
                    self._peer = self.world.connect(self)
                self.world.to_server(self._peer, list(map(bytes, todo)))
        self._timer += 1
        if (wake_s := exchange.wake_s) < math.inf:
            self.world.after(wake_s - now_s, self._wakes, self._timer)
        self._note_outcomes()

    def _wakes(self, timer):
        if timer == self._timer:
            self._carry_out()

    def hears(self, reply):
        self._exchange.heard(reply, self.world.now_s)
        self._carry_out()

    def _hang_up(self):
        if self._peer is not None:
            self.world.hang_up(self._peer)
        self._peer = None

    def _note_outcomes(self):
        """Tells the judge what has come of the requests, and goes on where one was waited for."""
        judge = self.world.judge
        for operation, pending in self._under_way:
            if pending.outcome is not operation.outcome:
                gave_up = isinstance(pending.outcome, ServerUnreachable)
                require(not gave_up or self.was_cut_off or self.world.is_lossy, "a client's patience", operation)
                judge.ends(operation, pending.outcome)
        if self._awaited is not None and self._awaited.outcome is not None:
            outcome, then = self._awaited.outcome, self._then
            self._awaited = None
            if isinstance(outcome, StateRolledBack):
                self._hang_up()
                self._start_session()
                self._think()
            else:
                then()
