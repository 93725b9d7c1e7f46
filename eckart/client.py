"""The client: the service's operations as methods."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from eckart.checkpoint import CHECKPOINT_ID, find_checkpoint, listed, open_checkpoint
from eckart.companions import NO_COMPANIONS, copy_subfolders
from eckart.download import download, job_path, request_report
from eckart.errors import (
    InputError,
    JobFailed,
    ProblemError,
    ServiceError,
    TransferError,
    WaitTimeoutError,
)
from eckart.events import follow
from eckart.http import Call, Connection, parse, retry_after_s
from eckart.progress import silent
from eckart.spec import Spec, spec_document
from eckart.types import (
    CheckpointList,
    Job,
    JobEvent,
    JobList,
    ListedCheckpoint,
    ListedJob,
    PlanDocument,
    Report,
)
from eckart.upload import upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import httpx

    from eckart.checkpoint import CheckpointFiles, PathOrId
    from eckart.progress import ProgressCallback

DEFAULT_URL = "http://127.0.0.1:8000"
# How long the service holds an answer until the state changes; shorter where somebody watches the layers.
HOLD_S = 30
WATCHED_HOLD_S = 2
DEFAULT_PAUSE_S = 1.0
PAGE_JOBS = 100
UNKNOWN_ID = "urn:eckart:problem:checkpoint-not-found"


class Client:
    """A connection to a service; close it, or use it in a `with` block."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to a service that may be silent for `timeout_s` and unavailable for `patience_s`.

        What is not given is that of `ECKART_URL` and `ECKART_API_KEY`.
        """
        self._connection = Connection(
            (os.environ.get("ECKART_URL") or DEFAULT_URL) if base_url is None else base_url,
            api_key=os.environ.get("ECKART_API_KEY") if api_key is None else api_key,
            timeout_s=timeout_s,
            patience_s=patience_s,
            transport=transport,
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
        progress: ProgressCallback | None = None,
    ) -> str:
        """Store a file, an index with its shards, or a directory's checkpoint; return the checkpoint's id.

        Of a directory the companions are stored too: `config.json`, the tokenizer's files, the model card.
        Without an id it is named after its bytes, so that files which the service has are not sent again.
        """
        if id is not None and CHECKPOINT_ID.fullmatch(id) is None:
            raise InputError(
                f"{id!r} is no id: use at most 128 letters, digits, dots, underscores and hyphens"
            )
        return upload(self._connection, open_checkpoint(Path(path)), id, progress or silent)

    def compress(
        self,
        path_or_id: PathOrId,
        spec: Spec,
        *,
        calibration: PathOrId | None = None,
        base: PathOrId | None = None,
        wait: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Job:
        """Compress a checkpoint on disk or a stored one, and wait for the end.

        `calibration` is a file of Gram matrices as `eckart.calibrate` writes it, and `base` the checkpoint
        that this one was fine-tuned from; or each is the id of a stored one, which a spec may name itself.
        """
        report = progress or silent
        files = find_checkpoint(path_or_id)
        named = {"calibration": calibration, "base": base}
        document = self._with_references(spec_document(spec), named, report)
        with _no_path_either({"checkpoint": path_or_id, **named}):
            if files is not None:
                # The service checks the spec and the headers before gigabytes are sent.
                self._plan_headers(files, document)
            checkpoint = upload(self._connection, files, None, report) if files else str(path_or_id)
            job = self.submit(checkpoint, document)
        return self.wait(job.id, progress=progress) if wait else job

    def submit(self, checkpoint: str, spec: Spec) -> Job:
        """Start a job for a stored checkpoint."""
        # The key makes a repeated request harmless: the service returns the job that the first one made.
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        body = {"checkpoint": checkpoint, "spec": spec_document(spec)}
        return parse(Job, self._connection.request(Call("POST", "/v1/jobs", json=body, headers=headers)))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, progress: ProgressCallback | None = None
    ) -> Job:
        """Return the job once it has succeeded; raise JobFailed when it ends otherwise."""
        if progress is not None and timeout_s is None:
            # An older service has no events, too many may listen, or a proxy may break them off: then poll.
            with suppress(ServiceError, TransferError):
                return self._follow(job_id, progress)
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        longest_s = HOLD_S if progress is None else WATCHED_HOLD_S
        while True:
            asked_at = time.monotonic()
            left_s = None if ends_at is None else max(0.0, ends_at - asked_at)
            answer = self._poll(job_id, hold_s=longest_s, left_s=left_s)
            job = parse(Job, answer)
            if progress is not None:
                progress(*_progress_of(job))
            if job.has_ended:
                return _succeeded(job)
            if timeout_s is not None and left_s == 0.0:
                raise WaitTimeoutError(job, timeout_s=timeout_s)
            # Retry-After is the least time between two requests, including the time that an answer was held.
            pause_s = retry_after_s(answer.headers.get("Retry-After"))
            next_at = asked_at + (DEFAULT_PAUSE_S if pause_s is None else pause_s)
            time.sleep(max(0.0, min(next_at, ends_at or next_at) - time.monotonic()))

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """Iterate over a job's changes until it has ended, across connections that break.

        The first event has the job as it is. What changes twice in a moment may be told once.
        """
        return follow(self._connection, job_id, patience_s=self._connection.patience_s)

    def _follow(self, job_id: str, progress: ProgressCallback) -> Job:
        """Wait by events, which come when something happens."""
        job: Job | None = None
        for event in follow(self._connection, job_id, patience_s=0.0):
            job = event.job or job
            assert job is not None  # the first event has it
            job = job.model_copy(update={"progress": event.progress})
            progress(*_progress_of(job))
        assert job is not None
        return _succeeded(job)

    def _poll(self, job_id: str, *, hold_s: int, left_s: float | None) -> httpx.Response:
        patience_s = self._connection.patience_s
        if left_s is not None:
            hold_s, patience_s = min(hold_s, int(left_s)), min(patience_s, left_s)
        call = Call("GET", job_path(job_id), params={"wait": hold_s}, answer_s=hold_s)
        return self._connection.request(call, patience_s=patience_s)

    def job(self, job_id: str) -> Job:
        return parse(Job, self._connection.request(Call("GET", job_path(job_id))))

    def jobs(self, *, state: str | None = None) -> Iterator[ListedJob]:
        """Iterate over all jobs, or those in one state, newest first; pages are fetched on demand."""
        params: dict[str, str | int] = {"limit": PAGE_JOBS}
        if state is not None:
            params["state"] = state
        while True:
            page = parse(JobList, self._connection.request(Call("GET", "/v1/jobs", params=params)))
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def checkpoints(self) -> Iterator[ListedCheckpoint]:
        """Iterate over all stored checkpoints, the latest first; pages are fetched on demand."""
        params: dict[str, str | int] = {"limit": PAGE_JOBS}
        while True:
            page = parse(
                CheckpointList, self._connection.request(Call("GET", "/v1/checkpoints", params=params))
            )
            yield from page.checkpoints
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def plan(
        self,
        path_or_id: PathOrId,
        spec: Spec,
        *,
        calibration: PathOrId | None = None,
        base: PathOrId | None = None,
    ) -> PlanDocument:
        """Return what a job would do. Of a checkpoint on disk only the headers are sent.

        A `calibration` and a `base` on disk are stored first.
        """
        files = find_checkpoint(path_or_id)
        named = {"calibration": calibration, "base": base}
        document = self._with_references(spec_document(spec), named, silent)
        with _no_path_either({"checkpoint": path_or_id, **named}):
            if files is not None:
                return self._plan_headers(files, document)
            body = {"checkpoint": str(path_or_id), "spec": document}
            return parse(PlanDocument, self._connection.request(Call("POST", "/v1/plans", json=body)))

    def _plan_headers(self, files: CheckpointFiles, spec: dict[str, Any]) -> PlanDocument:
        parts = [("header", part) for part in files.headers()]
        call = Call("POST", "/v1/plans", form={"spec": json.dumps(spec)}, files=parts)
        plan = parse(PlanDocument, self._connection.request(call))
        return plan.model_copy(update={"checkpoint": files.name})

    def _with_references(
        self, spec: dict[str, Any], named: Mapping[str, PathOrId | None], progress: ProgressCallback
    ) -> dict[str, Any]:
        """Name other checkpoints in the spec by their ids; store them first where they are on disk."""
        given = {field: name for field, name in named.items() if name is not None}
        for field in given:
            if spec.get(field) is not None:
                raise InputError(f"the spec has a {field}, {spec[field]}; leave out one of the two")
        found = {field: find_checkpoint(name) for field, name in given.items()}
        for field, files in found.items():
            if files is not None:
                weights = replace(files, companions=NO_COMPANIONS)
                given[field] = upload(self._connection, weights, None, progress)
        return {**spec, **{field: str(name) for field, name in given.items()}}

    def report(self, job_id: str) -> Report:
        return parse(Report, request_report(self._connection, job_id))

    def download(
        self,
        job_id: str,
        into: str | os.PathLike[str],
        *,
        source: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> tuple[Path, ...]:
        """Fetch all files of the result into a directory; return their paths.

        `source` is the model's folder on this machine, if it has subfolders: they are not sent, so the small
        files in them are copied from there.
        """
        paths = download(self._connection, job_id, Path(into), progress or silent)
        return paths if source is None else (*paths, *copy_subfolders(Path(source), Path(into)))

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job; of a finished one nothing changes."""
        return parse(Job, self._connection.request(Call("POST", f"{job_path(job_id)}/cancel")))

    def resume(self, job_id: str) -> Job:
        """Start a failed job again; the layers that it has finished are kept."""
        return parse(Job, self._connection.request(Call("POST", f"{job_path(job_id)}/resume")))

    def delete(self, job_id: str) -> None:
        """Remove a job and its files."""
        self._connection.request(Call("DELETE", job_path(job_id)))


