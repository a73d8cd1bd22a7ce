"""Config: everything that decides how a curriculum behaves, validated when it is made.

May be imported by the whole of plr_server. It holds no state, and nothing about addresses, files or processes: those
are arguments of the server around the curriculum.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from plr_client.errors import ConfigError
from plr_client.protocol import DEFAULT_CURRICULUM
from plr_server.curriculum.presets import PRESETS
from plr_server.curriculum.sampling.transforms import TRANSFORMS
from plr_server.curriculum.scoring.strategies import FUNCTION, STRATEGIES, strategy_named

REPLAY_SCHEDULES = ("proportionate", "fixed")
PARTIALS = ("commit", "stitch")
TEMPERED = ("rank", "power", "softmax", "match", "match_rank")  # the transforms that a temperature matters to
MAX_LEVEL = 2**63 - 1
MAX_WINDOW = 1_000  # the table keeps that many numbers a level
FUNCTION_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
MAX_LEVELS = 2**31 - 2  # indices are counted in int32
OPEN_SPACES = ("unbounded", "payloads")
MAX_CAPACITY = 10_000_000
LEVELS_EXPECTED = (
    "unbounded, payloads, START:STOP, START:STOP:STEP, a range, or a list of distinct int64 ids, at least one"
)


def _field(default: Any, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of one curriculum. The defaults are the paper's Procgen setting.

    Every field is checked when the object is made; `dataclasses.replace` gives a changed copy, checked again. What each
    field means is in `Config.docs()` and in `plr-server serve --help`, which both read it from here.

    Raises:
        ConfigError: a field is not what it must be.
        TypeError: there is no such field, as for every dataclass.

    Source: arXiv 2010.03934, section 3 and table 3 (defaults); arXiv 2110.02439 (`robust`); `window` 10 as in the
    authors' code of arXiv 1707.00183: short enough to follow a changing policy, a success rate in steps of a tenth.

    >>> Config(levels="0:200", temperature=0.3).levels
    range(0, 200)
    >>> Config(temperature=0.0)
    Traceback (most recent call last):
    plr_client.errors.ConfigError: temperature: expected a finite number above 0, got 0.0
    """

    levels: range | tuple[int, ...] | str = _field(
        range(200),
        'the level space: START:STOP, START:STOP:STEP (as in Python), a list of distinct ids "3,14,15", unbounded '
        "(fresh 31-bit seeds, the best of which are kept), or payloads (levels that a trainer or an editor inserts)",
    )
    capacity: int = _field(
        4000,
        "of an unbounded space or one of payloads: how many levels the table keeps; once it is full, a new one takes "
        "the place of the one least likely to be replayed if its score is higher than that one's. The seen share is "
        "that of the capacity, so with replay_prob 1 a full table only replays",
    )
    strategy: str = _field(
        "value_l1",
        f"what scores an episode: {', '.join(STRATEGIES)}, or a function of yours as module:function, imported by "
        "the server from the folder it was started in or PYTHONPATH",
    )
    transform: str = _field("rank", f"how scores become P_S: {', '.join(TRANSFORMS)}")
    temperature: float = _field(0.1, "beta of P_S, above 0")
    staleness_coef: float = _field(0.1, "rho, the share of P_C in P_replay, 0 to 1")
    staleness_temperature: float = _field(1.0, "tau of P_C, above 0")
    eps: float = _field(0.05, "share of uniform draws under the transform eps_greedy, 0 to 1")
    replay_schedule: str = _field(
        "proportionate",
        "replay or new: proportionate (replay with probability min(seen share, replay_prob)) or fixed (with "
        "probability replay_prob once the seen share is min_fill_ratio)",
    )
    replay_prob: float = _field(1.0, "probability of a replay, 0 to 1, as replay_schedule reads it")
    min_fill_ratio: float = _field(0.0, "share of levels seen before replay starts under the schedule fixed, 0 to 1")
    alpha: float = _field(
        1.0,
        "weight of a new score against the old one, above 0 up to 1; learnability and tscl, whose window is their "
        "memory, go without",
    )
    max_score_coef: float = _field(0.0, "share of the episode's maximum, against its mean, in the score, 0 to 1")
    gamma: float = _field(0.999, "discount, 0 to 1")
    gae_lambda: float = _field(0.95, "lambda of generalised advantage estimation, 0 to 1")
    window: int = _field(
        10, f"under learnability and tscl, how many of a level's last finished episodes count, 2 to {MAX_WINDOW}"
    )
    num_steps: int = _field(256, "steps per env column that push_step pools into one block, 1 or more")
    partial: str = _field(
        "commit",
        "an episode longer than a block: commit (the part in hand is scored at the block's end) or stitch (its "
        "steps are pooled until it ends)",
    )
    robust: bool = _field(
        False, "robust PLR: new levels carry train = False, so that only replayed ones are learnt from"
    )
    max_in_flight: int = _field(
        0,
        "how many env slots may play one level at once: a level at the cap is drawn no more while there is another "
        "(random and sequential draw it regardless); 0: any number",
    )
    seed: int = _field(0, "seed of the curriculum's random generator, 0 or more")

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels(self.levels))
        if self.strategy not in tuple(STRATEGIES) and not (  # tuple: what was given may not be hashable
            isinstance(self.strategy, str) and FUNCTION_NAME.fullmatch(self.strategy)
        ):
            expected = f"one of {', '.join(STRATEGIES)}, or module:function"
            raise ConfigError("strategy", expected, repr(self.strategy))
        for name, known in (
            ("transform", TRANSFORMS),
            ("replay_schedule", REPLAY_SCHEDULES),
            ("partial", PARTIALS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(name, f"one of {', '.join(known)}", repr(getattr(self, name)))
        for name in ("temperature", "staleness_temperature"):
            self._number(name, "a finite number above 0", lambda x: x > 0)
        for name in ("staleness_coef", "eps", "replay_prob", "min_fill_ratio", "max_score_coef", "gamma", "gae_lambda"):
            self._number(name, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        self._number("alpha", "a number above 0, up to 1", lambda x: 0 < x <= 1)
        for name, least, most in (
            ("capacity", 1, MAX_CAPACITY),
            ("window", 2, MAX_WINDOW),
            ("num_steps", 1, math.inf),
            ("max_in_flight", 0, math.inf),
            ("seed", 0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
                limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
                raise ConfigError(name, f"an integer, {limits}", repr(value))
            object.__setattr__(self, name, int(value))
        if isinstance(self.levels, str) and self.strategy in ("random", "sequential"):
            expected = f"a range or a list under the strategy {self.strategy} (replay_prob = 0 plays new levels only)"
            raise ConfigError("levels", expected, self.levels)
        if not isinstance(self.robust, bool):
            raise ConfigError("robust", "true or false", repr(self.robust))

    def _number(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ConfigError(name, expected, repr(value))
        number = float(value)
        if not (math.isfinite(number) and holds(number)):
            raise ConfigError(name, expected, str(value))
        object.__setattr__(self, name, number)

    @staticmethod
    def preset(name: str, **fields: Any) -> Config:
        """Builds a configuration from a preset.

        Args:
            name: one of `plr_server.curriculum.presets.PRESETS`: paper-procgen, learnability, robust, accel.
            **fields: those of a configuration; they win over the preset's.

        Raises:
            ConfigError: there is no such preset, or a field is not what it must be.

        >>> Config.preset("learnability", levels="0:4000").transform
        'power'
        """
        if name not in tuple(PRESETS):  # tuple: what was given may not be hashable
            raise ConfigError("preset", f"one of {', '.join(PRESETS)}", repr(name))
        return Config(**PRESETS[name].fields | fields)

    @staticmethod
    def docs() -> dict[str, str]:
        """Returns what each field means, by name."""
        return {field.name: field.metadata["doc"] for field in dataclasses.fields(Config)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values that JSON, TOML and msgpack carry; `from_dict` reads them back."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.levels, range):
            plain["levels"] = f"{self.levels.start}:{self.levels.stop}:{self.levels.step}"
        elif not isinstance(self.levels, str):
            plain["levels"] = list(self.levels)
        return plain

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Config:
        """Builds a configuration from plain values.

        Args:
            fields: by field name; what is missing takes its default, or what `preset` says, where there is one.

        Raises:
            ConfigError: a name is unknown, or a value is not what it must be.
        """
        known = (*Config.docs(), "preset")
        for name in fields:
            if name not in known:
                raise ConfigError(name, nearest(name, known), "an unknown name")
        given = {name: value for name, value in fields.items() if name != "preset"}
        return Config.preset(fields["preset"], **given) if "preset" in fields else Config(**given)

    def without_effect(self) -> dict[str, str]:
        """Returns why fields that are not at their defaults change nothing in this configuration, by name.

        What it leaves out may still change nothing in some run. A score function that a client sends reads gamma,
        gae_lambda and max_score_coef, whatever the strategy.

        >>> Config(strategy="learnability", alpha=0.5).without_effect()
        {'alpha': 'learnability remembers by its window; only push_scores reads alpha'}
        """
        name, strategy, transform = self.strategy, strategy_named(self.strategy), self.transform
        of_steps = strategy is FUNCTION or strategy.per_step is not None or strategy.per_best is not None
        has_window, discounts = strategy.per_window is not None, "next_values" in (*strategy.needs, *strategy.takes)
        by_score = "transform temperature eps"
        of_draws = f"{by_score} staleness_coef staleness_temperature replay_schedule replay_prob min_fill_ratio"
        rules = (
            (name in ("random", "sequential"), f"{of_draws} max_in_flight", f"{name} draws from all levels alike"),
            (name == "sequential", "seed", "sequential draws nothing at random"),
            (name == "uniform", by_score, "uniform replays all seen levels alike"),
            (self.staleness_coef == 1.0, by_score, "under staleness_coef 1 no level is drawn by its score"),
            (self.staleness_coef == 0.0, "staleness_temperature", "under staleness_coef 0 staleness does not count"),
            (transform not in TEMPERED, "temperature", f"the transform {transform} has no temperature"),
            (transform != "eps_greedy", "eps", "it belongs to the transform eps_greedy"),
            (self.replay_schedule != "fixed", "min_fill_ratio", "it belongs to the replay_schedule fixed"),
            (not has_window, "window", "it belongs to the strategies learnability and tscl"),
            (has_window, "alpha", f"{name} remembers by its window; only push_scores reads alpha"),
            (not of_steps, "max_score_coef", f"{name} gives the steps of an episode no scores"),
            (not discounts, "gamma gae_lambda", f"{name} discounts nothing"),
            (name in ("one_step_td_error", "alt_advantage_abs"), "gae_lambda", f"{name} has none"),
            (name == "external", "num_steps partial", "external takes scores, and no rollouts"),
            (not isinstance(self.levels, str), "capacity", "it belongs to the levels unbounded and payloads"),
        )
        why = {field: reason for holds, fields, reason in reversed(rules) if holds for field in fields.split()}
        return {
            field.name: why[field.name]
            for field in dataclasses.fields(self)
            if field.name in why and getattr(self, field.name) != field.default
        }


def nearest(name: str, known: Collection[str]) -> str:
    """Returns what was expected in the place of an unknown name: the known one that it resembles, or all of them."""
    close = difflib.get_close_matches(name, known, 1)
    return f"a field such as {close[0]}" if close else f"one of {', '.join(known)}"


def named_configs(fields: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> dict[str, Config]:
    """Returns the configurations of a server's curricula by name.

    Args:
        fields: plain values by field name, and under "curricula", where there is more than one, a table of such fields
            for each name. What a table lacks it takes from the top.
        said: fields that win over these, in every curriculum.

    Raises:
        ConfigError: a name is unknown, or a value is not what it must be; says in which table.
    """
    shared, said = {name: value for name, value in fields.items() if name != "curricula"}, said or {}
    tables = fields.get("curricula", {DEFAULT_CURRICULUM: {}})
    if not (isinstance(tables, Mapping) and tables and all(isinstance(table, Mapping) for table in tables.values())):
        raise ConfigError("curricula", "a table of fields for each name, at least one", f"{tables!r:.80}")
    for name in shared:
        if name not in (known := (*Config.docs(), "preset", "curricula")):
            raise ConfigError(name, nearest(name, known), "an unknown name")
    return {name: _of_table(name, table, shared, said) for name, table in tables.items()}


def _of_table(name: str, table: Mapping[str, Any], shared: Mapping[str, Any], said: Mapping[str, Any]) -> Config:
    try:
        return Config.from_dict({**shared, **table, **said})
    except ConfigError as error:
        if error.field in table and error.field not in said:
            raise ConfigError(f"[curricula.{name}] {error.field}", error.expected, error.got) from None
        raise


def _levels(given: Any) -> range | tuple[int, ...] | str:
    if isinstance(given, str) and given in OPEN_SPACES:
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        raise ConfigError("levels", f"'0:{given}' (so many levels) or [{given}] (one level)", repr(given))
    levels = _parse_levels(given) if isinstance(given, str) else given
    if not isinstance(levels, range):
        try:
            ids = np.asarray(levels) if isinstance(levels, Sequence | np.ndarray) else np.empty((0, 0))
        except ValueError as exc:  # lists of different lengths
            raise ConfigError("levels", LEVELS_EXPECTED, f"{given!r:.80}") from exc
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ConfigError("levels", LEVELS_EXPECTED, f"{given!r:.80}")
        levels = tuple(ids.tolist())
        if len(set(levels)) != len(levels):
            raise ConfigError("levels", LEVELS_EXPECTED, "an id twice")
    if not levels:
        raise ConfigError("levels", LEVELS_EXPECTED, "none")
    ends = (levels[0], levels[-1]) if isinstance(levels, range) else levels
    if max(map(abs, ends)) > MAX_LEVEL:
        raise ConfigError("levels", LEVELS_EXPECTED, "an id beyond int64")
    if isinstance(levels, range) and (levels[-1] - levels[0]) // levels.step >= MAX_LEVELS:
        raise ConfigError("levels", f"at most {MAX_LEVELS} levels", f"{levels}")
    return levels


def _parse_levels(text: str) -> range | list[int]:
    if re.fullmatch(r"-?\d{1,19}:-?\d{1,19}(:-?0*[1-9]\d{0,18})?", text):
        return range(*map(int, text.split(":")))
    if re.fullmatch(r"-?\d{1,19}", text):
        raise ConfigError("levels", f"0:{text} (so many levels) or [{text}] (one level; as text {text},)", repr(text))
    if re.fullmatch(r"-?\d{1,19},(-?\d{1,19}(,-?\d{1,19})*)?", text):
        return [int(part) for part in text.rstrip(",").split(",")]
    raise ConfigError("levels", LEVELS_EXPECTED, repr(text))
