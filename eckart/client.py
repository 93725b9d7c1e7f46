"""The client: the service's verbs as methods, and its documents as models."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from eckart.connection import Call, Connection, parse
from eckart.download import download
from eckart.errors import InputError, JobFailed, WaitTimeoutError
from eckart.patience import retry_after_s
from eckart.planning import plan_source
from eckart.progress import silent
from eckart.source import find_source, open_source
from eckart.spec import as_spec, refuse_two_calibrations
from eckart.upload import upload
from schemas.checkpoint import Checkpoint
from schemas.format.index import CHECKPOINT_ID
from schemas.job import TERMINAL, Job, JobList
from schemas.plan import PlanDocument
from schemas.report import Report

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import httpx

    from eckart.progress import Progress
    from eckart.source import PathOrId
    from eckart.spec import Spec
    from schemas.job import JobState
    from schemas.planning.calibration import GramInfo
    from schemas.spec import CompressionSpec

DEFAULT_URL = "http://127.0.0.1:8000"
# The service holds an answer until the state changes; whoever watches wants to see the layers pass.
HOLD_S = 30
WATCHED_HOLD_S = 2
DEFAULT_PAUSE_S = 1.0
PAGE_JOBS = 100


class Client:
    """A connection to a service; close it, or use it in a `with` block."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Say where the service is, how long it may be silent, and how long it may be away."""
        self._connection = Connection(
            base_url, timeout_s=timeout_s, patience_s=patience_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def upload(
        self,
        path: str | os.PathLike[str],
        *,
        id: str | None = None,  # noqa: A002 - the word the service uses
        progress: Progress | None = None,
    ) -> str:
        """Store a file, an index with its shards, or a directory's checkpoint; return the checkpoint's id.

        Without an id it is named after its bytes, so that what the service already holds is not sent again.
        """
        if id is not None and CHECKPOINT_ID.fullmatch(id) is None:
            raise InputError(
                f"{id!r} is no id: use at most 128 letters, digits, dots, underscores and hyphens"
            )
        return upload(self._connection, open_source(Path(path)), id, progress or silent)

    def compress(
        self,
        path_or_id: PathOrId,
        spec: Spec,
        *,
        calibration: PathOrId | None = None,
        wait: bool = True,
        progress: Progress | None = None,
    ) -> Job:
        """Compress what is on disk, or what is stored already, and wait for the end.

        `calibration` is a file of Gram matrices as `eckart.calibrate` writes it, or the id of one that is
        stored; a spec may name such an id itself.
        """
        checked = as_spec(spec)
        source = find_source(path_or_id)
        if source is not None and calibration is not None:
            self.plan(path_or_id, checked, calibration=calibration)  # What does not fit is not sent.
        checked = self._with_calibration(checked, calibration, progress or silent)
        checkpoint = upload(self._connection, source, None, progress or silent) if source else str(path_or_id)
        job = self.submit(checkpoint, checked)
        return self.wait(job.id, progress=progress) if wait else job

    def submit(self, checkpoint: str, spec: Spec) -> Job:
        """Start a job for a stored checkpoint."""
        # The key makes a repeated request harmless: the service returns the job that the first one made.
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        body = {"checkpoint": checkpoint, "spec": as_spec(spec).document()}
        return parse(Job, self._connection.ask(Call("POST", "/v1/jobs", json=body, headers=headers)))

    def wait(self, job_id: str, *, timeout_s: float | None = None, progress: Progress | None = None) -> Job:
        """Return the job once it has succeeded; raise JobFailed when it ends otherwise."""
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        longest_s = HOLD_S if progress is None else WATCHED_HOLD_S
        while True:
            asked_at = time.monotonic()
            left_s = None if ends_at is None else max(0.0, ends_at - asked_at)
            answer = self._poll(job_id, hold_s=longest_s, left_s=left_s)
            job = parse(Job, answer)
            if progress is not None:
                progress(*_standing(job))
            if job.state == "succeeded":
                return job
            if job.state in TERMINAL:
                raise JobFailed(job)
            if timeout_s is not None and left_s == 0.0:
                raise WaitTimeoutError(job, timeout_s=timeout_s)
            # Retry-After is the least time between two questions; the time that an answer was held counts.
            pause_s = retry_after_s(answer.headers.get("Retry-After"))
            next_at = asked_at + (DEFAULT_PAUSE_S if pause_s is None else pause_s)
            time.sleep(max(0.0, min(next_at, ends_at or next_at) - time.monotonic()))

    def _poll(self, job_id: str, *, hold_s: int, left_s: float | None) -> httpx.Response:
        patience_s = self._connection.patience_s
        if left_s is not None:
            hold_s, patience_s = min(hold_s, int(left_s)), min(patience_s, left_s)
        call = Call("GET", _job_path(job_id), params={"wait": hold_s}, answer_s=hold_s)
        return self._connection.ask(call, patience_s=patience_s)

    def job(self, job_id: str) -> Job:
        return parse(Job, self._connection.ask(Call("GET", _job_path(job_id))))

    def jobs(self, *, state: JobState | None = None) -> Iterator[Job]:
        """Give all jobs, or those in one state, newest first; pages are fetched as they are needed."""
        params: dict[str, str | int] = {"limit": PAGE_JOBS}
        if state is not None:
            params["state"] = state
        while True:
            page = parse(JobList, self._connection.ask(Call("GET", "/v1/jobs", params=params)))
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def plan(self, path_or_id: PathOrId, spec: Spec, *, calibration: PathOrId | None = None) -> PlanDocument:
        """Say what would be done; for what is on disk that is worked out here, and nothing is sent.

        A `calibration` on disk is stored first where the checkpoint is.
        """
        checked = as_spec(spec)
        source = find_source(path_or_id)
        if source is not None:
            return plan_source(source, checked, self._grams(checked, calibration))
        checked = self._with_calibration(checked, calibration, silent)
        body = {"checkpoint": str(path_or_id), "spec": checked.document()}
        return parse(PlanDocument, self._connection.ask(Call("POST", "/v1/plans", json=body)))

    def _with_calibration(
        self, spec: CompressionSpec, calibration: PathOrId | None, progress: Progress
    ) -> CompressionSpec:
        """Name a calibration in the spec by its id, storing it where it is on disk."""
        if calibration is None:
            return spec
        refuse_two_calibrations(spec)
        source = find_source(calibration)
        name = upload(self._connection, source, None, progress) if source else str(calibration)
        return spec.model_copy(update={"calibration": name})

    def _grams(self, spec: CompressionSpec, calibration: PathOrId | None) -> Sequence[GramInfo] | None:
        """Look at the headers of a calibration, on disk or stored."""
        if calibration is not None:
            refuse_two_calibrations(spec)
            source = find_source(calibration)
            if source is not None:
                return source.tensors
        name = spec.calibration if calibration is None else str(calibration)
        if name is None:
            return None
        call = Call("GET", f"/v1/checkpoints/{quote(name, safe='')}")
        return parse(Checkpoint, self._connection.ask(call)).tensors

    def report(self, job_id: str) -> Report:
        headers = {"Accept": "application/json"}
        return parse(
            Report, self._connection.ask(Call("GET", f"{_job_path(job_id)}/report", headers=headers))
        )

    def download(
        self, job_id: str, into: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> tuple[Path, ...]:
        """Fetch the compressed checkpoint and the report into a directory; return their paths."""
        return download(self._connection, job_id, Path(into), progress or silent)

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job; of a finished one nothing changes."""
        return parse(Job, self._connection.ask(Call("POST", f"{_job_path(job_id)}/cancel")))

    def delete(self, job_id: str) -> None:
        """Remove a job and its files."""
        self._connection.ask(Call("DELETE", _job_path(job_id)))


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _standing(job: Job) -> tuple[int, int, str]:
    progress = job.progress
    if job.state == "queued":
        ahead = f", {job.queue_position} before it" if job.queue_position else ""
        return 0, 0, f"queued{ahead}"
    what = progress.layer or "layers" if job.state == "running" else job.state
    verb = "compress " if job.state == "running" else ""
    return progress.layers_done, progress.layers_total, f"{verb}{what}"
