"""What attempts leave behind at a job, and what is not needed of it once the job has ended."""

import logging
from collections.abc import Iterator
from pathlib import Path

from state.blobs import banish, empty
from state.layout import Layout
from state.records import JobRecord

log = logging.getLogger("eckart.state")


def remove_leavings(layout: Layout, record: JobRecord) -> None:
    """Remove the finished layers of an ended job, and every result but the one that its record names."""
    try:
        for path in _leavings(layout, record):
            empty(banish(path, layout.trash))
    except OSError:
        log.exception("what job %s leaves behind cannot be removed; delete the job to try again", record.id)


def _leavings(layout: Layout, record: JobRecord) -> Iterator[Path]:
    kept = None if record.result_fence is None else layout.result(record.id, record.result_fence)
    for path in (layout.work(record.id), *sorted(layout.job(record.id).glob("result-*"))):
        if path != kept and path.is_dir():
            yield path
