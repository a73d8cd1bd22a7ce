"""A drop-in for what users of Syllabus import to train with Prioritized Level Replay: its names, played by our server.

May be imported by users; imports gymnasium, numpy and plr_client, never Syllabus or torch, and Ray only where its names
are used. It has no code of Syllabus and keeps no scores: it hands over what the trainer reports, each row credited to
the level it was played on. What differs from Syllabus is in docs/syllabus.md.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from plr_client import InvalidInput, LevelClient, LevelOutsideSpace, MissingField, PlrError, Trainer
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.env import told
from wrappers.foreign import config_of, drawn_seed, host_array, own_server, refuse, replay_fields, share
from wrappers.level_replay import BASELINES, OF_ADVANTAGES, POLICY_STRATEGIES, LevelSampler

_SAMPLER_FIELDS = {  # Syllabus' names in `Config`'s
    "strategy": "strategy",
    "score_transform": "transform",
    "temperature": "temperature",
    "eps": "eps",
    "alpha": "alpha",
    "staleness_coef": "staleness_coef",
    "staleness_temperature": "staleness_temperature",
    "max_score_coef": "max_score_coef",
}
_WORDS = {ours: theirs for theirs, ours in _SAMPLER_FIELDS.items()} | {"min_fill_ratio": "rho", "levels": "tasks"}
_SAMPLER_INSTEAD = {
    "sample_full_distribution": 'a daemon with levels = "unbounded", whose levels are fresh seeds (README.md)',
    "use_dense_rewards": "False: R_max - V_t is taken over all steps (strategy grounded_signed_value_loss)",
    "gamma": "None here: it is an argument of PrioritizedLevelReplay",
    "gae_lambda": "None here: it is an argument of PrioritizedLevelReplay",
    "robust_plr": "False; or a daemon with --robust and LevelReplayVector.train_mask (examples/robust_plr.py)",
    "evaluator": "None: values come from the trainer",
}
_SAMPLER_NO_EFFECT = frozenset({"num_actors", "action_space", "task_buffer_size", "task_buffer_priority"})
_INSTEAD = {
    "evaluator": "None: values come from the trainer, by update()",
    "get_value": "None: the trainer calls it itself, and hands over what it gives in update({'value': ...})",
    "get_action_log_dist": "None: the trainer calls it itself, for update({'action_log_dist': ...})",
    "robust_plr": _SAMPLER_INSTEAD["robust_plr"],
    "random_start_tasks": "0: task_sampler_kwargs_dict={'rho': share} plays new levels until that share is seen",
    "record_stats": "False: gymnasium's RecordEpisodeStatistics records returns; log_metrics() writes scores",
}
_NO_EFFECT = frozenset(
    {
        "action_space",
        "device",
        "suppress_usage_warnings",
        "pie_plot_interval",
        "num_minibatches",
        "buffer_size",
        "lstm_size",
    }
)
_METHODS_INSTEAD = {
    "update_on_step": "update(): the trainer reports steps, the envs only play",
    "update_on_step_batch": "update(): the trainer reports steps, the envs only play",
    "update_on_episode": "update(): episodes are found in its dones",
    "update_task_progress": "update(): levels are scored by what the trainer learns from them",
    "set_value_fn": "update(): values come from the trainer",
    "normalize": "a wrapper around the vector env, such as VecNormalize or NormalizeReward",
    "add_agent": "levels only: agents are no levels",
    "get_agent": "levels only: agents are no levels",
}
_SYNC_INSTEAD = {
    "change_task_on_completion": "False: a level lasts for one episode",
    "global_task_completion": "None: a level lasts for one episode",
    "default_task": "None: the first level too comes from the curriculum",
}
_SYNC_NO_EFFECT = frozenset({"batch_size", "remove_keys", "update_on_step"})
_QUEUE_NO_EFFECT = frozenset({"max_queue_size", "max_envs", "use_simple_queues", "verbose"})


class NotHere(InvalidInput, AttributeError):
    """A method of Syllabus that is not here; `hasattr` says so too. Attributes as `InvalidInput`."""


class DiscreteTaskSpace:
    """A finite set of tasks, each an int: the level's id, and for levels that are seeds the seed.

    Attributes:
        gym_space: the `Discrete` space of indices.
        tasks: the tasks; their index is their encoding.

    Args:
        space_or_value: how many, or a gymnasium `Discrete` space.
        tasks: the tasks, distinct ints; by default 0 to n - 1.

    Raises:
        InvalidInput: the space is neither, or the tasks are not that many distinct ints.
    """

    def __init__(self, space_or_value: int | gym.spaces.Discrete, tasks: Sequence[int] | None = None) -> None:
        if isinstance(space_or_value, int) and not isinstance(space_or_value, bool) and space_or_value > 0:
            space_or_value = gym.spaces.Discrete(space_or_value)
        if not isinstance(space_or_value, gym.spaces.Discrete):
            raise InvalidInput("space_or_value", "a number of tasks, or a Discrete space", repr(space_or_value))
        self.gym_space = space_or_value
        try:
            self.tasks = list(map(operator.index, range(self.gym_space.n) if tasks is None else tasks))
        except TypeError as error:
            expected = "ints (name them in the TaskWrapper: names[new_task] in its change_task)"
            raise InvalidInput("tasks", expected, f"{tasks!r:.80}") from error
        self._encoding = {task: index for index, task in enumerate(self.tasks)}
        if len(self._encoding) != self.gym_space.n:
            raise InvalidInput("tasks", f"{self.gym_space.n} distinct ints", f"{len(self._encoding)}")

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def encode(self, task: int) -> int:
        """Returns the task's index.

        Raises:
            LevelOutsideSpace: it is no task of the space.
        """
        if task not in self._encoding:
            raise LevelOutsideSpace("task", f"one of the {self.num_tasks} tasks", repr(task))
        return self._encoding[task]

    def decode(self, encoding: int) -> int:
        """Returns the task of an index.

        Raises:
            LevelOutsideSpace: there is no such index.
        """
        if not 0 <= encoding < self.num_tasks:
            raise LevelOutsideSpace("encoding", f"0 to {self.num_tasks - 1}", repr(encoding))
        return self.tasks[encoding]

    def seed(self, seed: int) -> None:
        """Seeds `sample`. The curriculum has a seed of its own."""
        self.gym_space.seed(seed)

    def contains(self, task: object) -> bool:
        """Whether it is a task of the space."""
        return task in self._encoding

    def sample(self) -> int:
        """Returns a task drawn uniformly, outside of any curriculum."""
        return self.decode(int(self.gym_space.sample()) - int(self.gym_space.start))

    def task_name(self, task: int) -> str:
        """Returns the task's name."""
        return repr(task)


