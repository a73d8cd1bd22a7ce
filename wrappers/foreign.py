"""What the drop-ins for level-replay, Syllabus and DI-engine share: their words in ours, a server and a table of seeds.

May be imported by `wrappers.level_replay`, `wrappers.syllabus` and `wrappers.di_engine` alone. It imports plr_server
only in the calls that configure or start one.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plr_client import ConfigError, InvalidInput, LevelOutsideSpace, Trainer

if TYPE_CHECKING:
    from plr_server import Config


class SeedTable:
    """What a `LevelSampler` of level-replay or DI-engine tells of its seeds, read from the server, a request each.

    Attributes:
        seeds: (n,) int64, in the order given. So are the arrays below.
        seed2index: the index of each seed.

    Args:
        trainer: the connection to the server.
        seeds: distinct ints.

    Raises:
        LevelOutsideSpace: the server does not have these seeds.
        ServerUnreachable: no reply from the server.
    """

    def __init__(self, trainer: Trainer, seeds: Sequence[int]) -> None:
        self._trainer = trainer
        self.seeds: NDArray[np.int64] = np.array(seeds, dtype=np.int64)
        self.seed2index = {seed: index for index, seed in enumerate(self.seeds.tolist())}
        places = {level: place for place, level in enumerate(trainer.scores()[0].tolist())}
        if missing := self.seed2index.keys() - places.keys():
            raise LevelOutsideSpace("seeds", "levels of the daemon", f"{len(missing)} that it does not have")
        self._places = np.array([places[seed] for seed in self.seeds.tolist()])  # among the server's levels

    @property
    def seed_scores(self) -> NDArray[np.float64]:
        """(n,) scores, 0 for a seed without one."""
        scores: NDArray[np.float64] = self._trainer.scores()[1][self._places]
        return scores

    @property
    def seed_staleness(self) -> NDArray[np.int64]:
        """(n,) how many draws ago each seed was last drawn."""
        staleness: NDArray[np.int64] = self._trainer.scores()[2][self._places]
        return staleness

    @property
    def unseen_seed_weights(self) -> NDArray[np.float64]:
        """(n,) 1 for a seed without a score, else 0."""
        seen: NDArray[np.bool_] = self._trainer.scores()[3][self._places]
        return 1.0 - seen

    def update_seed_score(
        self,
        actor_index: int,  # noqa: ARG002
        seed_idx: int,
        score: float,
        num_steps: int,
    ) -> None:
        """Gives a seed a score of your own making: of an episode, whole or in part. `alpha` mixes it with the old one.

        Args:
            actor_index: no effect.
            seed_idx: the seed's index, 0 to n - 1.
            score: finite.
            num_steps: no effect beyond its check: parts of an episode are not pooled. 1 or more.

        Raises:
            InvalidInput: the score is not a finite number, or there are no steps.
            LevelOutsideSpace: there is no such index.
            ServerUnreachable: no reply from the server.
        """
        if not isinstance(num_steps, int | np.integer) or num_steps < 1:
            raise InvalidInput("num_steps", "1 or more: there is no score in part to be ended", repr(num_steps))
        if not isinstance(seed_idx, int | np.integer) or not 0 <= seed_idx < len(self.seeds):
            raise LevelOutsideSpace("seed_idx", f"0 to {len(self.seeds) - 1}", repr(seed_idx))
        self._trainer.push_scores(self.seeds[[seed_idx]], host_array("score", score, ())[np.newaxis])


def drawn_seed() -> int:
    """Returns a seed for a curriculum that was given none, 0 to 2**31 - 1.

    The three libraries draw levels from numpy's global generator, which their training scripts seed with the run's
    seed. From there it comes here too, so that those scripts decide it as they did.
    """
    return int(np.random.randint(2**31))  # noqa: NPY002  the generator that they seed


def own_server(owner: object, config: Config) -> tuple[str, Callable[[], object]]:
    """Starts a server that ends with `owner`, or earlier by the function that is returned, or with this process.

    A forked child stops nothing (`plr_server.launch`).

    Args:
        owner: the object that the server belongs to.
        config: its configuration.

    Returns:
        Its address, and what stops it.

    Raises:
        ServerStartError: it did not start.
    """
    from plr_server import launch  # noqa: PLC0415  a user of a daemon's address needs no server

    stack = contextlib.ExitStack()
    address = stack.enter_context(launch(config)).address
    return address, weakref.finalize(owner, stack.close)


def config_of(words: Mapping[str, str], **fields: Any) -> Config:
    """Returns `Config(**fields)`, whose errors are in the caller's words, without the fields that change nothing in it.

    They are mostly the other library's defaults, and the server would warn of each.

    Args:
        words: the caller's word for a field, by the field's name, where it is another.
        fields: of `Config`.

    Raises:
        ConfigError: a value is not what it must be.
    """
    from plr_server import Config  # noqa: PLC0415  as above

    try:
        idle = Config(**fields).without_effect()
        return Config(**{name: value for name, value in fields.items() if name not in idle})
    except ConfigError as error:
        raise ConfigError(words.get(error.field, error.field), error.expected, error.got) from error


def share(name: str, value: Any) -> float:
    """Returns the value.

    Raises:
        InvalidInput: it is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not 0 <= value <= 1:
        raise InvalidInput(name, "a number from 0 to 1", f"{value!r:.80}")
    return float(value)


