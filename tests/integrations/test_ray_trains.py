"""wrappers/ray.py on a real cluster of nodes: who finds the server, what ends it, and PPO training across nodes.

Also the names of Syllabus' Ray tabs, which wrappers.syllabus has by wrappers.ray and wrappers.rllib.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import faults
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rllib_recording import RecordingLearner, ShowsLevel, load, pushed_rows, seen_rows

from plr_client import InvalidInput, LevelClient, NotAdmitted, ServerStartError, Trainer
from plr_server import Config
from plr_server.serving.keys import make_key
from wrappers import LevelReplay
from wrappers.ray import NAMESPACE, Lookup, address, start, stop
from wrappers.rllib import LevelReplayPPOTorchLearner
from wrappers.syllabus import (
    DiscreteTaskSpace,
    PrioritizedLevelReplay,
    RaySyncWrapper,
    TaskWrapper,
    make_ray_curriculum,
)

pytestmark = [  # what Ray and RLlib do to themselves
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0:UserWarning"),
]
LISTENING = "0A"  # in /proc/net/tcp
SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, "here" where the driver is and "there"; a server was started before the second one came."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # Ray's processes find the modules of the tests
    nodes = Cluster(initialize_head=True, head_node_args=SMALL | {"num_cpus": 4, "resources": {"here": 9}})
    ray.init(nodes.address, log_to_driver=False)
    start(Config(), "of one node")
    nodes.add_node(num_cpus=4, resources={"there": 9}, object_store_memory=100 * 2**20)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def name(cluster, request):  # noqa: ARG001  on that cluster
    """A name for a server, which is stopped if the test started one."""
    yield request.node.name
    if any(actor["name"] == request.node.name for actor in ray.util.list_named_actors(all_namespaces=True)):
        stop(request.node.name)


def server_pid(found):
    """The process that listens at a tcp address; None for no such process."""
    host, _, port = found.removeprefix("tcp://").rpartition(":")
    local = "".join(f"{int(part):02X}" for part in reversed(host.split("."))) + f":{int(port):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == local and row[3] == LISTENING}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that ended meanwhile
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                return int(folder.name)
    return None


@ray.remote(num_cpus=0)
def look_up(name):
    return address(name), ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
def ask(found):
    with LevelClient(found) as client:
        return client.next()[0].level


@pytest.mark.usefixtures("cluster")
def test_on_one_node_it_listens_on_loopback_which_no_other_node_takes_for_its_own():
    assert address("of one node").startswith("tcp://127.0.0.1:")
    assert ray.get(look_up.options(resources={"here": 1}).remote("of one node"))[0] == address("of one node")
    with pytest.raises(InvalidInput, match="loopback of another node"):
        ray.get(look_up.options(resources={"there": 1}).remote("of one node"))


def test_several_nodes_need_a_word_said_aloud(name):
    with pytest.raises(
        InvalidInput, match=r"keys: expected a folder .*, or insecure=True said aloud, on a cluster of 2"
    ):
        start(Config(), name)
    with pytest.raises(InvalidInput, match="name: expected that of a server started on this cluster"):
        address(name)


def test_every_node_finds_it_by_name(name):
    found = start(Config(levels=[3, 5]), name, insecure=True, resources={"there": 1})
    assert not found.startswith("tcp://127.")
    here = ray.get(look_up.options(resources={"here": 1}).remote(name))
    there = ray.get(look_up.options(resources={"there": 1}).remote(name))
    assert (here[0], there[0]) == (found, found)
    assert here[1] != there[1]
    assert ray.get(ask.options(resources={"here": 1}).remote(found)) in {3, 5}
    with pytest.raises(InvalidInput, match="name: expected a name that is free"):
        start(Config(), name, insecure=True)
    with Trainer(found) as trainer:
        assert trainer.stats()["levels"] == 2  # the first one is unharmed


def test_with_keys_it_listens_beyond_loopback_for_those_that_have_one(name, tmp_path):
    key = make_key(tmp_path, name="env", role="worker")
    found = start(Config(levels=[3, 5]), name, keys=tmp_path, resources={"there": 1})
    assert "127.0.0.1" not in found
    with pytest.raises(NotAdmitted, match=r"expected a key file, which the server at .* asks for"):
        ray.get(ask.options(resources={"here": 1}).remote(found))
    with_key = {"env_vars": {"PLR_KEYS": str(key)}}
    assert ray.get(ask.options(resources={"here": 1}, runtime_env=with_key).remote(found)) in {3, 5}
    with LevelClient(Lookup(name), keys=key) as client:
        assert client.next()[0].level in {3, 5}


def test_several_curricula(name):
    found = start({"train": Config(), "eval": Config(levels=range(7))}, name, insecure=True)
    with Trainer(found, curriculum="eval") as trainer:
        assert trainer.stats()["levels"] == 7


def test_a_port_that_is_taken_and_the_name_is_given_back(name):
    port = int(start(Config(), name, insecure=True).rpartition(":")[2])
    with pytest.raises(ServerStartError, match=r"AddressTaken: address: expected a free one, got tcp://.*, taken by"):
        start(Config(), "another", insecure=True, port=port)
    start(Config(), "another", insecure=True)
    stop("another")


def gone(name):
    """Whether the cluster knows no actor of that name."""
    return not any(actor["name"] == name for actor in ray.util.list_named_actors(all_namespaces=True))


def test_an_actor_that_no_node_has_room_for_is_given_up(name):
    with pytest.raises(
        ServerStartError, match=r"a server within 0\.5 s .*`ray status` .*\{'resources': \{'moon': 1\}\}"
    ):
        start(Config(), name, insecure=True, timeout_s=0.5, resources={"moon": 1})
    faults.eventually(lambda: gone(name), "the name is given back")
    start(Config(), name, insecure=True)


def test_an_interrupt_leaves_no_actor_that_waits(name, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(Config(), name, insecure=True, resources={"moon": 1})
    faults.eventually(lambda: gone(name), "the name is given back")


def test_the_death_of_the_actor_ends_the_server(name):
    found = start(Config(), name, insecure=True, resources={"there": 1})
    pid = server_pid(found)
    assert pid is not None
    ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    faults.eventually(lambda: faults.gone(pid), "the server ends with its actor")
    start(Config(), name, insecure=True)


def test_stop_ends_it(name):
    pid = server_pid(start(Config(), name, insecure=True))
    stop(name)
    faults.eventually(lambda: faults.gone(pid), "the server ends")
    with pytest.raises(InvalidInput, match="name: expected that of a server"):
        stop(name)


def test_the_death_of_the_server_ends_the_actor(name):
    os.kill(server_pid(start(Config(), name, insecure=True)), signal.SIGKILL)

    def gone():
        try:
            address(name)
        except (InvalidInput, ray.exceptions.RayActorError):
            return True
        return False

    faults.eventually(gone, "the name is given back")


def test_an_actor_that_may_restarts_the_server_where_clients_find_it(name):
    first = start(Config(), name, insecure=True)
    port = int(first.rpartition(":")[2])
    stop(name)
    faults.eventually(lambda: server_pid(first) is None, "the port is free")
    found = start(Config(levels=[4]), name, port=port, insecure=True, max_restarts=1, resources={"there": 1})
    assert found == first
    with LevelClient(found) as client:
        assert client.next()[0].level == 4
        pid = server_pid(found)
        os.kill(pid, signal.SIGKILL)
        assert client.next()[0].level == 4  # asked again until the new server answers
    assert address(name) == found
    assert server_pid(found) != pid


def test_it_outlives_the_job_that_started_it(cluster, name):
    out = faults.run_script(
        """
        import sys
        import ray
        from plr_server import Config
        from wrappers.ray import start
        ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
        print("at", start(Config(levels=range(11)), sys.argv[2], insecure=True))
        """,
        cluster.address,
        name,
    )
    found = address(name)
    assert f"at {found}" in out
    with Trainer(found) as trainer:
        assert trainer.stats()["levels"] == 11


def test_env_runners_of_another_node_train_on_its_levels(name, tmp_path):
    daemon_node = ray.nodes()[0]["NodeID"]
    start(
        Config(levels=range(50), replay_prob=0.5),
        name,
        insecure=True,
        scheduling_strategy=NodeAffinitySchedulingStrategy(daemon_node, soft=False),
    )
    other = "there" if "here" in ray.nodes()[0]["Resources"] else "here"
    register_env("by name", lambda _: LevelReplay(ShowsLevel(5, 20), address(name)))
    config = (
        PPOConfig()
        .environment("by name")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, custom_resources_per_env_runner={other: 1})
        .fault_tolerance(restart_failed_env_runners=False)
        .learners(
            num_learners=1,
            learner_class=RecordingLearner,
            learner_config_dict={"plr_address": address(name), "records": str(tmp_path)},
        )
        .training(train_batch_size_per_learner=120, num_epochs=1, minibatch_size=60)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    algorithm = config.build_algo()
    try:
        nodes = algorithm.env_runner_group.foreach_env_runner(
            lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False
        )
        assert len(nodes) == 2
        assert daemon_node not in nodes
        for _ in range(3):
            algorithm.train()
        with Trainer(address(name)) as trainer:
            stats = trainer.stats()
        assert stats["sessions"] >= 4 + 1  # an env each, the learner
    finally:
        algorithm.stop()
    rows = seen_rows(load(tmp_path, "seen"))
    assert rows.total() >= 360
    assert len({level for level, *_ in rows}) >= 10
    assert pushed_rows(load(tmp_path, "pushed")) == rows
    assert stats["steps"] == rows.total()


def node_of(name):
    """The node that the server's actor runs on."""
    return ray.get(ray.get_actor(name, namespace=NAMESPACE).address.remote())[1]