TaskSpace = DiscreteTaskSpace


class TaskWrapper(gym.Wrapper):
    """An env whose task can be changed at a reset. Derive from it and override `change_task`, or `reset` itself.

    Attributes:
        task: the task being played.
        task_space: its `DiscreteTaskSpace`, set by the deriving class.
        task_completion: what `_task_completion` returned last.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.task: Any = None
        self.task_space: Any = None
        self.task_completion = 0.0

    def reset(self, new_task: Any = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, on a new task where one is given.

        Args:
            new_task: the task; None keeps the one being played.
            kwargs: `seed` and `options` of the wrapped env; neither picks a task.
        """
        if new_task is not None:
            self.change_task(new_task)
        observation, info = self.env.reset(**kwargs)
        return self.observation(observation), {**info, "task_completion": 0.0, "task": self.task}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the env; its info also tells the task and how far it is completed."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.task_completion = self._task_completion(observation, reward, terminated, truncated, info)
        info = {**info, "task_completion": self.task_completion, "task": self.task}
        return self.observation(observation), reward, terminated, truncated, info

    def change_task(self, new_task: Any) -> None:
        """Makes the next episode one of `new_task`."""
        self.task = new_task

    def observation(self, observation: Any) -> Any:
        """Returns what the agent sees of an observation: all of it, and `_encode_goal()` where that gives a goal."""
        goal = self._encode_goal()
        return observation if goal is None else {**observation, "goal": goal}

    def _encode_goal(self) -> Any:
        return None

    def _task_completion(
        self,
        observation: Any,  # noqa: ARG002
        reward: Any,  # noqa: ARG002
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],  # noqa: ARG002
    ) -> float:
        return float(terminated or truncated)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":  # before __init__, and in a copy, there is no env to ask
            raise AttributeError(name)
        return self.env.get_wrapper_attr(name)


class Task(int):
    """A task as an env tells it: the level it plays now, and what its last transition belongs to.

    After an episode ended the two differ: autoreset has begun the next one. An int otherwise.

    Attributes:
        played: the level of the env's last transition.
        transitions: how many the env has made. Where it did not grow, a step only reset the env (NEXT_STEP).
    """

    played: int
    transitions: int

    def __new__(cls, task: int, played: int, transitions: int) -> Task:
        """Makes one; an int is made by __new__."""
        made = super().__new__(cls, task)
        made.played, made.transitions = played, transitions
        return made

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        return int(self), self.played, self.transitions