def replay_fields(schedule: str, rho: float, replay_prob: float) -> dict[str, Any]:
    """Returns the fields of a `Config` that replay when level-replay's and Syllabus' words say so.

    Args:
        schedule: "fixed" or "proportionate".
        rho: the share of levels seen before any replay, 0 to 1.
        replay_prob: the probability of a replay after that, 0 to 1; under "proportionate" its upper bound.

    Raises:
        InvalidInput: the schedule is neither, a number is no share, or under "proportionate" `rho` lies between 0 and
            `replay_prob`: that is not here.
    """
    if not isinstance(schedule, str) or schedule not in {"fixed", "proportionate"}:
        raise InvalidInput("replay_schedule", "fixed or proportionate", f"{schedule!r:.80}")
    rho = share("rho", rho)
    if schedule == "proportionate" and rho:
        if rho < 1.0 and rho < (cap := share("replay_prob", replay_prob)):
            least = "1" if cap == 1.0 else f"replay_prob, {cap:g}, or more,"
            expected = f"0 or {least} under the schedule proportionate (replay_schedule='fixed' takes any from 0 to 1)"
            raise InvalidInput("rho", expected, repr(rho))
        schedule = "fixed"  # once rho is seen, min(seen share, replay_prob) is replay_prob: the schedules agree
    return {"replay_schedule": schedule, "min_fill_ratio": rho, "replay_prob": replay_prob}


def refuse(given: Mapping[str, Any], instead: Mapping[str, str], no_effect: frozenset[str]) -> None:
    """Raises for arguments that have no counterpart here, unless they ask for nothing.

    Args:
        given: arguments by name.
        instead: what to do instead, by name; None, False and 0 are what the argument is without it.
        no_effect: names of arguments that change nothing here.

    Raises:
        InvalidInput: an argument asks for something, or neither list knows it.
    """
    for name, value in given.items():
        if name in no_effect:
            continue
        if name not in instead:
            raise InvalidInput(name, f"one of {', '.join(sorted({*instead, *no_effect}))}", "an unknown argument")
        if getattr(value, "ndim", 0) or value:  # an array asks for something, and has no truth of its own
            raise InvalidInput(name, instead[name], f"{value!r:.80}")


def host_array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns a copy of an array or torch tensor on any device, in a shape that may only add or drop axes of length 1.

    Raises:
        InvalidInput: it is no array of numbers, does not fit the shape, or is not finite.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.array(value)
    except Exception as error:  # whatever a foreign object raises when it cannot become an array
        raise InvalidInput(name, f"numbers of shape {shape}", str(error)) from error
    if array.dtype.kind not in "fiub":
        raise InvalidInput(name, f"numbers of shape {shape}", f"dtype {array.dtype}")
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise InvalidInput(name, f"shape {shape}", f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInput(name, "finite numbers", "others among them")
    return array.reshape(shape)
