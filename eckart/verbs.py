"""The client's verbs as conversations: what each asks the service, and what it makes of the answers."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from eckart.checkpoint import CHECKPOINT_ID, find_checkpoint, listed, open_checkpoint
from eckart.companions import NO_COMPANIONS, copy_subfolders
from eckart.conversation import Ask, Conversation, Pause, Work
from eckart.download import download, job_path
from eckart.errors import InputError, JobFailed, ProblemError, WaitTimeoutError
from eckart.http import Call, parse, retry_after_s
from eckart.pipeline_folder import check_spec, open_pipeline, published
from eckart.progress import silent
from eckart.spec import Spec, spec_document
from eckart.types import Document, Job, JobEvent, PlanDocument, Report
from eckart.upload import upload

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from eckart.checkpoint import CheckpointFiles, PathOrId
    from eckart.http import Connection
    from eckart.pipeline_folder import PipelineFolder
    from eckart.progress import ProgressCallback

D = TypeVar("D", bound=Document)

# How long the service holds an answer until the state changes; shorter where somebody watches the layers.
HOLD_S = 30
WATCHED_HOLD_S = 2
DEFAULT_PAUSE_S = 1.0
PAGE_ITEMS = 100
UNKNOWN_ID = "urn:eckart:problem:checkpoint-not-found"


def ask(kind: type[D], call: Call) -> Conversation[D]:
    """Send one request whose answer is a document."""
    return parse(kind, (yield Ask(call)))


def store(
    path: str | os.PathLike[str], checkpoint: str | None, progress: ProgressCallback
) -> Conversation[str]:
    """Store a file, an index with its shards, or a directory's checkpoint."""
    if checkpoint is not None and CHECKPOINT_ID.fullmatch(checkpoint) is None:
        raise InputError(
            f"{checkpoint!r} is no id: use at most 128 letters, digits, dots, underscores and hyphens"
        )

    def send(connection: Connection) -> str:
        return upload(connection, open_checkpoint(Path(path)), checkpoint, progress)

    stored: str = yield Work(send)
    return stored


def compress(
    path_or_id: PathOrId, spec: Spec, named: Mapping[str, PathOrId | None], progress: ProgressCallback
) -> Conversation[Job]:
    """Store what is on disk, and start a job."""
    files = yield from _found(path_or_id)
    document = yield from _with_references(spec_document(spec), named, progress)
    with _no_path_either({"checkpoint": path_or_id, **named}):
        if files is None:
            return (yield from submit(str(path_or_id), document))
        # The service checks the spec and the headers before gigabytes are sent.
        yield from _plan_headers(files, document)
        checkpoint: str = yield Work(partial(_send, files, progress))
        return (yield from submit(checkpoint, document))


def submit(checkpoint: str, spec: Spec) -> Conversation[Job]:
    """Start a job for a stored checkpoint."""
    # The key makes a repeated request harmless: the service returns the job that the first one made.
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"checkpoint": checkpoint, "spec": spec_document(spec)}
    return (yield from ask(Job, Call("POST", "/v1/jobs", json=body, headers=headers)))


def compress_pipeline(
    folder: str | os.PathLike[str],
    spec: Spec,
    into: str | os.PathLike[str],
    components: Sequence[str] | None,
    patience_s: float,
    progress: ProgressCallback | None,
) -> Conversation[dict[str, Job]]:
    """Compress the components of a pipeline's folder one after another, and publish the whole folder."""
    pipeline: PipelineFolder = yield Work(lambda _connection: open_pipeline(Path(folder), components))
    document = spec_document(spec)
    check_spec(document, pipeline)
    jobs: dict[str, Job] = {}
    with published(Path(into), pipeline) as part:
        for name in pipeline.checkpoints:
            job = yield from compress(pipeline.folder / name, document, {}, progress or silent)
            jobs[name] = yield from wait(job.id, timeout_s=None, patience_s=patience_s, progress=progress)
            yield from fetch(job.id, part / name, None, progress or silent)
        yield Work(lambda _connection: pipeline.copy_rest(part))
    return jobs


def plan(
    path_or_id: PathOrId, spec: Spec, named: Mapping[str, PathOrId | None]
) -> Conversation[PlanDocument]:
    """Ask what a job would do."""
    files = yield from _found(path_or_id)
    document = yield from _with_references(spec_document(spec), named, silent)
    with _no_path_either({"checkpoint": path_or_id, **named}):
        if files is not None:
            return (yield from _plan_headers(files, document))
        body = {"checkpoint": str(path_or_id), "spec": document}
        return (yield from ask(PlanDocument, Call("POST", "/v1/plans", json=body)))


