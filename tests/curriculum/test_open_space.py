"""Open level spaces: who enters the table and who leaves, against plain lists and dicts; and through a server."""

from __future__ import annotations

import pickle
from collections import Counter

import gymnasium as gym
import model
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from level_env import LevelEnv

from plr_client import InvalidInput, Level, LevelClient, LevelOutsideSpace, NoLevels, Trainer
from plr_client.protocol import MAX_PAYLOADS, Request, decode_reply, encode_request, join_payloads
from plr_server import Config, Curriculum, launch
from plr_server.curriculum.sampling.transforms import TRANSFORMS
from plr_server.curriculum.spaces import open_space
from plr_server.serving.dispatch import Dispatcher
from wrappers import LevelReplay, LevelReplayVector

PAYLOADS = [  # some of them the same level: the order of a map's keys does not matter, and a tuple is a list
    *(
        [1, 2],
        (1, 2),
        [2, 1],
        {"a": 1, "b": [2]},
        {"b": (2,), "a": 1},
        {"a": 1},
        {1: "x", "1": "y"},
        {"1": "y", 1: "x"},
    ),
    *(1, 1.0, True, 0, 0.0, False, "1", b"1", "", [], {}, [None], 2**63, -5),
]


THOUSANDTHS = st.integers(0, 5_000).map(lambda score: score / 1_000)  # nothing underflows in the model


def frozen(curriculum):
    return pickle.dumps(curriculum.state())


def payloads(**fields):
    return Curriculum(Config(levels="payloads", **{"strategy": "external", **fields}))


def canonical(payload):
    """Tells levels apart, written apart from the real one."""
    if isinstance(payload, dict):
        return "map", frozenset((canonical(key), canonical(value)) for key, value in payload.items())
    if isinstance(payload, list | tuple):
        return "list", tuple(map(canonical, payload))
    return type(payload).__name__, payload


