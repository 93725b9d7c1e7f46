"""What the service promised, and every promise that it broke."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

LOST, DOUBLED, HALF_READ, BAD_ANSWER, ORPHANED, LATE = FAULTS = (
    "lost",
    "doubled",
    "half read",
    "bad answer",
    "orphaned",
    "late",
)


@dataclass(slots=True)
class Promise:
    """A job that was answered 202: how it ended, and what its files must hold."""

    id: str
    sha256: str
    ended: str | None = None
    resumed: int = 0
    cancel_asked: bool = False
    delete_asked: bool = False
    deleted: bool = False


@dataclass
class Ledger:
    """The promises of one tree, and its faults by the kind of kill of their round."""

    tree: str
    seed: int
    round: int = 0
    kind: str = "calm"
    promises: dict[str, Promise] = field(default_factory=dict)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    reads: int = 0
    resumed: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def promise(self, job_id: str, sha256: str) -> Promise:
        with self.lock:
            return self.promises.setdefault(job_id, Promise(job_id, sha256))

    def open_jobs(self) -> list[Promise]:
        with self.lock:
            return [each for each in self.promises.values() if each.ended is None and not each.delete_asked]

    def kept(self) -> list[Promise]:
        with self.lock:
            return [each for each in self.promises.values() if not each.delete_asked]

    def fault(self, what: str, why: str) -> None:
        with self.lock:
            self.faults[self.kind, what] += 1
            self.told.append(
                f"{what}: seed {self.seed}, {self.tree}, round {self.round} ({self.kind}): {why}"
            )
            print("FAULT", self.told[-1], flush=True)

    def resume(self, promise: Promise) -> None:
        """Note that the request to resume a failed job begins or ends; meanwhile it may have either state."""
        with self.lock:
            promise.resumed += 1
            promise.ended = None

    def saw_end(self, promise: Promise, state: str, *, resumed: int, ended_before: str | None) -> None:
        """Note a state that was read; `resumed` and `ended_before` are of the moment before the request."""
        with self.lock:
            if promise.resumed != resumed or resumed % 2 or promise.delete_asked:
                return
            if ended_before is not None and state != ended_before:
                self.fault(DOUBLED, f"job {promise.id} was {ended_before} and then {state}")
            elif state in {"succeeded", "canceled", "failed"}:
                promise.ended = state
                if state == "canceled" and not promise.cancel_asked:
                    self.fault(LOST, f"job {promise.id} is canceled, which nobody asked for")
