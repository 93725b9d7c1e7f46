"""The rounds of one tree: traffic all the time, and one kill after another."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tools.chaos.audit import audit
from tools.chaos.connection import Connection
from tools.chaos.kills import Killer, draw
from tools.chaos.ledger import Ledger
from tools.chaos.reader import Reader
from tools.chaos.samples import make_samples
from tools.chaos.traffic import Lane
from tools.chaos.worklog import WorkLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.chaos.samples import Sample
    from tools.chaos.table import Table
    from tools.chaos.trees import Tree

LANES = 4
SETTLE_S = 120.0
COPY_EVERY = 5


class Campaign:
    """Runs a number of rounds in one tree."""

    def __init__(self, tree: Tree, *, seed: int, disk: bool, slack: float) -> None:
        self.ledger = Ledger(tree.name, seed)
        self._tree = tree
        self._disk = disk
        self._slack = slack

    def run(self, rounds: int, table: Table) -> None:
        table.add_ledger(self.ledger)
        self._tree.start()
        try:
            samples = calm_run(Connection(self._tree.url, self.ledger), make_samples())
            work = WorkLog(self._tree.log_path)
            with running(work.run), self._traffic(samples):
                killer = Killer(self._tree, self.ledger, work)
                for number in range(rounds):
                    self._round(number, killer, table)
            audit(self._tree, self.ledger, own_checkpoints={sample.checkpoint for sample in samples})
        finally:
            self._tree.stop()

    def stop(self) -> None:
        self._tree.stop()

    def _round(self, number: int, killer: Killer, table: Table) -> None:
        seed = f"{self.ledger.seed} {self._tree.name} {number}"
        kill = draw(seed, self._tree.victims, lease_s=self._tree.lease_s, disk=self._disk)
        self.ledger.round, self.ledger.kind = number, kill.kind
        if number % COPY_EVERY == 0:
            killer.keep_copy()
        took = killer.carry_out(kill, slack=self._slack)
        table.add_round(kill.kind, took)
        print(f"{self._tree.name} {number}: {kill.kind}, {kill.moment}: {took:.1f} s", flush=True)
        # Some rounds begin while the one before still shows.
        time.sleep(random.Random(seed).choice((0, 0, 0.5)))

    @contextmanager
    def _traffic(self, samples: list[Sample]) -> Iterator[None]:
        """Order jobs and read them; at the end let all that was begun come to its end."""
        seed, url = f"{self.ledger.seed} {self._tree.name}", self._tree.url
        lanes = [Lane(url, self.ledger, samples, f"{seed} {i}") for i in range(LANES)]
        reader = Reader(url, self.ledger, seed)
        with running(reader.run):
            stop = threading.Event()
            threads = [threading.Thread(target=lane.run, args=(stop,), daemon=True) for lane in lanes]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for lane in lanes:
                    lane.connection.give_up_at = time.monotonic() + SETTLE_S
                while any(thread.is_alive() for thread in threads):
                    self._tree.revive()
                    time.sleep(0.1)


@contextmanager
def running(body: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a loop in a thread until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=body, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def calm_run(connection: Connection, samples: list[Sample]) -> list[Sample]:
    """Store the checkpoints, and note the results of jobs that nobody disturbs."""
    found = []
    for sample in samples:
        file = f"/v1/checkpoints/{sample.checkpoint}/model.safetensors"
        connection.until_answered("PUT", file, content=sample.content)
        body = {"checkpoint": sample.checkpoint, "spec": sample.spec}
        job = connection.until_answered("POST", "/v1/jobs", json=body).json()
        address = f"/v1/jobs/{job['id']}"
        # Answers when the job has ended.
        result = connection.until_answered("GET", f"{address}/checkpoint", params={"wait": 8})
        while result.status_code == 409:
            result = connection.until_answered("GET", f"{address}/checkpoint", params={"wait": 8})
        found.append(replace(sample, sha256=hashlib.sha256(result.content).hexdigest()))
        connection.until_answered("DELETE", address)
    return found