class OpenMachine(RuleBasedStateMachine):
    """Drives a curriculum of an open space and a plain model side by side."""

    @initialize(
        levels=st.sampled_from(["unbounded", "payloads"]),
        capacity=st.integers(1, 6),
        transform=st.sampled_from(TRANSFORMS),
        alpha=st.sampled_from([1.0, 0.5]),
        staleness_coef=st.sampled_from([0.0, 0.3, 1.0]),
        schedule=st.sampled_from(["proportionate", "fixed"]),
        replay_prob=st.sampled_from([0.0, 0.5, 1.0]),
        max_in_flight=st.sampled_from([0, 1, 2]),
        seed=st.integers(0, 9),
    )
    def start(self, levels, capacity, transform, alpha, staleness_coef, schedule, replay_prob, max_in_flight, seed):
        self.config = Config(
            levels=levels,
            capacity=capacity,
            strategy="one_step_td_error",
            transform=transform,
            temperature=0.7,
            alpha=alpha,
            staleness_coef=staleness_coef,
            replay_schedule=schedule,
            replay_prob=replay_prob,
            max_in_flight=max_in_flight,
            gamma=0.9,
            seed=seed,
        )
        self.curriculum = Curriculum(self.config)
        self.table = []  # [level, score, last drawn] by place
        self.drawn = {}  # new level -> draws when it was handed out last
        self.waiting = {}  # level -> (payload, parent)
        self.entered = {}  # of the table
        self.gone = [0] if levels == "unbounded" else []  # ids that are not kept
        self.num_inserted = self.draws = self.rejected = 0
        self.held = {}

    @property
    def of_payloads(self):
        return self.config.levels == "payloads"

    @property
    def in_table(self):
        return [level for level, _, _ in self.table]

    # ---- commands

    @rule(slots=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), holder=st.sampled_from("ab"))
    def sample(self, slots, holder):
        if self.of_payloads and not self.table and not self.waiting:
            before = frozen(self.curriculum)
            with pytest.raises(NoLevels):
                self.curriculum.sample(len(slots), slots=slots, holder=holder)
            assert frozen(self.curriculum) == before
            return
        for slot in slots:
            self.held.pop((holder, slot), None)
        assignments = self.curriculum.sample(len(slots), slots=slots, holder=holder)
        for slot, assignment in zip(slots, assignments, strict=True):
            self.check_rule(assignment)
            level = assignment.level
            assert assignment.train
            self.draws += 1
            self.held[holder, slot] = level
            if self.of_payloads:
                assert canonical(assignment.payload) == canonical((self.waiting | self.entered)[level][0])
            else:
                assert assignment.payload is None
                assert 0 <= level < 2**31
            if assignment.is_replay:
                self.table[self.in_table.index(level)][2] = self.draws
            else:
                self.drawn[level] = self.draws

    def check_rule(self, assignment):
        """Replay or new, and which, by who plays what before it."""
        level, cap, seeds = assignment.level, self.config.max_in_flight or 99, not self.of_payloads
        plays = Counter(self.held.values())
        assert assignment.is_replay == (level in self.in_table)
        free_seen = [each for each in self.in_table if plays[each] < cap]
        free_new = seeds or [each for each in self.waiting if plays[each] < cap]
        if bool(free_seen) != bool(free_new):
            assert assignment.is_replay == bool(free_seen)
        elif self.config.replay_prob == 0 and (seeds or self.waiting):
            assert not assignment.is_replay
        if assignment.is_replay:
            assert level in free_seen or not (free_seen or free_new)
        elif seeds:
            assert plays[level] == 0
        else:
            idle = [each for each in self.waiting if not plays[each]]
            assert level in (idle or free_new or self.waiting)

    @rule(holder=st.sampled_from("ab"))
    def release(self, holder):
        self.curriculum.release(holder)
        self.held = {key: level for key, level in self.held.items() if key[0] != holder}

    def levels(self):
        known = [*self.in_table, *self.waiting, *self.gone, *(self.held.values())]
        return st.sampled_from(sorted(set(known))) if known else st.nothing()

    @precondition(lambda self: hasattr(self, "table") and (self.num_inserted or not self.of_payloads))
    @rule(data=st.data(), as_rollout=st.booleans())
    def score_levels(self, data, as_rollout):
        scores = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | THOUSANDTHS
        pairs = data.draw(st.lists(st.tuples(self.levels(), scores), min_size=1, max_size=8))
        levels, values = np.array([[level for level, _ in pairs], [score for _, score in pairs]], dtype=object)
        levels, values = levels.astype(np.int64), values.astype(float)
        if as_rollout:  # an episode of one step each, in their order
            like = np.zeros((len(pairs), 1))
            self.curriculum.update(
                like, values[:, np.newaxis], np.ones_like(like, dtype=bool), levels[:, np.newaxis], like[0]
            )
        else:
            self.curriculum.update_scores(levels, values)
        for level, score in zip(levels.tolist(), values.tolist(), strict=True):
            self.score(level, score)

    @precondition(lambda self: hasattr(self, "table") and self.of_payloads)
    @rule(data=st.data(), given=st.lists(st.sampled_from(PAYLOADS), max_size=5))
    def insert(self, data, given):
        scores = data.draw(st.none() | st.lists(THOUSANDTHS, min_size=len(given), max_size=len(given)))
        parents = data.draw(
            st.none() | st.lists(st.integers(-1, self.num_inserted - 1), min_size=len(given), max_size=len(given))
        )
        kept = {canonical(payload) for payload, _ in [*self.waiting.values(), *self.entered.values()]}
        too_many = len({canonical(payload) for payload in given} - kept) > self.config.capacity - len(self.waiting)
        if scores is None and too_many:
            before = frozen(self.curriculum)
            with pytest.raises(InvalidInput, match=r"payloads: expected at most \d new ones"):
                self.curriculum.insert(given, scores, parents)
            assert frozen(self.curriculum) == before
            return
        levels = []
        for i, payload in enumerate(given):
            known = [
                level
                for level, (other, _) in (self.waiting | self.entered).items()
                if canonical(other) == canonical(payload)
            ]
            if not known:
                known = [self.num_inserted]
                self.num_inserted += 1
                self.waiting[known[0]] = (payload, -1 if parents is None else parents[i])
            levels.append(known[0])
            if scores is not None:
                self.score(known[0], scores[i])
        found = self.curriculum.insert(given, scores, parents)
        assert found.tolist() == [level if level in self.waiting | self.entered else -1 for level in levels]

    @rule()
    def bad_input(self):
        before = frozen(self.curriculum)
        beyond = self.num_inserted if self.of_payloads else 2**31
        good = [*self.in_table, *self.waiting][:1]
        for outside in (beyond, -1):
            with pytest.raises(LevelOutsideSpace):
                self.curriculum.update_scores([*good, outside], [1.0] * (len(good) + 1))
        for bad in (
            {"payloads": [1, None]},
            {"payloads": [np.zeros(3)]},
            {"payloads": [b"x" * 2**16]},
            {"payloads": "text"},
            {"payloads": [1], "scores": [np.nan]},
            {"payloads": [1], "scores": [1.0, 2.0]},
            {"payloads": [1], "parents": [self.num_inserted]},
            {"payloads": [1], "parents": [-2]},
            {"payloads": [1], "parents": [0.5]},
        ):
            with pytest.raises(InvalidInput):
                self.curriculum.insert(**bad)
        assert frozen(self.curriculum) == before

    @rule()
    def restore(self):
        restored = Curriculum.from_state(self.curriculum.state())
        assert frozen(restored) == frozen(self.curriculum)
        twin = Curriculum.from_state(self.curriculum.state())
        if not self.of_payloads or self.table or self.waiting:
            assert twin.sample(3) == Curriculum.from_state(self.curriculum.state()).sample(3)
        self.curriculum = restored

    # ---- the rule

    def score(self, level, score):
        if level in self.in_table:
            entry = self.table[self.in_table.index(level)]
            entry[1] = (1 - self.config.alpha) * entry[1] + self.config.alpha * score
            return
        if self.of_payloads and level not in self.waiting:
            self.rejected += 1
            return
        entry = [level, score, self.drawn.pop(level, self.draws)]
        if len(self.table) < self.config.capacity:
            self.table.append(entry)
        else:
            lowest = min(range(len(self.table)), key=self.eviction_key(self.weights().tolist()))
            if not score > self.table[lowest][1]:
                self.rejected += 1
                self.leave(level)
                return
            out, self.table[lowest] = self.table[lowest][0], entry
            self.leave(out)
        if self.of_payloads:
            self.entered[level] = self.waiting.pop(level)

    def eviction_key(self, weights):
        by_match = self.config.transform in {"match", "match_rank"} and self.config.staleness_coef < 1
        return lambda place: (
            weights[place],
            (1 - self.table[place][1]) * self.table[place][1] if by_match else self.table[place][1],
            -self.table[place][2],
            place,
        )

    def leave(self, level):
        self.gone.append(level)
        self.drawn.pop(level, None)
        self.waiting.pop(level, None)
        self.entered.pop(level, None)

    def weights(self):
        return model.weights(
            [score for _, score, _ in self.table],
            [self.draws - last_drawn for _, _, last_drawn in self.table],
            [True] * len(self.table),
            transform=self.config.transform,
            temperature=0.7,
            staleness_coef=self.config.staleness_coef,
        )

    @invariant()
    def the_table_is_the_list(self):
        if not hasattr(self, "table"):
            return
        ids, scores, staleness, seen = self.curriculum.scores()
        assert ids.tolist() == self.in_table
        np.testing.assert_allclose(scores, [score for _, score, _ in self.table], rtol=1e-9, atol=1e-12)
        assert staleness.tolist() == [self.draws - last_drawn for _, _, last_drawn in self.table]
        assert seen.all()
        np.testing.assert_allclose(self.curriculum.weights(), self.weights(), rtol=1e-9, atol=1e-12)
        stats = self.curriculum.stats()
        assert (stats["draws"], stats["in_flight"], stats["rejected"]) == (self.draws, len(self.held), self.rejected)
        assert stats["entered"] - stats["evicted"] == len(self.table)
        assert stats["seen_share"] == len(self.table) / self.config.capacity
        if self.of_payloads:
            assert stats["waiting"] == len(self.waiting)
            for found in self.curriculum.levels([*self.waiting, *self.entered]):
                payload, parent = (self.waiting | self.entered)[found.level]
                assert canonical(found.payload) == canonical(payload)
                assert found.parent == (None if parent == -1 else parent)
            for level in self.gone[-2:]:
                with pytest.raises(LevelOutsideSpace):
                    self.curriculum.levels([level])