@dataclasses.dataclass(frozen=True)
class Components:
    """What an env needs to reach its curriculum; goes into any process.

    Attributes:
        address: where the server listens.
        curriculum: the curriculum's name there.
        timeout_s: seconds that an env waits for a level.
        keys: the path of a key file, as of `plr_client.LevelClient`.
    """

    address: str
    curriculum: str
    timeout_s: float
    keys: KeyFile


class GymnasiumSyncWrapper(gym.Wrapper):
    """Plays, episode by episode, the tasks that the curriculum hands out. Goes around a `TaskWrapper`.

    `task`, and `info["task"]` of every reset and step, are a `Task`: an int that knows which level the last transition
    belongs to, so that rows are credited rightly in any autoreset mode. In the infos of a gymnasium vector env they are
    an array of objects; `.astype(int)` makes it one of ints. The info of a reset has the keys of `LevelReplay`'s too,
    by which the learner of `wrappers.rllib` knows the level.

    Args:
        env: the env; its `reset` takes `new_task`.
        channels: the task space and `curriculum.components`, in any order; also the task and update queues that
            `make_multiprocessing_curriculum` returned, in older releases' way.
        task_space: as keyword.
        components: as keyword.
        task_queue: as keyword; queues of your own have no effect beside `components`, for there are none here.
        update_queue: as task_queue.
        buffer_size: 1 asks for a task when an episode begins; with n, n - 1 are held ready. 1 to 4097.
        more: `batch_size`, `remove_keys` and `update_on_step` have no effect: envs send no steps.

    Raises:
        InvalidInput: an argument is not what it must be, or has no counterpart here.
    """

    def __init__(
        self,
        env: gym.Env,
        *channels: DiscreteTaskSpace | Components,
        task_space: DiscreteTaskSpace | None = None,
        components: Components | None = None,
        task_queue: Any = None,
        update_queue: Any = None,
        buffer_size: int = 1,
        **more: Any,
    ) -> None:
        refuse(more, _SYNC_INSTEAD, _SYNC_NO_EFFECT)
        for channel in (*channels, *(queue for queue in (task_queue, update_queue) if isinstance(queue, Components))):
            if isinstance(channel, Components):
                components = channel
            elif isinstance(channel, DiscreteTaskSpace):
                task_space = channel
            else:
                raise InvalidInput("channels", "a DiscreteTaskSpace and curriculum.components", f"{channel!r:.80}")
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or buffer_size < 1:
            raise InvalidInput("buffer_size", "an integer, 1 or more", repr(buffer_size))
        if components is None:
            expected = "curriculum.components, or the queues that make_multiprocessing_curriculum returned here"
            raise InvalidInput("components", expected, "none")
        super().__init__(env)
        self.task_space = task_space
        self._client = LevelClient(
            components.address,
            curriculum=components.curriculum,
            prefetch=buffer_size - 1,
            timeout_s=components.timeout_s,
            keys=components.keys,
        )
        self._level: int | None = None
        self._played = 0
        self._transitions = 0

    @property
    def task(self) -> Task | None:
        """The task being played; None before the first reset."""
        return None if self._level is None else Task(self._level, self._played, self._transitions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode on the task that the curriculum hands out.

        Args:
            seed: never picks the task; handed on where given.
            options: handed on where given.

        Raises:
            ServerUnreachable: no reply from the server.
        """
        assignment = self._client.next()[0]
        level = assignment.level
        given: dict[str, Any] = {"new_task": level, "seed": seed, "options": options}
        observation, info = self.env.reset(**{name: value for name, value in given.items() if value is not None})
        self._level = level
        if not self._transitions:
            self._played = level
        return observation, {**info, **told(assignment, scored=True), "task": self.task}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the env; its info also tells the task."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._level is not None:
            self._played = self._level
        self._transitions += 1
        return observation, reward, terminated, truncated, {**info, "task": self.task}

    def close(self) -> None:
        """Gives the level in flight back to the server, closes the connection and the wrapped env."""
        self._client.close()
        super().close()


MultiProcessingSyncWrapper = GymnasiumSyncWrapper


class RayGymnasiumSyncWrapper(GymnasiumSyncWrapper):
    """A sync wrapper that finds its curriculum on the Ray cluster, where `make_ray_curriculum` has made it known.

    Args:
        env: as `GymnasiumSyncWrapper`.
        update_on_step: no effect: envs send no steps.
        task_space: as `GymnasiumSyncWrapper`.
        global_task_completion: None: a level lasts for one episode.
        actor_name: the name that it was made known under.

    Raises:
        InvalidInput: no curriculum is known under that name, or as `GymnasiumSyncWrapper`.
        MissingDependency: Ray is not installed.
    """

    def __init__(
        self,
        env: gym.Env,
        update_on_step: bool = True,  # noqa: ARG002
        task_space: DiscreteTaskSpace | None = None,
        global_task_completion: Any = None,
        *,
        actor_name: str = "curriculum",
    ) -> None:
        from wrappers.ray import known  # noqa: PLC0415  optional

        refuse({"global_task_completion": global_task_completion}, _SYNC_INSTEAD, frozenset())
        super().__init__(env, known(actor_name), task_space=task_space)


RaySyncWrapper = RayGymnasiumSyncWrapper


class PrioritizedLevelReplay:
    """Prioritized Level Replay, with the arguments and methods that Syllabus documents.

    It starts a server of its own, which ends with it; or uses a daemon, with `address`. Only the process that made it
    stops that server: copies of it in other processes are clients.

    Attributes:
        task_space: as given.
        components: what the envs' sync wrappers need.
        actor: the Ray actor that makes them known on a cluster; None without `make_ray_curriculum`.

    Args:
        task_space: the tasks; they are the server's level ids.
        observation_space: no effect.
        task_sampler_kwargs_dict: by Syllabus' names; what they are here is a table in docs/syllabus.md.
        num_steps: steps per env that make up one block, which is then scored; 1 or more.
        num_processes: how many envs report; by default as many as the first update has.
        gamma: discount; 0.999 by default.
        gae_lambda: lambda of generalised advantage estimation; 0.95 by default.
        task_names: called as task_names(task, index), for `log_metrics`.
        seed: of the server's generator, 0 or more. Without one it is drawn from numpy's global generator, which
            `np.random.seed` seeds, as Syllabus' draws are.
        address: where a daemon listens that is used instead; it has the configuration, and these tasks as its levels.
        curriculum: the name of the curriculum there; only with `address`.
        keys: the path of a trainer's key file, where the daemon asks for keys; by default what the environment variable
            PLR_KEYS names; only with `address`.
        more: Syllabus' other arguments have no effect, or raise where they ask for what is not here.

    Raises:
        InvalidInput: an argument is not what it must be, or has no counterpart here.
        ConfigError: a value is out of its range.
        LevelOutsideSpace: the daemon does not have these levels.
        ServerUnreachable: no daemon at the address.
    """

    def __init__(
        self,
        task_space: DiscreteTaskSpace,
        observation_space: gym.Space[Any] | None = None,  # noqa: ARG002
        *,
        task_sampler_kwargs_dict: Mapping[str, Any] | None = None,
        num_steps: int = 256,
        num_processes: int | None = None,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        task_names: Callable[[int, int], object] | None = None,
        seed: int | None = None,
        address: str | None = None,
        curriculum: str = DEFAULT_CURRICULUM,
        keys: KeyFile = None,
        **more: Any,
    ) -> None:
        refuse(more, _INSTEAD, _NO_EFFECT)
        if not isinstance(task_space, DiscreteTaskSpace):
            raise InvalidInput("task_space", "a DiscreteTaskSpace", repr(task_space))
        for name, count in (("num_steps", num_steps), ("num_processes", num_processes)):
            wrong = isinstance(count, bool) or not isinstance(count, int) or count < 1
            if wrong and not (name == "num_processes" and count is None):
                raise InvalidInput(name, "an integer, 1 or more", repr(count))
        self.task_space = task_space
        self._stop: Callable[[], object] | None = None
        fields = _config_fields(task_sampler_kwargs_dict, gamma, gae_lambda, seed)
        if address is None:
            if curriculum != DEFAULT_CURRICULUM:
                raise InvalidInput("curriculum", "an address beside it, of a daemon that has it", repr(curriculum))
            if keys is not None:
                raise InvalidInput("keys", "an address beside them, of a daemon that asks for keys", repr(keys))
            config = config_of(_WORDS, levels=tuple(task_space.tasks), num_steps=num_steps, **fields)
            address, self._stop = own_server(self, config)
            keys = ""
        elif any(given is not None for given in (task_sampler_kwargs_dict, gamma, gae_lambda, seed)):
            expected = "no settings beside it: the daemon has its own (plr-server serve --help)"
            raise InvalidInput("address", expected, "task_sampler_kwargs_dict, gamma, gae_lambda or seed")
        self.components = Components(address, curriculum, 60.0, keys)
        self._trainer = Trainer(address, curriculum=curriculum, keys=keys)
        self._client = LevelClient(address, curriculum=curriculum, keys=keys)
        if self._stop is None and (missing := set(task_space.tasks) - set(self._trainer.scores()[0].tolist())):
            raise LevelOutsideSpace("task_space", "levels of the daemon", f"{len(missing)} that it does not have")
        self._num_steps = num_steps
        self._num_envs = num_processes
        self._task_names = task_names
        self.actor: Any = None
        self._transitions: list[int] = []
        self._block: list[dict[str, NDArray[Any]]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stop": None, "actor": None}  # the server and the actor are its maker's

    def __getattr__(self, name: str) -> NoReturn:
        if name in _METHODS_INSTEAD:
            raise NotHere(name, _METHODS_INSTEAD[name], f"a call of {name}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __iter__(self) -> Iterator[Any]:
        """Older releases returned `curriculum, task_queue, update_queue`."""
        return iter((self, self.components, self.components))

    @property
    def curriculum(self) -> PrioritizedLevelReplay:
        """Itself: the synchronized curriculum and the one inside are one."""
        return self

    @property
    def tasks(self) -> list[int]:
        """All tasks."""
        return self.task_space.tasks

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return self.task_space.num_tasks

    @property
    def requires_step_updates(self) -> bool:
        """False: the envs send no steps."""
        return False

    @property
    def task_queue(self) -> Components:
        """`components`: what stands for the queues of older releases."""
        return self.components

    update_queue = task_queue

    def get_components(self) -> Components:
        """Returns `components`, under the name of older releases."""
        return self.components

    def sample(self, k: int = 1) -> list[int]:
        """Returns the next k tasks. The envs' sync wrappers ask by themselves.

        Raises:
            InvalidInput: k is not 1 to 65 536.
            ServerUnreachable: no reply from the server.
        """
        return [assignment.level for assignment in self._client.next(k)]

    def update(self, update: Mapping[str, Any]) -> None:
        """Reports one step of all envs; every `num_steps` of them are scored.

        Args:
            update: the metrics, or `{"update_type": "on_demand", "metrics": {...}}`. Arrays or torch tensors of N
                numbers: "value" V of the observation before the step, "next_value" V of the one after it, "rew" the
                rewards, "dones" whether the step ended the episode; "tasks", a sequence of N tasks as the envs tell
                them (`envs.get_attr("task")` or from the infos); and (N, A) "action_log_dist" for the strategies that
                read the policy. "next_value" is read at the last step of a block. Where it is None, or the same
                object as "value", the block waits for the next update, whose "value" it is.

        Raises:
            InvalidInput: a metric is not what it must be, and nothing of the update was taken.
            MissingField: a metric is missing, and nothing of the update was taken.
            LevelOutsideSpace: a task is not in the task space, and nothing of the update was taken.
            PlrError: as `Trainer.push`, when a block is pushed. The update was taken and the block was dropped: go on
                with the next update.
        """
        kind = update.get("update_type", "on_demand")
        if kind != "on_demand":
            raise InvalidInput("update_type", "on_demand: the envs report nothing by themselves", repr(kind))
        metrics = update.get("metrics", update)
        row, next_values, transitions = self._checked(metrics)
        self._num_envs, self._transitions = len(row["levels"]), transitions
        try:
            if len(self._block) >= self._num_steps:  # it waits for the value of the observation after it
                self._push(row.get("values"))
        finally:
            self._block.append(row)  # of the next block, whatever became of that one
        waits = "values" in row and (next_values is None or metrics["next_value"] is metrics["value"])
        if len(self._block) >= self._num_steps and not waits:
            self._push(next_values)

    update_curriculum = update
    update_on_demand = update

    def log_metrics(
        self,
        writer: Any,
        logs: list[tuple[str, Any]] | int | None = None,
        step: int | None = None,
        log_n_tasks: int = 1,
    ) -> list[tuple[str, Any]]:
        """Writes what the curriculum is doing, under Syllabus' names; with a step also what `Trainer.log_to` writes.

        Args:
            writer: a tensorboard SummaryWriter, or the wandb module or a run.
            logs: pairs of names and values to write as well; an int is taken for `step`, as older releases have it.
            step: the global step.
            log_n_tasks: of how many tasks probability, score and staleness are written; -1 for all.

        Returns:
            All pairs written under Syllabus' names.

        Raises:
            ServerUnreachable: no reply from the server.
        """
        if isinstance(logs, int):
            logs, step = None, logs
        stats = self._trainer.stats()
        levels, scores, staleness, _ = self._trainer.scores()
        weights = self._trainer.weights()
        written = [
            *(logs or []),
            ("curriculum/proportion_seen", stats["seen_share"]),
            ("curriculum/score", stats["mean_score"]),
            ("curriculum/nonzero_probability_tasks", int(np.count_nonzero(weights))),
            ("curriculum/entropy", float(np.log(max(stats["effective_levels"], 1.0)))),
        ]
        for index, task in enumerate(levels.tolist()[: None if log_n_tasks < 0 else log_n_tasks]):
            name = index if self._task_names is None else self._task_names(task, index)
            written += [
                (f"curriculum/{name}_prob", float(weights[index])),
                (f"curriculum/{name}_score", float(scores[index])),
                (f"curriculum/{name}_staleness", int(staleness[index])),
            ]
        if hasattr(writer, "add_scalar"):
            for name, value in written:
                writer.add_scalar(name, value, step)
        else:
            writer.log(dict(written))
        if step is not None:
            self._trainer.log_to(writer, step)
        return written

    def start(self) -> None:
        """Does nothing: the server runs from the beginning."""

    def stop(self) -> None:
        """Closes the connections, and stops the server if it is this object's own."""
        self._trainer.close()
        self._client.close()
        self.actor = None
        if self._stop is not None:
            self._stop()

    def _checked(
        self, metrics: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64] | None, list[int]]:
        """Returns the step as arrays by our names, next_values, and how many transitions each env has made."""
        for name in ("dones", "tasks"):
            if metrics.get(name) is None:
                raise MissingField(name, "in every update", "none")
        if unknown := metrics.keys() - _METRICS:
            expected = f"only {', '.join(sorted(_METRICS))}, of all envs (plr_client.Trainer.push_step takes columns=)"
            raise InvalidInput("metrics", expected, ", ".join(sorted(unknown)))
        levels, transitions = self._played(metrics["tasks"])
        shape = levels.shape
        row: dict[str, NDArray[Any]] = {"levels": levels, "dones": host_array("dones", metrics["dones"], shape) > 0}
        if transitions:
            before = self._transitions or [0] * len(transitions)
            row["valid"] = np.array([now != then for now, then in zip(transitions, before, strict=True)])
        for name, ours in (("value", "values"), ("rew", "rewards"), ("next_value", "next_values")):
            if metrics.get(name) is not None:
                row[ours] = host_array(name, metrics[name], shape).astype(np.float64)
        if (logits := metrics.get("action_log_dist")) is not None:
            row["logits"] = host_array("action_log_dist", logits, (*shape, np.shape(logits)[-1]))
        next_values = row.pop("next_values", None)
        if self._block and self._block[0].keys() != row.keys():
            expected = f"the same in every update of a block ({', '.join(self._block[0])})"
            raise InvalidInput("metrics", expected, ", ".join(row))
        return row, next_values, transitions

    def _played(self, tasks: Any) -> tuple[NDArray[np.int64], list[int]]:
        """Returns (N,) the levels of a step's transitions, and how many each env has made; none if they do not tell."""
        tasks = list(tasks.tolist() if hasattr(tasks, "tolist") else tasks)
        if self._num_envs not in {None, len(tasks)}:
            raise InvalidInput("tasks", f"one for each of {self._num_envs} envs", f"{len(tasks)}")
        told = all(isinstance(task, Task) for task in tasks)
        levels = [task.played for task in tasks] if told else tasks
        for level in levels:
            self.task_space.encode(level)
        return np.array(levels, np.int64), [task.transitions for task in tasks] if told else []

    def _push(self, next_values: NDArray[Any] | None) -> None:
        block, self._block = self._block, []
        arrays = {name: np.stack([row[name] for row in block]) for name in block[0]}
        try:
            self._trainer.push(
                arrays.get("values"),
                arrays.get("rewards"),
                arrays["dones"],
                arrays["levels"],
                next_values,
                valid=arrays.get("valid"),
                logits=arrays.get("logits"),
            )
        except PlrError:
            self._trainer.close()  # the steps after the gap are not those of the episodes before it
            raise