@pytest.mark.parametrize("cut_off", [False, True])
def test_where_its_node_is_killed_nothing_acknowledged_is_lost_and_training_goes_on(cluster, name, tmp_path, cut_off):
    """The node that hosts it goes under load. Cut off: its server lives on and serves, until another takes over."""
    host = {"num_cpus": 1, "resources": {"host": 1}, "object_store_memory": 100 * 2**20}
    doomed = cluster.add_node(**host)
    configs = {
        "default": Config(levels=range(50), replay_prob=0.5),
        "numbers": Config(levels=range(2), strategy="external"),
    }
    first = start(
        configs,
        name,
        insecure=True,
        state_dir=tmp_path / "state",
        fsync="always",
        max_restarts=-1,
        resources={"host": 1},
    )
    assert node_of(name) == doomed.node_id
    spare = cluster.add_node(**host)
    pushed, over, raised = 0, threading.Event(), []

    def trains():
        nonlocal pushed
        try:
            with Trainer(Lookup(name), curriculum="numbers", timeout_s=240.0) as trainer:
                while not over.is_set():
                    trainer.push_scores([0], [float(pushed)])
                    pushed += 1
        except BaseException as exc:  # noqa: BLE001
            raised.append(exc)

    register_env("looked up", lambda _: LevelReplay(ShowsLevel(5, 20), Lookup(name), timeout_s=240.0))
    config = (
        PPOConfig()
        .environment("looked up")
        .env_runners(num_env_runners=2, custom_resources_per_env_runner={"there": 1}, sample_timeout_s=600.0)
        .fault_tolerance(restart_failed_env_runners=False)
        .learners(
            learner_class=LevelReplayPPOTorchLearner,
            learner_config_dict={"plr_address": Lookup(name), "plr_timeout_s": 240.0},
        )
        .training(train_batch_size_per_learner=120, num_epochs=1, minibatch_size=60)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    algorithm, pusher = config.build_algo(), threading.Thread(target=trains)
    try:
        pusher.start()
        algorithm.train()
        faults.eventually(lambda: pushed > 20, "it serves")
        pid = server_pid(first)
        if cut_off:
            raylet = doomed.all_processes["raylet"][0].process
            raylet.send_signal(signal.SIGSTOP)
        else:
            cluster.remove_node(doomed, allow_graceful=False)
        faults.eventually(lambda: faults.gone(pid), "the old server ends", timeout_s=240.0)
        for _ in range(2):
            algorithm.train()
        before = pushed
        faults.eventually(lambda: pushed > before + 20 or raised, "it goes on", timeout_s=240.0)
    finally:
        over.set()
        pusher.join()
        algorithm.stop()
    assert not raised
    assert node_of(name) == spare.node_id
    with Trainer(Lookup(name), curriculum="numbers") as numbers, Trainer(Lookup(name)) as trainer:
        assert numbers.stats()["scores"] == pushed
        assert numbers.scores()[1][0] == pushed - 1.0
        assert trainer.stats()["steps"] >= 360
    stop(name)
    cluster.remove_node(spare)
    if cut_off:
        raylet.send_signal(signal.SIGCONT)
        cluster.remove_node(doomed)


class Tasks(TaskWrapper):
    """An env as Syllabus has it: the task that its reset is given is the seed."""

    def __init__(self, env):
        super().__init__(env)
        self.task_space = DiscreteTaskSpace(50)

    def reset(self, new_task=None, **kwargs):
        return super().reset(new_task=new_task, **kwargs | {"seed": new_task})


def test_syllabus_on_rllib(name, tmp_path):
    """What Syllabus' own pages show for Ray; the learner is the one of wrappers.rllib."""
    found = start(Config(levels=range(50), replay_prob=0.5), name, insecure=True)
    curriculum = make_ray_curriculum(PrioritizedLevelReplay(DiscreteTaskSpace(50), address=found))
    register_env("tasks", lambda _: RaySyncWrapper(Tasks(ShowsLevel(5, 20)), update_on_step=False))
    config = (
        PPOConfig()
        .environment("tasks")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2)
        .fault_tolerance(restart_failed_env_runners=False)
        .learners(
            learner_class=RecordingLearner,
            learner_config_dict={"plr_address": curriculum.components.address, "records": str(tmp_path)},
        )
        .training(train_batch_size_per_learner=120, num_epochs=1, minibatch_size=60)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    algorithm = config.build_algo()
    try:
        for _ in range(3):
            algorithm.train()
        with Trainer(found) as trainer:
            stats = trainer.stats()
    finally:
        algorithm.stop()
    rows = seen_rows(load(tmp_path, "seen"))
    assert rows.total() >= 360
    assert len({level for level, *_ in rows}) >= 10
    assert pushed_rows(load(tmp_path, "pushed")) == rows
    assert stats["steps"] == rows.total()
    with pytest.raises(InvalidInput, match="actor_name: expected a name that is free in this job, got 'curriculum'"):
        make_ray_curriculum(PrioritizedLevelReplay(DiscreteTaskSpace(50), address=found))
    curriculum.stop()
    faults.eventually(lambda: gone("curriculum"), "the name is given back")
    with pytest.raises(InvalidInput, match="actor_name: expected that of a curriculum of this job"):
        RaySyncWrapper(Tasks(ShowsLevel(5, 20)))


@pytest.mark.usefixtures("cluster")
def test_a_curriculum_that_one_node_reaches_is_refused_on_two():
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(50))
    with pytest.raises(InvalidInput, match=r"curriculum: expected one that all nodes reach, .*, got one at ipc://"):
        make_ray_curriculum(curriculum)
    curriculum.stop()


def test_what_docs_syllabus_md_shows_for_rllib_runs():
    """On a cluster of one node, of its own."""
    page = (Path(__file__).parents[2] / "docs/syllabus.md").read_text()
    code = re.search(r"```python\n(import gymnasium[^`]*make_ray_curriculum.*?)```", page, re.DOTALL).group(1)
    script = code.replace("ray.init()", 'ray.init("local", include_dashboard=False)')
    ran = subprocess.run(  # noqa: S603  our own
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    (told,) = (line for line in ran.stdout.splitlines() if line.startswith("{"))
    assert ast.literal_eval(told)["steps"] >= 500
