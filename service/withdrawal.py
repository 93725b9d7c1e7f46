"""Taking back files that a refused form had already published."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from state.blobs import banish, empty
from state.errors import CheckpointInUse, StoreUnavailable
from state.jobs import JobStore
from state.layout import Layout
from state.locks import locked
from state.manifest import read_manifest, write_manifest

log = logging.getLogger("eckart.service")


def withdraw(jobs: JobStore, data_dir: Path, checkpoint_id: str, names: Collection[str]) -> None:
    """Remove these files, and the checkpoint if nothing else is in it, unless a job needs them by now."""
    try:
        with _no_new_jobs(jobs, checkpoint_id):
            _remove(Layout(data_dir), checkpoint_id, names)
    except CheckpointInUse:
        log.warning("files of a refused form stay, for a job needs checkpoint %s", checkpoint_id)


@contextlib.contextmanager
def _no_new_jobs(jobs: JobStore, checkpoint_id: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # With Redis away no job can be made either.
        with contextlib.suppress(StoreUnavailable):
            stack.enter_context(jobs.deleting_checkpoint(checkpoint_id))
        yield


def _remove(layout: Layout, checkpoint_id: str, names: Collection[str]) -> None:
    folder, place = layout.checkpoint(checkpoint_id), None
    with locked(layout.lock("checkpoint", checkpoint_id)):
        files = read_manifest(layout, checkpoint_id)
        rest = {name: file for name, file in files.items() if name not in names}
        if rest:
            write_manifest(layout, checkpoint_id, rest)
            for name in names:
                (folder / name).unlink(missing_ok=True)
        else:
            place = banish(folder, layout.trash)
    empty(place)
