"""Trainer: pushes what an agent's rollouts were worth, and reads what the curriculum made of it.

May be imported by wrappers and users. It turns arguments into arrays and never judges them: the curriculum does, so
that every client meets the same checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.address import Address
from plr_client.connection import Connection
from plr_client.errors import InvalidInput, MissingField
from plr_client.keys import KeyFile
from plr_client.levels import NO_PARENT, Level, TableRows
from plr_client.protocol import DEFAULT_CURRICULUM, join_payloads, pack_payloads, shown, split_payloads, unpack_payload
from plr_client.report import report, write
from plr_client.segment import Segment


class Trainer:
    """Pushes rollouts and scores to the server. The connection opens with the first request.

    A call returns when the server has applied it; a call that raises has changed nothing, except `ServerUnreachable`,
    after which the push may have been applied or not, and `SessionExpired`, which says what is known. A server that is
    killed and started again within `timeout_s` raises nothing, and each push counts once: what it had not got onto its
    disk yet is kept here, up to 256 MiB, and sent again.

    With `wait=False` a push returns at once, its arrays copied. Up to 16 such pushes are under way; the next one waits
    for the first of them. One that opens a connection waits until the server answers, but no longer than 0.2 s: what
    has not left by then leaves with the next call, such as `flush`. They are applied in their order, before anything
    that is asked later. Where one is refused, the next call of any kind raises that error instead of doing what it
    does; those after it are applied nevertheless.

    Args:
        address: where the server listens; or a function that tells, asked whenever a connection is opened, for a server
            that may come back elsewhere (`wrappers.ray.Lookup`). It returns None while nobody knows.
        curriculum: the name of the curriculum, where the server has several.
        timeout_s: seconds without a reply after which a request raises; above 0.
        keys: the path of a key file, where the server asks for keys; by default what PLR_KEYS names, and "" for none.
            It is read when the connection opens.

    Raises:
        InvalidInput: the address, the name or the timeout is not what it must be.
    """

    def __init__(
        self,
        address: Address,
        *,
        curriculum: str = DEFAULT_CURRICULUM,
        timeout_s: float = 30.0,
        keys: KeyFile = None,
    ) -> None:
        self._connection = Connection(address, curriculum=curriculum, timeout_s=timeout_s, keys=keys)

    @property
    def address(self) -> Address:
        """Where the server listens, as given."""
        return self._connection.address

    def push(
        self,
        values: ArrayLike | None,
        rewards: ArrayLike | None,
        dones: ArrayLike | None,
        levels: ArrayLike,
        next_values: ArrayLike | None,
        *,
        truncated: ArrayLike | None = None,
        final_values: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        successes: ArrayLike | None = None,
        columns: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        episode_starts: ArrayLike | None = None,
        next_episode_starts: ArrayLike | None = None,
        wait: bool = True,
    ) -> int:
        """Pushes one rollout block of T steps in N env columns. Step-major: `values[t, n]`.

        Args:
            values: (T, N) V(s_t); None where the strategy needs none.
            rewards: (T, N) r_t; None where the strategy needs none.
            dones: (T, N) bool: the action of step t ended the episode. None when `episode_starts` stands for it.
            levels: (T, N) ints: the level that was active when obs_t was produced.
            next_values: (N,) V(s_T), the bootstrap at the block's end; None where the strategy needs no values.
            truncated: (T, N) bool, only where done: the episode was cut by a time limit, so its last step bootstraps
                with `final_values`. Without it, every done counts as a true end.
            final_values: (T, N) V of the terminal observation, read where `truncated`.
            valid: (T, N) bool: False for a row that is no transition, such as the dummy row of NEXT_STEP autoreset.
                Such a row is dropped as if it had never been pushed.
            logits: (T, N, A) action logits, for the strategies that read the policy.
            successes: (T, N) bool, read where done: whether the episode was a success, for the strategy `learnability`.
                Without it, an episode whose undiscounted return is above 0 is one.
            columns: (N,) distinct ints that name the env columns where a session pushes from several sets of envs; by
                default 0 to N - 1. Episodes are stitched within a column.
            groups: (N,) ints, for envs of several agents, each agent in a column: columns of the same number are the
                agents of one env. What they play at the same time is one episode, whose score is the mean over all of
                their steps; rows of an agent that has left are not `valid`. By default every column is an env.
            episode_starts: (T, N) bool, in place of `dones`: obs_t is the first of an episode (CleanRL, SB3).
            next_episode_starts: (N,) bool, with `episode_starts`: the observation after the block is the first of one.
            wait: return when it is applied; else at once.

        Returns:
            The number of episodes, or parts of episodes, that were scored; 0 where it was not waited for.

        Raises:
            InvalidInput: a field has a wrong shape, dtype or value; nothing was applied.
            MissingField: the configured strategy needs a field that was not given.
            LevelOutsideSpace: a level is not in the level space.
            MessageTooLarge: a field has more bytes than the server takes.
            ServerUnreachable: no reply within the timeout.
            StateNotWritten: the server cannot write it to its state directory, or 256 MiB of earlier pushes are not on
                its disk within the timeout; it was not applied.
            StateRolledBack: the server's state directory is an older one.
        """
        if episode_starts is None and next_episode_starts is not None:
            raise MissingField("episode_starts", "an array (T, N) with next_episode_starts", "none")
        if episode_starts is not None:
            dones = _ends(episode_starts, next_episode_starts, dones)
        return self._push(
            "push",
            wait,
            values=values,
            rewards=rewards,
            dones=dones,
            levels=levels,
            next_values=next_values,
            truncated=truncated,
            final_values=final_values,
            valid=valid,
            logits=logits,
            successes=successes,
            columns=columns,
            groups=groups,
        )

    def push_step(
        self,
        values: ArrayLike | None,
        rewards: ArrayLike | None,
        dones: ArrayLike | None,
        levels: ArrayLike,
        next_values: ArrayLike | None,
        *,
        truncated: ArrayLike | None = None,
        final_values: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        successes: ArrayLike | None = None,
        columns: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        next_episode_starts: ArrayLike | None = None,
        wait: bool = True,
    ) -> int:
        """Pushes one step of N env columns; the server pools `num_steps` of them into a block and scores that.

        Arguments as in `push`, without the axis T: (N,), logits (N, A). `next_episode_starts` may stand for `dones`.
        Every step of a session must have the same `columns`, `groups` and optional fields until the block is full.

        Returns:
            The number of episodes or parts scored: 0 until the block is full, and where it was not waited for.

        Raises:
            InvalidInput, MissingField, LevelOutsideSpace, ServerUnreachable: as `push`.
        """
        if next_episode_starts is not None:
            if dones is not None:
                raise InvalidInput("dones", "None beside next_episode_starts, which stands for it", "both")
            dones = next_episode_starts
        return self._push(
            "push_step",
            wait,
            values=values,
            rewards=rewards,
            dones=dones,
            levels=levels,
            next_values=next_values,
            truncated=truncated,
            final_values=final_values,
            valid=valid,
            logits=logits,
            successes=successes,
            columns=columns,
            groups=groups,
        )

    def push_scores(self, levels: ArrayLike, scores: ArrayLike, *, wait: bool = True) -> int:
        """Pushes scores of the trainer's own making (strategy `external`, or beside any other).

        Args:
            levels: (m,) ints, up to 262 144; up to 4096 where the level space is open. A level may occur more than
                once: its scores are applied in order.
            scores: (m,) finite floats.
            wait: as in `push`.

        Returns:
            m; 0 where it was not waited for.

        Raises:
            InvalidInput: a shape, dtype or value is wrong; nothing was applied.
            LevelOutsideSpace: a level is not in the level space.
            ServerUnreachable: no reply within the timeout.
        """
        return self._push("push_scores", wait, levels=levels, scores=scores)

    def insert(
        self, payloads: Sequence[Any], scores: ArrayLike | None = None, parents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Inserts levels that are more than a number, into a curriculum with levels="payloads".

        Two payloads are the same level where their canonical msgpack bytes are equal: the order of a map's keys does
        not matter, and a tuple is a list; 1, 1.0 and True differ. A payload that is kept already keeps its id and
        parent.

        Args:
            payloads: up to 4096 msgpack values (bools, ints, floats, str, bytes, and lists and maps of them), when
                packed up to 64 KiB each and 4 MiB together: nobody is served while the server checks them, about a
                quarter of a second for that much, two where they are nothing but tiny maps. An array becomes one by
                `.tolist()` or `.tobytes()`.
            scores: (m,) finite floats, each applied as by `push_scores`: a new level enters the table if there is room
                or its score is high enough. Without scores, new levels wait to be handed out as new.
            parents: (m,) ids of the levels they were made from, -1 for none.

        Returns:
            (m,) the ids; -1 for a level that, after all of the call, is not kept: its score was not high enough.

        Raises:
            InvalidInput: a payload, a score or a parent is not what it must be, the levels are no payloads, or more
                than `capacity` would wait; nothing was applied.
            ServerUnreachable: no reply within the timeout.
        """
        fields = {"scores": scores, "parents": parents}
        arrays = {name: _array(name, value) for name, value in fields.items() if value is not None}
        joined = join_payloads(pack_payloads(payloads))
        return self._connection.request("insert", arrays=joined | arrays).arrays["ids"]

    def levels(self, levels: ArrayLike) -> list[Level]:
        """Returns what levels are, and what they were made from; for levels="payloads".

        Args:
            levels: (m,) ids of levels that are in the table or wait, up to 4096.

        Raises:
            InvalidInput: the shape or dtype is wrong, or the levels are no payloads.
            LevelOutsideSpace: a level is not kept.
            ServerUnreachable: no reply within the timeout.
        """
        reply = self._connection.request("levels", arrays={"levels": _array("levels", levels)})
        payloads = [unpack_payload(packed) for packed in split_payloads(reply.arrays)]
        ids, parents = reply.arrays["levels"].tolist(), reply.arrays["parents"].tolist()
        return [
            Level(level, payload, None if parent == NO_PARENT else parent)
            for level, payload, parent in zip(ids, payloads, parents, strict=True)
        ]

    def set_score_function(self, function: Callable[[Segment], tuple[float, float]]) -> None:
        """Has the server score episodes with a function of yours from now on, in place of the configured strategy.

        It is sent with cloudpickle, which runs code at the server: the server takes it only where its operator said
        `--allow-pickle`. Both ends must run the same minor version of Python, and a module of yours that the function
        imports must be there too. Scores given so far stay; episodes that are under way count from their next step on,
        unless a function scored before. The server calls it between two requests: a slow one holds up every client.

        Args:
            function: gets a `plr_client.Segment`, returns the mean and the maximum of the step scores, two finite
                floats. It must depend on the segment alone, or a resumed server will not go on bit for bit.

        Raises:
            PickleRefused: the server's operator did not allow it.
            InvalidInput: it cannot be pickled, is no function, or comes from another version of Python.
            ScoreFunctionError: the server could not unpickle it.
            ServerUnreachable: no reply within the timeout.
        """
        import cloudpickle  # noqa: PLC0415  a worker that only wants a seed must not pay for it

        try:
            pickled = cloudpickle.dumps(function)
        except Exception as exc:  # whatever a foreign object raises when it is pickled
            raise InvalidInput("function", "something that cloudpickle can pickle", f"{exc!r:.200}") from exc
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        arrays = {"function": np.frombuffer(pickled, dtype=np.uint8)}
        self._connection.request("set_score_function", {"python": python}, arrays)

    def stats(self) -> dict[str, Any]:
        """Returns what the curriculum has done so far, and what its clients do.

        Returns:
            The keys of `plr_server.Curriculum.stats`, and: sessions, the server's clients; prefetched, how many levels
            waited in clients that ask ahead; prefetch_lag_pushes, by how many pushes the scores were behind, on
            average, when the turn of such a level came (0 before the first). Clients report both with their requests.

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        return dict(self._connection.request("stats").result)

    def counters(self) -> dict[str, Any]:
        """Returns the part of `stats` that costs the server nothing: what it counts, without a look at every level.

        Returns:
            levels, levels_seen, draws, replays, in_flight, levels_in_flight, most_in_flight, pushes, steps, episodes,
            scores, entered, evicted, rejected, forgotten, waiting, sessions, prefetched and prefetch_lag_pushes, each
            as in `stats`. Of a server with a state directory also commands, how many its state has seen;
            durable_commands, up to which of them all outlive what `--fsync` promises; journal_bytes, since the newest
            snapshot; snapshot_age_s, how long ago that was written; disk_error, why the newest commands are in memory
            alone, "" where they are not.

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        return dict(self._connection.request("counters").result)

    def timings(self) -> dict[str, dict[str, Any]]:
        """Returns how long the server took for its answers since it was started, whatever the curriculum.

        Returns:
            By operation, of those that were asked for ("other": of what it does not know): errors, how many of the
            answers were one; seconds, the time of all together; counts, 25 numbers: the k-th says how many took less
            than 2^k microseconds and no less than half of that, the last one how many took 8 s or more. Neither the
            way of a message nor what its sender waited is in it, nor the time of a disk that replies wait for.

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        return dict(self._connection.request("timings").result["timings"])

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns the configuration of every curriculum of the server, by name, whatever the name of this trainer's.

        Returns:
            The fields of `plr_server.Config.to_dict`; `levels` is START:STOP:STEP, "unbounded", "payloads" or, of a
            list, how many there are: "3 ids".

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        return dict(self._connection.request("describe").result["curricula"])

    def weights(self) -> NDArray[np.float64]:
        """Returns (N,) P_replay of every level, in the order of the level space; zero where unseen.

        With levels="unbounded" or "payloads": of the levels in the table, in the order of `scores`.

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        return self._connection.request("weights").arrays["weights"]

    def scores(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Returns ids (N,), scores (N,), staleness (N,) in draws since last drawn, and seen (N,).

        All in the order of the level space. With levels="unbounded" or "payloads": of the levels in the table.

        Raises:
            ServerUnreachable: no reply within the timeout.
        """
        arrays = self._connection.request("scores").arrays
        return arrays["ids"], arrays["scores"], arrays["staleness"], arrays["seen"]

    def log_to(self, writer: Any, step: int) -> None:
        """Writes what the curriculum does to the dashboard that the trainer has: call it where it logs its losses.

        Numbers, each as `curriculum/NAME`: effective_levels, seen_share, replay_share, mean_score and max_score, as in
        `stats`; weighted_score, the mean score of what a replay draws, which lies above mean_score where replays do
        better than chance; staleness_q90, for how many draws nine tenths of the seen levels have waited at most;
        draws, episodes, pushes, in_flight and prefetch_lag_pushes, as in `stats`. Once a level is seen also
        `curriculum/scores`, a histogram of the scores, and `curriculum/top_levels`, a table of the 20 levels of the
        highest P_replay. Reads the whole level table: at a million levels that takes 25 ms of the server's time, and
        60 ms in all of the caller's. So call it once a rollout; with a million levels, at most every ten seconds.

        Args:
            writer: a TensorBoard `SummaryWriter`; a W&B or trackio run, or the module (there the numbers are shown
                over `global_step`, which is logged with them); an MLflow run, or the module; or anything to be called
                with (values, step): a dict of the names above with floats, an array (seen,) and a list of dicts.
            step: the trainer's global step, usually the number of env steps.

        Raises:
            InvalidInput: the writer is none of these, or the step no integer.
            ServerUnreachable: no reply within the timeout.
        """
        counters, weights = self.counters(), self.weights()
        write(report(counters, weights, self.scores()), writer, step)

    def table(self, begin: int = 0, stop: int | None = None) -> TableRows:
        """Returns rows of the level table, in the order of `scores`, with what was played; for people to look at.

        Args:
            begin: the first row, 0 or more.
            stop: the row before which to stop, 0 or more; None for all. Rows that are not there are left out.

        Raises:
            InvalidInput: one of them is no such integer.
            ServerUnreachable: no reply within the timeout.
        """
        return TableRows(**self._connection.request("table", {"begin": begin, "stop": stop}).arrays)

    def save(self) -> None:
        """Has the server write its whole state to its state directory now; returns when it is on the disk.

        The server does so by itself every now and then, and writes down every command in between.

        Raises:
            InvalidInput: the server has no state directory.
            StateNotWritten: it cannot be written.
        """
        self._connection.request("save")

    def flush(self) -> None:
        """Waits until every push is applied, and as durable as the server's `--fsync` promises.

        Raises:
            PlrError: the error of a push that was not waited for, the oldest; call it again for the others.
            StateNotWritten: the server does not get everything onto its disk within the timeout.
            StateRolledBack: what was on its disk is not there any more, as an earlier request was told.
            ServerUnreachable: no reply within the timeout; what is not applied is still to be sent.
        """
        self._connection.flush()

    def close(self) -> None:
        """Closes the connection; a later request opens it anew. Steps the server has pooled and not scored are lost.

        Before that it waits until every push is applied. It does not wait for the disk: `flush` does.

        Raises:
            PlrError: the error of a push that was not waited for; the connection is closed nevertheless.
        """
        self._connection.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _push(self, op: str, wait: bool, **fields: ArrayLike | None) -> int:
        if not isinstance(wait, bool):
            raise InvalidInput("wait", "True or False", shown(wait))
        arrays = {name: _array(name, value) for name, value in fields.items() if value is not None}
        if not wait:
            self._connection.post(op, arrays)
            return 0
        return int(self._connection.request(op, arrays=arrays).result["scored"])


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as exc:  # whatever a foreign tensor raises when it cannot become an array
        raise InvalidInput(
            name, "something numpy can turn into an array (a tensor: .detach().cpu())", str(exc)
        ) from exc
    if array.dtype.kind not in "fiub":
        raise InvalidInput(name, "numbers or bools in a full array", f"dtype {array.dtype}")
    return array


def _ends(starts: ArrayLike, next_starts: ArrayLike | None, dones: ArrayLike | None) -> NDArray[Any]:
    """Turns (T, N) "obs_t is the first of an episode" into (T, N) "step t ended the episode"."""
    if dones is not None:
        raise InvalidInput("dones", "None beside episode_starts, which stands for it", "both")
    if next_starts is None:
        raise MissingField("next_episode_starts", "an array (N,) with episode_starts", "none")
    first, after = _array("episode_starts", starts), _array("next_episode_starts", next_starts)
    if first.ndim == 0 or after.shape != first.shape[1:]:
        raise InvalidInput("next_episode_starts", f"shape {first.shape[1:]}", f"shape {after.shape}")
    return np.concatenate([first[1:], after[np.newaxis].astype(first.dtype)])