TestOpenMachine = OpenMachine.TestCase
TestOpenMachine.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


class TestUnbounded:
    def test_new_levels_are_31_bit_seeds_from_the_generator_alone(self):
        one, other = (Curriculum(Config(levels="unbounded", seed=seed)) for seed in (3, 3))
        levels = [assignment.level for assignment in one.sample(5_000)]
        assert levels == [assignment.level for assignment in other.sample(5_000)]
        assert len(set(levels)) == 5_000
        counts = np.bincount(np.array(levels) >> 27, minlength=16)
        assert len(counts) == 16
        assert model.chi_square_p_value(counts, np.full(16, 1 / 16)) > 1e-4

    def test_a_seed_in_the_table_or_in_flight_is_not_new(self, monkeypatch):
        monkeypatch.setattr(open_space, "NUM_SEEDS", 8)
        curriculum = Curriculum(Config(levels="unbounded", capacity=4, strategy="external", replay_prob=0.0))
        curriculum.update_scores([1, 6], [1.0, 1.0])
        for _ in range(100):
            assert sorted(a.level for a in curriculum.sample(6)) == [0, 2, 3, 4, 5, 7]
            curriculum.release("")

    @pytest.mark.parametrize(
        ("fields", "entered", "expected"),
        [
            ({"replay_schedule": "proportionate"}, 3, 0.3),
            ({"replay_schedule": "proportionate", "replay_prob": 0.8}, 10, 0.8),
            ({"replay_schedule": "proportionate"}, 10, 1.0),
            ({"replay_schedule": "fixed", "replay_prob": 0.6, "min_fill_ratio": 0.5}, 4, 0.0),
            ({"replay_schedule": "fixed", "replay_prob": 0.6, "min_fill_ratio": 0.5}, 5, 0.6),
            ({"replay_schedule": "fixed", "replay_prob": 0.6}, 10, 0.6),
        ],
    )
    def test_the_seen_share_is_that_of_the_capacity(self, fields, entered, expected):
        curriculum = Curriculum(Config(levels="unbounded", capacity=10, strategy="external", **fields))
        curriculum.update_scores(np.arange(entered), np.ones(entered))
        replays = sum(curriculum.sample(1)[0].is_replay for _ in range(4_000))
        assert abs(replays / 4_000 - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4_000)  # 4 sigma

    def test_an_equal_score_does_not_enter_and_an_evicted_level_may_come_back(self):
        curriculum = Curriculum(Config(levels="unbounded", capacity=2, strategy="external", staleness_coef=0.0))
        curriculum.update_scores([7, 8], [1.0, 2.0])
        curriculum.update_scores([9], [1.0])
        assert curriculum.scores()[0].tolist() == [7, 8]
        curriculum.update_scores([9], [1.5])
        assert curriculum.scores()[0].tolist() == [9, 8]
        curriculum.update_scores([7], [1.6])
        assert curriculum.scores()[0].tolist() == [7, 8]

    def test_what_is_known_of_new_levels_without_a_score_is_bounded(self, monkeypatch):
        monkeypatch.setattr(open_space, "DRAWN_REMEMBERED", 10)
        curriculum = Curriculum(Config(levels="unbounded", capacity=2, strategy="external"))
        levels = [assignment.level for assignment in curriculum.sample(11)]
        curriculum.update_scores(levels[:2], [1.0, 1.0])
        assert curriculum.scores()[2].tolist() == [0, 9]  # the first is forgotten: fresh when it enters


