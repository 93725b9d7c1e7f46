"""The moment of a kill: what a job has just left in its directory, found by looking at it all the time."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tools.chaos.ledger import Ledger

LOOK_S = 0.001
LIMIT_S = 4.0
RESULT = re.compile(r"result-\d+")
# Finished layers, in bytes, that are some and most of those of a sample.
SOME_LAYERS, MOST_LAYERS = 100_000, 500_000


def is_recorded(job: Path) -> bool:
    return (job / "job.json").exists()


def is_claimed(job: Path) -> bool:
    return any(job.glob("attempt-*.lock"))


def has_layers(at_least: int) -> Callable[[Path], bool]:
    def holds(job: Path) -> bool:
        return sum(path.stat().st_size for path in job.glob("spool/*/*.segment")) >= at_least

    return holds


def is_assembling(job: Path) -> bool:
    return any(job.glob("result-*.part"))


def is_renamed(job: Path) -> bool:
    return any(RESULT.fullmatch(path.name) for path in job.glob("result-*"))


def is_finished(job: Path) -> bool:
    return bool(json.loads((job / "job.json").read_bytes())["state"] == "succeeded")


JOB_MOMENTS: dict[str, Callable[[Path], bool]] = {
    "queued": is_recorded,
    "claimed": is_claimed,
    "at a layer": has_layers(SOME_LAYERS),
    "at a late layer": has_layers(MOST_LAYERS),
    "assembling": is_assembling,
    "at the rename": is_renamed,
    "after the end": is_finished,
}
# An upload has begun and its record does not exist; and no moment in particular.
UPLOADING, ANY = "uploading", "any"
MOMENTS = (*JOB_MOMENTS, UPLOADING, ANY)


def await_moment(moment: str, data_dir: Path, ledger: Ledger, *, delay_s: float) -> bool:
    """Wait until a job comes to this moment, or return False after a while; then wait for `delay_s`."""
    reached = True
    if moment == UPLOADING:
        before = set(data_dir.glob("parts/*"))
        reached = _until(lambda: bool(set(data_dir.glob("parts/*")) - before))
    elif moment != ANY:
        holds = JOB_MOMENTS[moment]
        already = set(_of_those(holds, _unended(data_dir, ledger)))
        reached = _until(
            lambda: any(job not in already for job in _of_those(holds, _unended(data_dir, ledger)))
        )
    time.sleep(delay_s)
    return reached


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_S)
    return True


def _unended(data_dir: Path, ledger: Ledger) -> Iterator[Path]:
    """Yield the directories of jobs that have not ended, those that nobody was told of yet among them."""
    for path in data_dir.glob("jobs/*"):
        promise = ledger.promises.get(path.name)
        if promise is None or promise.ended is None:
            yield path


def _of_those(holds: Callable[[Path], bool], jobs: Iterable[Path]) -> Iterator[Path]:
    for job in jobs:
        try:
            if holds(job):
                yield job
        except (OSError, ValueError):  # moved or written meanwhile
            continue