_METRICS = frozenset({"value", "next_value", "rew", "dones", "tasks", "action_log_dist"})
CentralPrioritizedLevelReplay: TypeAlias = PrioritizedLevelReplay
CentralizedPrioritizedLevelReplay: TypeAlias = PrioritizedLevelReplay


def make_multiprocessing_curriculum(
    curriculum: PrioritizedLevelReplay,
    start: bool = True,  # noqa: ARG001
    *,
    timeout: float = 60.0,
    **more: Any,
) -> PrioritizedLevelReplay:
    """Returns the curriculum, which any process can reach already; it also unpacks into itself and two queues.

    Args:
        curriculum: the curriculum.
        start: no effect: the server runs from the beginning.
        timeout: seconds that an env waits for a task; above 0.
        more: the sizes and kinds of queues have no effect: there are none.

    Raises:
        InvalidInput: an argument is unknown.
    """
    refuse(more, {}, _QUEUE_NO_EFFECT)
    curriculum.components = dataclasses.replace(curriculum.components, timeout_s=timeout)
    return curriculum


def make_ray_curriculum(curriculum: PrioritizedLevelReplay, actor_name: str = "curriculum") -> PrioritizedLevelReplay:
    """Returns the curriculum, once the Ray cluster knows where it is: `RayGymnasiumSyncWrapper` finds it by the name.

    RLlib's trainer reports by `wrappers.rllib.LevelReplayPPOTorchLearner`, with the `plr_address`
    `curriculum.components.address` (docs/syllabus.md).

    Args:
        curriculum: the curriculum. On a cluster of several nodes it is one with the address of a daemon that they all
            reach, such as that of `wrappers.ray.start(Config(...), keys=DIR)`.
        actor_name: the name, for as long as the curriculum lives.

    Raises:
        InvalidInput: the name is taken, or there are several nodes and the curriculum's server is reached by one.
        MissingDependency: Ray is not installed.
    """
    from wrappers.ray import make_known  # noqa: PLC0415  optional

    curriculum.actor = make_known(curriculum.components, curriculum.components.address, actor_name)
    return curriculum