class TestPayloads:
    def test_waiting_levels_are_drawn_uniformly(self):
        curriculum = payloads(capacity=10)
        curriculum.insert(list(range(10)))
        curriculum.sample(3, holder="busy")
        busy = set(curriculum.state()["held"]["busy"].values())
        counts = np.bincount([curriculum.sample(1)[0].level for _ in range(10_000)], minlength=10)
        free = np.array([level not in busy for level in range(10)])
        assert model.chi_square_p_value(counts, free / 7) > 1e-4

    def test_a_payload_handed_out_is_the_callers_own(self):
        curriculum = payloads()
        curriculum.insert([{"walls": [1, 2]}])
        curriculum.sample()[0].payload["walls"].append(3)
        assert curriculum.sample()[0].payload == {"walls": [1, 2]}

    def test_too_many_at_once_are_refused(self):
        curriculum = payloads(capacity=10_000)
        curriculum.insert(list(range(MAX_PAYLOADS)))
        before = frozen(curriculum)
        with pytest.raises(InvalidInput, match="at most 4096"):
            curriculum.insert(list(range(MAX_PAYLOADS + 1)))
        with pytest.raises(InvalidInput, match="k: expected an integer from 1 to 4096"):
            curriculum.sample(4097)
        with pytest.raises(InvalidInput, match="levels: expected at most 4096, got 4097"):
            curriculum.levels(np.zeros(4097, int))
        assert frozen(curriculum) == before

    def test_levels_that_are_ids_take_no_payloads(self):
        for levels in (range(5), "unbounded"):
            curriculum = Curriculum(Config(levels=levels))
            with pytest.raises(InvalidInput, match='a curriculum with levels="payloads"'):
                curriculum.insert([1])
            with pytest.raises(InvalidInput, match='a curriculum with levels="payloads"'):
                curriculum.levels([0])


