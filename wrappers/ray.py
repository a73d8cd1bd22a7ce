"""The curriculum server on a Ray cluster: a detached actor runs it, and every node finds it by name.

May be imported by users; imports ray, and plr_server only where the server runs. It never touches the curriculum: the
clients talk to the server over tcp as they do elsewhere, and Ray only says where it is. `make_known` and `known` are
for `wrappers.syllabus` alone.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plr_client import InvalidInput, ServerStartError
from plr_client.errors import needed

with needed("ray", "rllib"):
    import ray

if TYPE_CHECKING:
    from plr_server import Config

NAMESPACE = "plr-server"  # a detached actor is found from other jobs too, whose own namespaces differ
LOOPBACK = "127.0.0.1"
LOOK_UP_S = 1.0  # for a server that is about to come back the next attempt asks again


def start(
    config: Config | Mapping[str, Config],
    name: str = "plr",
    *,
    port: int = 0,
    keys: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    state_dir: str | os.PathLike[str] | None = None,
    fsync: str = "interval",
    timeout_s: float = 60.0,
    **actor_options: Any,
) -> str:
    """Starts a server on the cluster; it stays when this job ends, until `stop`.

    The server listens on loopback, for a cluster of one node, or with `keys` on the IP address of its node. Where the
    actor is restarted (`max_restarts`), so is the server: with `state_dir` it goes on where it ended, on whichever
    node; without, its table is empty. Clients that were given a `Lookup` find it wherever it is.

    Args:
        config: the curriculum's configuration; or several by name, each a curriculum of its own in the one server.
        name: what the cluster knows it by.
        port: where it listens; 0 for a free one.
        keys: a folder that `plr-server keygen` made, on storage that the server's node reaches under this path: listen
            beyond loopback, for clients with one of its keys (`keys=` of theirs, or PLR_KEYS). Where the cluster has
            several nodes it needs this, or `insecure`.
        insecure: listen beyond loopback without keys: whoever reaches the node may read and change the curriculum.
        state_dir: the folder that the state lives in, on storage that every node reaches under this path. A server that
            is started on it takes it over: one that still runs on a node that was cut off no longer acknowledges.
        fsync: when a command is on that storage: as for `plr_server.launch`.
        timeout_s: seconds to wait for the server, until a node has room for the actor included; above 0.
        actor_options: Ray's own, for the placement of the actor and its restarts, such as `resources` or
            `max_restarts`. By default it takes no CPU and is not restarted.

    Returns:
        The address, `tcp://HOST:PORT`, once clients can connect.

    Raises:
        InvalidInput: there is a server of that name already, or several nodes and neither `keys` nor `insecure`.
        ServerStartError: the configuration, the keys or the address cannot be served, or there was no server in time.
            Nothing is left of it.
    """
    nodes = _alive_nodes()
    if nodes > 1 and keys is None and not insecure:
        expected = (
            f"a folder of keys (plr-server keygen), or insecure=True said aloud, on a cluster of {nodes} nodes: only "
            "beyond loopback do the others reach the server, and there without keys anybody may change the curriculum"
        )
        raise InvalidInput("keys", expected, "none")
    actor = ray.remote(num_cpus=0, max_task_retries=-1)(_Daemon)  # retries: who asks during a restart waits for it
    detached = actor.options(**actor_options, name=name, namespace=NAMESPACE, lifetime="detached")
    try:
        options = {"keys": keys, "insecure": insecure, "state_dir": state_dir, "fsync": fsync}
        daemon = detached.remote(config, port, options)
    except ValueError as error:  # how Ray says that the name is taken
        expected = "a name that is free (stop() ends the server that has it, address() finds it)"
        raise InvalidInput("name", expected, repr(name)) from error
    try:
        return str(ray.get(daemon.address.remote(), timeout=timeout_s)[0])
    except BaseException as error:  # an interrupt too must leave nothing behind
        ray.kill(daemon)
        if isinstance(error, ray.exceptions.ActorDiedError):  # its text ends with what the constructor raised
            raise ServerStartError(str(error).strip().splitlines()[-1]) from error
        if isinstance(error, ray.exceptions.GetTimeoutError):
            expected = (
                f"expected a server within {timeout_s:g} s (timeout_s), got none; `ray status` says what is waited for"
            )
            raise ServerStartError(f"{expected}: has a node what the actor asks for ({actor_options})?") from error
        raise


def address(name: str = "plr") -> str:
    """Returns where the server of that name listens; for env creators, which run on any node.

    Raises:
        InvalidInput: there is no server of that name, or it listens on the loopback of another node.
    """
    return _address(name, None)


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The server of that name, wherever it is: for clients and wrappers in place of an address.

    They ask it whenever they connect, and so find a server that Ray has restarted on another node. It works in every
    process of the cluster that Ray knows: in drivers, tasks and actors, env runners and learners among them.

    Attributes:
        name: as given to `start`.
    """

    name: str = "plr"

    def __call__(self) -> str | None:
        """Returns its address; None while it is being restarted.

        Raises:
            InvalidInput: as `address`.
        """
        try:
            return _address(self.name, LOOK_UP_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None


def _address(name: str, timeout_s: float | None) -> str:
    found, node = ray.get(_daemon(name).address.remote(), timeout=timeout_s)
    if LOOPBACK in found and node != ray.get_runtime_context().get_node_id():
        expected = "that of a server that other nodes reach (start it with keys=DIR)"
        raise InvalidInput("name", expected, f"{name!r}, which listens on the loopback of another node")
    return str(found)


def stop(name: str = "plr") -> None:
    """Ends the server of that name.

    Raises:
        InvalidInput: there is none.
    """
    ray.kill(_daemon(name))


def make_known(what: object, where: str, name: str) -> Any:
    """Keeps something picklable under a name, where every process of this job finds it (`known`).

    Args:
        what: the thing.
        where: the address of the server that it tells of.
        name: a name of this job's.

    Returns:
        A handle; the name is free again when it is gone.

    Raises:
        InvalidInput: the name is taken, or there are several nodes, which do not reach the address.
    """
    if _alive_nodes() > 1 and (where.startswith("ipc:") or LOOPBACK in where):
        expected = "one that all nodes reach, by address=wrappers.ray.start(Config(...), keys=DIR)"
        raise InvalidInput("curriculum", expected, f"one at {where}")
    try:
        return ray.remote(num_cpus=0)(_Note).options(name=name).remote(what)
    except ValueError as error:  # how Ray says that the name is taken
        raise InvalidInput("actor_name", "a name that is free in this job", repr(name)) from error


def known(name: str) -> Any:
    """Returns what was made known under that name in this job.

    Raises:
        InvalidInput: nothing was.
    """
    try:
        return ray.get(ray.get_actor(name).read.remote())
    except ValueError as error:
        raise InvalidInput(
            "actor_name", "that of a curriculum of this job (make_ray_curriculum)", repr(name)
        ) from error


class _Note:
    def __init__(self, what: object) -> None:
        self._what = what

    def read(self) -> object:
        return self._what


def _alive_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _daemon(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise InvalidInput("name", "that of a server started on this cluster (start)", repr(name)) from error


class _Daemon:
    """Runs the server process and lives as long as it: each ends when the other does.

    A restarted actor runs its constructor again, wherever Ray has room for it: what is to outlive the server comes back
    from its state directory. The server before may still run there, on a node that only Ray takes for dead.
    """

    def __init__(self, config: Config | Mapping[str, Config], port: int, options: Mapping[str, Any]) -> None:
        from plr_server import launch  # noqa: PLC0415  needed on this node alone

        beyond = options["insecure"] or options["keys"] is not None
        host = ray.util.get_node_ip_address() if beyond else LOOPBACK
        self._context = launch(config, f"tcp://{host}:{port}", take_over=options["state_dir"] is not None, **options)
        self._server = self._context.__enter__()  # it ends with this process, however that dies
        threading.Thread(target=self._watch, daemon=True).start()

    def address(self) -> tuple[str, str]:
        return self._server.address, ray.get_runtime_context().get_node_id()

    def _watch(self) -> None:
        self._server.process.wait()
        os._exit(1)  # the way for Ray to see a crash, and to restart the actor where it may
