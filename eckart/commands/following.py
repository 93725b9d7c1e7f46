"""A job followed to its end, and what Ctrl-C does to it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eckart.commands.options import url_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from eckart.bars import Bars
    from eckart.client import Client
    from eckart.progress import ProgressLine
    from eckart.types import Job


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what became of the work."""


@contextmanager
def interrupted_with(message: str) -> Iterator[None]:
    """Say this where Ctrl-C ends the block."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(message) from None


def follow_to_end(client: Client, job_id: str, progress: ProgressLine | Bars, url: str) -> Job:
    """Return the job when it has succeeded; on Ctrl-C ask whether to cancel it, or say how to go on."""
    try:
        return client.wait(job_id, progress=progress)
    except KeyboardInterrupt:
        progress.close()
        _leave(client, job_id, url)


def how_to_watch(job_id: str, url: str) -> str:
    return f"job {job_id} goes on; to watch it: eckart watch {job_id}{url_option(url)}"


def how_to_fetch(job_id: str, url: str) -> str:
    return f"to fetch its result: eckart watch {job_id} --out DIR{url_option(url)}"


def _leave(client: Client, job_id: str, url: str) -> NoReturn:
    goes_on = how_to_watch(job_id, url)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Interrupted(goes_on)
    with interrupted_with(goes_on):
        sys.stderr.write(f"\ncancel job {job_id}? [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    if not answer.strip().lower().startswith("y"):
        raise Interrupted(goes_on)
    job = client.cancel(job_id)
    raise Interrupted(f"job {job_id} is {job.state}")