class TaskSampler(LevelSampler):
    """Syllabus' sampler without a curriculum around it: draws tasks and learns from rollouts. Its server is its own.

    Attributes:
        tasks: (n,) int64.
        num_tasks: n.
        task2index: the index of each task, in `tasks` and in all arrays of one number a task.
        strategy: as given.

    Args:
        tasks: distinct ints; they are the server's level ids.
        num_steps: of a rollout, how many steps are read; by default all.
        action_space: no effect.
        task_space: no effect.
        num_actors: how many envs play, 1 or more.
        strategy: what scores an episode.
        gamma: discount of the strategies that do not take the advantages from the rollouts, 0 to 1.
        gae_lambda: no effect: advantages are the rollouts'.
        seed: as of `PrioritizedLevelReplay`.
        more: what `PrioritizedLevelReplay` takes as `task_sampler_kwargs_dict`.

    Raises:
        InvalidInput: an argument is not what it must be, or has no counterpart here.
        ConfigError: a value is out of its range.
    """

    _SEEDS = "tasks"

    def __init__(  # noqa: PLR0917  as Syllabus has them
        self,
        tasks: Sequence[int],
        num_steps: int | None = None,
        action_space: Any = None,  # noqa: ARG002
        task_space: Any = None,  # noqa: ARG002
        num_actors: int = 1,
        strategy: str = "value_l1",
        *,
        gamma: float = 0.999,
        gae_lambda: float = 0.95,
        seed: int | None = None,
        **more: Any,
    ) -> None:
        if num_steps is not None and (isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1):
            raise InvalidInput("num_steps", "an integer, 1 or more", repr(num_steps))
        try:
            levels = tuple(map(operator.index, tasks))
        except TypeError as error:
            raise InvalidInput("tasks", "a list of ints", f"{tasks!r:.80}") from error
        of_advantages = strategy in OF_ADVANTAGES
        fields = _config_fields(more | {"strategy": strategy}, 0.0 if of_advantages else gamma, gae_lambda, seed)
        self._num_steps = num_steps
        self._max_score_coef: float = fields.get("max_score_coef", 0.0)
        self._open(levels, strategy, num_actors, config_of(_WORDS, levels=levels, **fields))
        self.tasks, self.num_tasks, self.task2index = self.seeds, len(self.seeds), self.seed2index

    @property
    def requires_value_buffers(self) -> bool:
        """Whether the strategy reads returns, rewards and value predictions."""
        return self.strategy not in {*BASELINES, *POLICY_STRATEGIES, "uniform"}

    @property
    def task_scores(self) -> NDArray[np.float64]:
        """(n,) scores, 0 for a task without one."""
        return self.seed_scores

    @property
    def task_staleness(self) -> NDArray[np.int64]:
        """(n,) how many draws ago each task was last drawn."""
        return self.seed_staleness

    @property
    def unseen_task_weights(self) -> NDArray[np.float64]:
        """(n,) 1 for a task without a score, else 0."""
        return self.unseen_seed_weights

    @property
    def max_score(self) -> float:
        """The highest score."""
        return float(self.seed_scores.max())

    def update_with_rollouts(self, rollouts: Any, actor_id: int | None = None, external_scores: Any = None) -> None:
        """Scores the tasks of a rollout, after its `compute_returns`.

        An episode belongs to the task in its first row.

        Args:
            rollouts: a RolloutStorage, as `LevelSampler.update_with_rollouts` has it, but with `tasks` (T, N, 1) for
                `level_seeds`.
            actor_id: the env whose steps are read, 0 to N - 1; by default all.
            external_scores: None: `update_task_score` takes scores of your own making.

        Raises:
            InvalidInput: a field is missing or not what it must be, or there is no such env; nothing was applied.
            LevelOutsideSpace: a task is none of the sampler's.
            ServerUnreachable: no reply from the server.
        """
        refuse({"external_scores": external_scores}, _UPDATE_INSTEAD, frozenset())
        self._score(rollouts, self._num_steps, actor_id)

    def update_task_score(  # noqa: PLR0917  as Syllabus has them
        self,
        actor_index: int,
        task: int,
        score: float,
        max_score: float,
        num_steps: int,
        running_mean: bool = True,  # noqa: ARG002
    ) -> tuple[float, int]:
        """Gives a task a score of your own making: of an episode, whole or in part. `alpha` mixes it with the old one.

        Args:
            actor_index: no effect.
            task: the task.
            score: mean over the steps, finite.
            max_score: maximum over the steps, finite; read where `max_score_coef` is not 0.
            num_steps: as of `update_seed_score`.
            running_mean: no effect.

        Returns:
            The score as it was given, and the task's index.

        Raises:
            InvalidInput: a score is not a finite number, or there are no steps.
            LevelOutsideSpace: it is no task of the sampler's.
            ServerUnreachable: no reply from the server.
        """
        if task not in self.task2index:
            raise LevelOutsideSpace("task", f"one of the {self.num_tasks} tasks", repr(task))
        coef = self._max_score_coef
        mixed = coef * max_score + (1.0 - coef) * score if coef else score
        self.update_seed_score(actor_index, self.task2index[task], mixed, num_steps)
        return score, self.task2index[task]

    def after_update(self, actor_indices: Any = None) -> None:
        """Does nothing: what a block holds of an unfinished episode was scored with the block."""

    def metrics(self) -> dict[str, Any]:
        """Returns task_scores, task_staleness, unseen_task_weights, proportion_seen, and score, the mean of the seen.

        Raises:
            ServerUnreachable: no reply from the server.
        """
        stats = self._trainer.stats()
        return {
            "task_scores": self.task_scores,
            "task_staleness": self.task_staleness,
            "unseen_task_weights": self.unseen_task_weights,
            "proportion_seen": stats["seen_share"],
            "score": stats["mean_score"],
        }