def wait(
    job_id: str, *, timeout_s: float | None, patience_s: float, progress: ProgressCallback | None
) -> Conversation[Job]:
    """Poll a job until it has ended."""
    ends_at = None if timeout_s is None else time.monotonic() + timeout_s
    longest_s = HOLD_S if progress is None else WATCHED_HOLD_S
    while True:
        asked_at = time.monotonic()
        left_s = None if ends_at is None else max(0.0, ends_at - asked_at)
        hold_s, patient_s = longest_s, patience_s
        if left_s is not None:
            hold_s, patient_s = min(longest_s, int(left_s)), min(patience_s, left_s)
        call = Call("GET", job_path(job_id), params={"wait": hold_s}, answer_s=hold_s)
        answer = yield Ask(call, patient_s)
        job = parse(Job, answer)
        if progress is not None:
            progress(*_progress_of(job))
        if job.has_ended:
            return succeeded(job)
        if timeout_s is not None and left_s == 0.0:
            raise WaitTimeoutError(job, timeout_s=timeout_s)
        # Retry-After is the least time between two requests, including the time that an answer was held.
        pause_s = retry_after_s(answer.headers.get("Retry-After"))
        next_at = asked_at + (DEFAULT_PAUSE_S if pause_s is None else pause_s)
        yield Pause(max(0.0, min(next_at, ends_at or next_at) - time.monotonic()))


class Watch:
    """A job as its events tell of it, for who waits by them: they come when something happens."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress = progress
        self._job: Job | None = None

    def take(self, event: JobEvent) -> None:
        job = event.job or self._job
        assert job is not None  # the first event has it
        self._job = job.model_copy(update={"progress": event.progress})
        self._progress(*_progress_of(self._job))

    def ended(self) -> Job:
        assert self._job is not None
        return succeeded(self._job)


def report(job_id: str) -> Conversation[Report]:
    headers = {"Accept": "application/json"}
    return (yield from ask(Report, Call("GET", f"{job_path(job_id)}/report", headers=headers)))


def fetch(
    job_id: str,
    into: str | os.PathLike[str],
    source: str | os.PathLike[str] | None,
    progress: ProgressCallback,
) -> Conversation[tuple[Path, ...]]:
    """Fetch all files of the result, and copy what was never sent."""

    def receive(connection: Connection) -> tuple[Path, ...]:
        paths = download(connection, job_id, Path(into), progress)
        return paths if source is None else (*paths, *copy_subfolders(Path(source), Path(into)))

    paths: tuple[Path, ...] = yield Work(receive)
    return paths


def change(job_id: str, verb: str) -> Conversation[Job]:
    """Cancel or resume a job."""
    return (yield from ask(Job, Call("POST", f"{job_path(job_id)}/{verb}")))


def delete(job_id: str) -> Conversation[None]:
    yield Ask(Call("DELETE", job_path(job_id)))


def delete_checkpoint(checkpoint_id: str) -> Conversation[None]:
    yield Ask(Call("DELETE", f"/v1/checkpoints/{quote(checkpoint_id, safe='')}"))


def page(kind: type[D], path: str, cursor: str | None, **params: str | None) -> Conversation[D]:
    """Ask for one page of a list."""
    given = {"cursor": cursor, **params}
    wanted = {name: value for name, value in given.items() if value is not None}
    return (yield from ask(kind, Call("GET", path, params={"limit": PAGE_ITEMS, **wanted})))


def succeeded(job: Job) -> Job:
    """Return a job that has ended, if it has a result."""
    if job.state != "succeeded":
        raise JobFailed(job)
    return job


def _found(path_or_id: PathOrId) -> Conversation[CheckpointFiles | None]:
    files: CheckpointFiles | None = yield Work(lambda _connection: find_checkpoint(path_or_id))
    return files


def _send(files: CheckpointFiles, progress: ProgressCallback, connection: Connection) -> str:
    return upload(connection, files, None, progress)


def _plan_headers(files: CheckpointFiles, spec: dict[str, Any]) -> Conversation[PlanDocument]:
    parts = [("header", part) for part in files.headers()]
    call = Call("POST", "/v1/plans", form={"spec": json.dumps(spec)}, files=parts)
    found = yield from ask(PlanDocument, call)
    return found.model_copy(update={"checkpoint": files.name})


def _with_references(
    spec: dict[str, Any], named: Mapping[str, PathOrId | None], progress: ProgressCallback
) -> Conversation[dict[str, Any]]:
    """Name other checkpoints in the spec by their ids; store them first where they are on disk."""
    given = {field: name for field, name in named.items() if name is not None}
    for field in given:
        if spec.get(field) is not None:
            raise InputError(f"the spec has a {field}, {spec[field]}; leave out one of the two")
    found: dict[str, CheckpointFiles | None] = {}
    for field, name in given.items():
        found[field] = yield from _found(name)
    for field, files in found.items():
        if files is not None:
            weights = replace(files, companions=NO_COMPANIONS)
            given[field] = yield Work(partial(_send, weights, progress))
    return {**spec, **{field: str(name) for field, name in given.items()}}


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


def _progress_of(job: Job) -> tuple[int, int, str]:
    progress = job.progress
    if job.state == "queued":
        if job.waiting is not None:
            return 0, 0, f"waits until {job.waiting.next_attempt_at}: {job.waiting.title}"
        ahead = f", {job.queue_position} before it" if job.queue_position else ""
        return 0, 0, f"queued{ahead}"
    what = progress.layer or "layers" if job.state == "running" else job.state
    verb = "compress " if job.state == "running" else ""
    return progress.layers_done, progress.layers_total, f"{verb}{what}"
