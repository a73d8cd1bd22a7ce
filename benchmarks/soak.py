"""Half an hour with everything on, to see that nothing is lost: keys, a journal, workers that come and go, kill -9.

Two trainers push numbered scores, one push after the other. Eight workers ask for levels. After some hundreds each says
goodbye, or vanishes without a word, and another one comes. Every few seconds the server is killed with SIGKILL and
started again. At the end it has to have as many scores, and as many levels drawn, as the clients were told: not one
less, not one more. Exit code 1 where it has not.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from plr_client import LevelClient, Trainer
from plr_server import Config, launch
from plr_server.serving.keys import make_key

NUM_TRAINERS, NUM_WORKERS = 2, 8
PATIENCE_S = 120.0  # of the clients: no exception reaches a trainer or a worker
KILLED_AFTER_S = (2.0, 20.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plr-", dir=Path.cwd()) as folder:  # on a disk, not in memory
        sys.exit(not Soak(Path(folder)).run(60.0 * options.minutes))


class Soak:
    """Clients of one server, and what they were told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys = {role: make_key(folder / "keys", name=role, role=role) for role in ("worker", "trainer")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._over = threading.Event()
        self._pushed, self._drawn, self._came = [0] * NUM_TRAINERS, [0] * NUM_WORKERS, [0] * NUM_WORKERS
        self._raised: list[BaseException] = []

    def run(self, seconds: float) -> bool:
        """Runs it all; returns whether nothing was lost, and nothing counted twice."""
        threads = [threading.Thread(target=self._guarded, args=(self._trains, n)) for n in range(NUM_TRAINERS)]
        threads += [threading.Thread(target=self._guarded, args=(self._works, n)) for n in range(NUM_WORKERS)]
        end_s, rng, num_killed = time.monotonic() + seconds, random.Random(0), 0
        config, state_dir = Config(levels=range(200), strategy="external"), self._folder / "state"
        while True:
            with launch(config, self._address, keys=self._folder / "keys", state_dir=state_dir) as server:
                if not num_killed:
                    for thread in threads:
                        thread.start()
                time.sleep(min(rng.uniform(*KILLED_AFTER_S), max(0.0, end_s - time.monotonic())))
                if time.monotonic() >= end_s or self._raised:
                    self._over.set()
                    for thread in threads:
                        thread.join()
                    print(f"{seconds / 60:g} minutes with keys and a journal, {num_killed} kill -9")
                    return self._compare(server.process.pid)
                server.process.kill()
                num_killed += 1

    def _trains(self, n: int) -> None:
        with Trainer(self._address, keys=self._keys["trainer"], timeout_s=PATIENCE_S) as trainer:
            while not self._over.is_set():
                self._pushed[n] += trainer.push_scores([n], [float(self._pushed[n])])

    def _works(self, n: int) -> None:
        rng = random.Random(n)
        while not self._over.is_set():
            client = LevelClient(self._address, keys=self._keys["worker"], timeout_s=PATIENCE_S)
            self._came[n] += 1
            for _ in range(rng.randrange(100, 1000)):
                self._drawn[n] += len(client.next(rng.randrange(1, 5)))
            if rng.choice((True, False)):
                client.close()

    def _guarded(self, do: Callable[[int], None], n: int) -> None:
        try:
            do(n)
        except BaseException as exc:  # noqa: BLE001  to be told at the end
            self._raised.append(exc)

    def _compare(self, pid: int) -> bool:
        with Trainer(self._address, keys=self._keys["trainer"]) as trainer:
            stats, last = trainer.stats(), trainer.scores()[1][:NUM_TRAINERS].tolist()
        lost = sum(self._pushed) - stats["scores"], sum(self._drawn) - stats["draws"]
        memory = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        print(f"scores in: {sum(self._pushed)}, lost: {lost[0]}")
        print(f"levels out: {sum(self._drawn)}, lost: {lost[1]}; to {sum(self._came)} workers that came and went")
        print(f"errors at clients: {len(self._raised)}; memory of the server: {memory.split(maxsplit=1)[1]}")
        for error in self._raised:
            print(repr(error))
        return lost == (0, 0) and last == [num - 1.0 for num in self._pushed] and not self._raised


if __name__ == "__main__":
    main()