_UPDATE_INSTEAD = {"external_scores": "None: update_task_score() takes scores of your own making"}


def _config_fields(
    sampler: Mapping[str, Any] | None, gamma: float | None, gae_lambda: float | None, seed: int | None
) -> dict[str, Any]:
    """Returns fields of `Config` from Syllabus' arguments; what is not given has Syllabus' default."""
    given = dict(sampler or {})
    if "nu" in given:
        if "replay_prob" in given:
            raise InvalidInput("nu", "it or replay_prob, which is 1 - nu", "both")
        given["replay_prob"] = 1.0 - share("nu", given.pop("nu"))
    schedule = given.pop("replay_schedule", "proportionate")
    fields = replay_fields(schedule, given.pop("rho", 1.0), given.pop("replay_prob", 0.5))
    transform = given.pop("staleness_transform", "power")
    if not isinstance(transform, str) or transform != "power":
        raise InvalidInput("staleness_transform", "power, with staleness_temperature", f"{transform!r:.80}")
    fields |= {ours: given.pop(theirs) for theirs, ours in _SAMPLER_FIELDS.items() if theirs in given}
    refuse(given, _SAMPLER_INSTEAD, _SAMPLER_NO_EFFECT)
    fields["seed"] = drawn_seed() if seed is None else seed
    for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if value is not None:
            fields[name] = value
    return fields