@contextmanager
def _no_path_either(given: Mapping[str, PathOrId | None]) -> Iterator[None]:
    """Where an id is unknown, add that it is no path here either; `given` has the ids by their fields."""
    try:
        yield
    except ProblemError as error:
        if error.problem.type != UNKNOWN_ID:
            raise
        fields = [field.pointer.rpartition("/")[2] for field in error.problem.errors] or ["checkpoint"]
        if not (names := [str(given[field]) for field in fields if given.get(field) is not None]):
            raise
        detail = f"{error.problem.detail} Nor is there such a file or folder here: {listed(names)}."
        problem = error.problem.model_copy(update={"detail": detail})
        raise ProblemError(problem, retry_after_s=error.retry_after_s) from error


def _succeeded(job: Job) -> Job:
    """Return a job that has ended, if it has a result."""
    if job.state != "succeeded":
        raise JobFailed(job)
    return job


def _progress_of(job: Job) -> tuple[int, int, str]:
    progress = job.progress
    if job.state == "queued":
        ahead = f", {job.queue_position} before it" if job.queue_position else ""
        return 0, 0, f"queued{ahead}"
    what = progress.layer or "layers" if job.state == "running" else job.state
    verb = "compress " if job.state == "running" else ""
    return progress.layers_done, progress.layers_total, f"{verb}{what}"
