"""What must hold when all is quiet again: every promised job and no other, and nothing left over."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from tools.chaos.connection import Connection
from tools.chaos.ledger import DOUBLED, LOST, ORPHANED, Ledger
from tools.chaos.reader import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from tools.chaos.trees import Tree

QUIET_LIMIT_S = 30.0
# What nobody owns is removed when it is so old.
STALE_S = 3 * 86_400.0
OF_A_JOB = re.compile(r"job\.json|owner|result-\d+")


def audit(tree: Tree, ledger: Ledger, *, own_checkpoints: set[str]) -> None:
    """Restart the tree, and compare what it has with what was promised."""
    tree.stop()
    for folder in ("parts", "trash", "checkpoints", "jobs", "uploads"):
        age(tree.data_dir / folder)
    tree.start()
    # The start has removed broken uploads, by which their folders look new.
    age(tree.data_dir / "checkpoints")
    tree.reconcile()
    connection = Connection(tree.url, ledger)
    reader = Reader(tree.url, ledger, "audit")
    for connecting in (connection, reader.connection):
        connecting.give_up_at = time.monotonic() + QUIET_LIMIT_S
    listed = list_jobs(connection)
    kept = {promise.id for promise in ledger.kept()}
    for job_id in kept - listed.keys():
        ledger.fault(LOST, f"job {job_id} is not listed any more")
    for job_id in listed.keys() - kept:
        known = "it was deleted" if job_id in ledger.promises else "nobody was promised it"
        ledger.fault(DOUBLED, f"job {job_id} is listed, and {known}")
    for promise in ledger.kept():
        if promise.ended not in {"succeeded", "canceled"}:
            ledger.fault(LOST, f"job {promise.id} ended as {promise.ended}")
        while not reader.look(promise):
            connection.check_time()
    used = own_checkpoints | {str(job["checkpoint"]) for job in listed.values()}
    unused = [path for path in tree.data_dir.glob("checkpoints/*") if path.name not in used]
    for path in (*unused, *await_no_leftovers(tree.data_dir, listed)):
        ledger.fault(ORPHANED, str(path.relative_to(tree.data_dir)))


def list_jobs(connection: Connection) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    parameters: dict[str, str | int] = {"limit": 200}
    while True:
        page = connection.until_answered("GET", "/v1/jobs", params=parameters).json()
        found |= {job["id"]: job for job in page["jobs"]}
        if page["next_cursor"] is None:
            return found
        parameters["cursor"] = page["next_cursor"]


def await_no_leftovers(data_dir: Path, listed: dict[str, dict[str, Any]]) -> list[Path]:
    """Return the files that nobody owns, once there are none, or after a while."""
    end = time.monotonic() + QUIET_LIMIT_S
    while (found := leftovers(data_dir, listed)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def leftovers(data_dir: Path, listed: dict[str, dict[str, Any]]) -> list[Path]:
    found = [*data_dir.glob("parts/*"), *data_dir.glob("trash/*"), *data_dir.glob("checkpoints/*/*.part")]
    for path in data_dir.glob("jobs/*"):
        job = listed.get(path.name)
        if job is None:
            found.append(path)
            continue
        inside = list(path.iterdir())
        found += [each for each in inside if OF_A_JOB.fullmatch(each.name) is None]
        results = sorted(each for each in inside if each.name.startswith("result-"))
        found += results[1:] if job["state"] == "succeeded" else results
    return sorted(set(found))


def age(folder: Path) -> None:
    """Make all files in a folder as old as if somebody had waited."""
    then = time.time() - STALE_S
    for path in folder.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