class TestStrategiesThatRemember:
    """A new level brings its past with it when it enters, and leaves it behind when it goes."""

    @pytest.mark.parametrize("partial", ["commit", "stitch"])
    @pytest.mark.parametrize("levels", ["unbounded", "payloads"])
    @pytest.mark.parametrize("strategy", ["grounded_signed_value_loss", "learnability", "tscl"])
    def test_while_there_is_room_scores_are_those_of_a_closed_space(self, strategy, levels, partial):
        rng = np.random.default_rng(2)
        fields = {"strategy": strategy, "partial": partial, "window": 3}
        closed = Curriculum(Config(levels=range(12), **fields))
        opened = Curriculum(Config(levels=levels, capacity=12, **fields))
        if levels == "payloads":
            opened.insert(list("abcdefghijkl"))
        shape = (20, 3)
        playing = rng.integers(0, 12, 3)
        for round_ in range(8):
            dones = rng.random(shape) < 0.2
            played = np.empty(shape, int)
            for t in range(20):
                played[t] = playing
                playing = np.where(dones[t], rng.integers(0, 12, 3), playing)
            values, rewards = rng.normal(size=shape), rng.normal(size=shape)
            for curriculum in (closed, opened):
                curriculum.update(values, rewards, dones, played, values[0])
            if round_ == 4:
                opened = Curriculum.from_state(opened.state())
            ids, scores, _, seen = closed.scores()
            found = dict(zip(*(column.tolist() for column in opened.scores()[:2]), strict=True))
            assert found == pytest.approx(dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True)), rel=1e-12)

    def test_a_level_that_comes_back_has_no_past(self):
        config = Config(
            levels="unbounded", capacity=1, strategy="grounded_signed_value_loss", transform="constant", gamma=1.0
        )
        curriculum = Curriculum(config)

        def play(level, reward, value):
            one = np.ones((1, 1))
            curriculum.update(value * one, reward * one, one == 1, (level * one).astype(int), one[0])
            return curriculum.scores()[0].tolist(), curriculum.scores()[1].tolist()

        assert play(7, reward=5.0, value=4.0) == ([7], [1.0])
        assert play(7, reward=3.0, value=4.5) == ([7], [0.5])  # the best return is still 5
        assert play(8, reward=6.0, value=4.0) == ([8], [2.0])
        assert play(7, reward=5.0, value=1.0) == ([7], [4.0])
        assert play(8, reward=5.5, value=0.0) == ([8], [5.5])  # not 6

    def test_a_level_that_is_turned_away_leaves_nothing(self):
        curriculum = Curriculum(Config(levels="unbounded", capacity=1, strategy="tscl", window=3))
        curriculum.update_scores([1], [10.0])
        before = curriculum.state()["scorer"]["history"]["windows"]
        zeros = np.zeros((4, 1))
        curriculum.update(zeros, np.arange(4.0)[:, np.newaxis], zeros == 0, np.full((4, 1), 5), zeros[0])
        assert curriculum.stats()["rejected"] == 4
        assert pickle.dumps(curriculum.state()["scorer"]["history"]["windows"]) == pickle.dumps(before)


