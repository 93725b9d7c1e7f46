"""Accepting a job: known first, so that its checkpoint stays, then durable, and only then answered."""

from state.blobs import banish, empty
from state.errors import CheckpointGone, IdempotencyConflict
from state.layout import Layout
from state.manifest import holds
from state.records import Idempotency, JobRecord, NewJob, fixed_document
from state.scripts import Scripts, Wiped
from state.shadow import Shadows


class Acceptance:
    """Makes jobs, each on disk before anyone is told of it; raises `Wiped` where it is to be tried again."""

    def __init__(self, layout: Layout, scripts: Scripts, shadows: Shadows) -> None:
        self._layout = layout
        self._scripts = scripts
        self._shadows = shadows

    def accept(self, job_id: str, new: NewJob, idempotency: Idempotency | None) -> JobRecord:
        """Make a job under a fresh id, or return the one that the same key has made before."""
        digest, fingerprint = (idempotency.digest, idempotency.fingerprint) if idempotency else ("", "")
        fixed = fixed_document(new, job_id, idempotency)
        with self._shadows.lock(job_id):
            needed = (new.checkpoint, new.spec.calibration or "")
            answer = str(self._scripts.run("create", job_id, *needed, digest, fingerprint, fixed))
            if answer == "created":
                return self._make_durable(job_id, new)
        if answer == "conflict":
            raise IdempotencyConflict
        if answer == "gone":
            raise CheckpointGone
        return _present(self._shadows.write(answer.removeprefix("replay:")))

    def _make_durable(self, job_id: str, new: NewJob) -> JobRecord:
        try:
            calibration = new.spec.calibration
            if not holds(self._layout, new.checkpoint, new.files) or (
                calibration is not None and not holds(self._layout, calibration, new.calibration_files)
            ):
                # Deleted or replaced after it was planned on and before the job was known.
                raise CheckpointGone  # noqa: TRY301 - it undoes what is undone for every other reason
            return _present(self._shadows.write_locked(job_id))
        except BaseException:
            self._undo(job_id)
            raise

    def _undo(self, job_id: str) -> None:
        try:
            empty(banish(self._layout.job(job_id), self._layout.trash))
        finally:
            self._scripts.run_unguarded("delete", job_id)


def _present(record: JobRecord | None) -> JobRecord:
    if record is None:
        # Wiped, or undone by who made it, before it was on disk.
        raise Wiped
    return record