class TestDispatch:
    def test_payloads_are_canonical_or_refused_whole(self):
        curriculum = payloads()
        dispatcher = Dispatcher({"default": curriculum}, max_frame_bytes=2**20)

        def ask(sequence, op, **arrays):
            frames = encode_request(Request("s", 1, sequence, "default", op, {}, arrays))
            return decode_reply(dispatcher.answer(b"peer", [bytes(frame) for frame in frames]))

        ask(1, "hello")
        one, same = b"\x82\xa1a\x01\xa1b\xcd\x00\x02", b"\x82\xa1b\x02\xa1a\x01"  # {a: 1, b: 2}, a long 2 in one
        for sequence, packed in ((2, one), (3, same)):  # two levels for the same payload, were they taken
            error = ask(sequence, "insert", **join_payloads([packed])).error
            assert "expected canonical msgpack" in str(error)
        assert ask(4, "insert", **join_payloads([b"\x05", b"\x05"])).arrays["ids"].tolist() == [0, 0]
        before = frozen(curriculum)
        for i, packed in enumerate([b"\xc0", b"\xc1", b"\x81\x90\x01", b"\x91" * 70 + b"\x01"]):
            assert isinstance(ask(5 + i, "insert", **join_payloads([b"\x07", packed])).error, InvalidInput)
        assert isinstance(ask(9, "insert").error, InvalidInput)
        assert isinstance(ask(10, "levels").error, InvalidInput)
        assert frozen(curriculum) == before
        first = ask(11, "insert", **join_payloads([b"\x07"]), scores=np.ones(1))
        again = ask(11, "insert", **join_payloads([b"\x07"]), scores=np.ones(1))  # sent once more: applied once
        assert first.arrays["ids"].tolist() == again.arrays["ids"].tolist() == [1]
        assert curriculum.stats()["scores"] == 1


class RoomEnv(LevelEnv):
    """An env whose level is a task, not its seed."""

    task = None


def set_task(env, payload):
    env.unwrapped.task = payload


class TestThroughAServer:
    @pytest.fixture
    def address(self):
        config = Config(levels="payloads", capacity=3, strategy="external", replay_prob=0.5, staleness_coef=0.0)
        with launch(config) as server:
            yield server.address

    def test_from_insertion_to_lineage(self, address):
        tasks = {0: {"goal": [3, 4], "walls": b"\x00\x01"}, 1: [1, 2.5, None]}
        with Trainer(address, timeout_s=20.0) as trainer, LevelClient(address, timeout_s=20.0) as client:
            env = LevelReplay(RoomEnv(), address, set_level=set_task)
            with pytest.raises(NoLevels, match=r"insert payloads first \(Trainer.insert\)"):
                env.reset()
            assert trainer.insert([tasks[0], {"walls": b"\x00\x01", "goal": (3, 4)}, tasks[1]]).tolist() == [0, 0, 1]
            _, info = env.reset()
            playing = info["plr_level"]
            assert env.unwrapped.task == tasks[playing]
            assert client.next(1)[0].payload == tasks[1 - playing]
            assert trainer.push_scores([0, 1], [4.0, 5.0]) == 2
            inserted = trainer.insert(["a", "b", "c", tasks[0]], scores=[1, 2, 0.5, 6], parents=[-1, 0, 1, 1])
            assert inserted.tolist() == [-1, 3, -1, 0]
            ids, scores, _, _ = trainer.scores()
            assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == {0: 6.0, 1: 5.0, 3: 2.0}
            assert trainer.levels([3, 0]) == [Level(3, "b", 0), Level(0, tasks[0], None)]
            assert trainer.weights().shape == (3,)
            assert trainer.push_scores([2], [9.0]) == 1  # gone with its payload
            stats = trainer.stats()
            assert [stats[name] for name in ("entered", "evicted", "rejected", "waiting")] == [4, 1, 2, 0]
            with pytest.raises(LevelOutsideSpace, match="level 2"):
                trainer.levels([3, 2])
            with pytest.raises(InvalidInput, match="payloads: expected at most 3 new ones"):
                trainer.insert(["d", "e", "f", "g"])
            with pytest.raises(InvalidInput, match="scores"):
                trainer.insert(["d"], scores=[np.inf])
            assert trainer.stats() == stats
            env.close()

    def test_a_full_reply_of_the_largest_payloads_arrives(self, address):
        largest = [bytes([i]) * (2**16 - 3) for i in range(3)]
        with Trainer(address, timeout_s=60.0) as trainer, LevelClient(address, timeout_s=60.0) as client:
            trainer.insert(largest, scores=[1, 2, 3])
            for assignment in client.next(400):
                assert assignment.payload == largest[assignment.level]

    def test_bare_envs_and_envs_without_set_level_refuse(self, address):
        with Trainer(address, timeout_s=20.0) as trainer:
            trainer.insert(["x"])
        env = LevelReplay(LevelEnv(), address)
        with pytest.raises(InvalidInput, match="set_level: expected a function"):
            env.reset()
        env.close()
        envs = LevelReplayVector(gym.vector.SyncVectorEnv([LevelEnv] * 2), address)
        with pytest.raises(InvalidInput, match=r"LevelReplay\(env, address, set_level=...\) around every sub-env"):
            envs.reset()
        envs.close()
