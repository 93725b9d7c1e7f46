"""The client: the service's operations as methods, and what both clients begin with."""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from eckart import verbs
from eckart.conversation import Ask, Conversation, Pause, Step, Work, converse
from eckart.download import job_path
from eckart.errors import ServiceError, TransferError
from eckart.events import follow
from eckart.http import Call, Connection
from eckart.progress import silent
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import httpx

    from eckart.checkpoint import PathOrId
    from eckart.progress import ProgressCallback
    from eckart.spec import Spec

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"


def address_and_key(base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Take what is not given from `ECKART_URL` and `ECKART_API_KEY`."""
    url = (os.environ.get("ECKART_URL") or DEFAULT_URL) if base_url is None else base_url
    return url, os.environ.get("ECKART_API_KEY") if api_key is None else api_key


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
        url, key = address_and_key(base_url, api_key)
        self._connection = Connection(
            url, api_key=key, timeout_s=timeout_s, patience_s=patience_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def _run(self, conversation: Conversation[T]) -> T:
        return converse(conversation, self._do)

    def _do(self, step: Step) -> Any:
        match step:
            case Ask(call, patience_s):
                return self._connection.request(call, patience_s=patience_s)
            case Pause(seconds):
                return time.sleep(seconds)
            case Work(function):
                return function(self._connection)

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
        return self._run(verbs.store(path, id, progress or silent))

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
        What is on disk is uploaded under a new id and stays stored, as `job.checkpoint`, until you delete it.
        """
        named = {"calibration": calibration, "base": base}
        job = self._run(verbs.compress(path_or_id, spec, named, progress or silent))
        return self.wait(job.id, progress=progress) if wait else job

    def compress_pipeline(
        self,
        folder: str | os.PathLike[str],
        spec: Spec,
        into: str | os.PathLike[str],
        *,
        components: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Job]:
        """Compress a whole folder of diffusers into a new one; return the job of each component.

        The components are compressed one after another: those that are named, else all that have weights,
        but no autoencoder. All other files are copied. The new folder appears once it is whole.
        """
        patience_s = self._connection.patience_s
        with closing(verbs.compress_pipeline(folder, spec, into, components, patience_s, progress)) as asked:
            return self._run(asked)

    def submit(self, checkpoint: str, spec: Spec) -> Job:
        """Start a job for a stored checkpoint."""
        return self._run(verbs.submit(checkpoint, spec))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, progress: ProgressCallback | None = None
    ) -> Job:
        """Return the job once it has succeeded; raise JobFailed when it ends otherwise."""
        if progress is not None and timeout_s is None:
            # An older service has no events, too many may listen, or a proxy may break them off: then poll.
            with suppress(ServiceError, TransferError):
                watch = verbs.Watch(progress)
                for event in follow(self._connection, job_id, patience_s=0.0):
                    watch.take(event)
                return watch.ended()
        patience_s = self._connection.patience_s
        return self._run(verbs.wait(job_id, timeout_s=timeout_s, patience_s=patience_s, progress=progress))

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """Iterate over a job's changes until it has ended, across connections that break.

        The first event has the job as it is. What changes twice in a moment may be told once.
        """
        return follow(self._connection, job_id, patience_s=self._connection.patience_s)

    def job(self, job_id: str) -> Job:
        return self._run(verbs.ask(Job, Call("GET", job_path(job_id))))

    def jobs(self, *, state: str | None = None, checkpoint: str | None = None) -> Iterator[ListedJob]:
        """Iterate over jobs, newest first, of a state or on a checkpoint; pages are fetched on demand."""
        cursor: str | None = None
        while True:
            page = self._run(verbs.page(JobList, "/v1/jobs", cursor, state=state, checkpoint=checkpoint))
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def checkpoints(self) -> Iterator[ListedCheckpoint]:
        """Iterate over all stored checkpoints, the latest first; pages are fetched on demand."""
        cursor: str | None = None
        while True:
            page = self._run(verbs.page(CheckpointList, "/v1/checkpoints", cursor))
            yield from page.checkpoints
            if (cursor := page.next_cursor) is None:
                return

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
        return self._run(verbs.plan(path_or_id, spec, {"calibration": calibration, "base": base}))

    def report(self, job_id: str) -> Report:
        return self._run(verbs.report(job_id))

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
        return self._run(verbs.fetch(job_id, into, source, progress or silent))

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job; of a finished one nothing changes."""
        return self._run(verbs.change(job_id, "cancel"))

    def resume(self, job_id: str) -> Job:
        """Start a failed job again; the layers that it has finished are kept."""
        return self._run(verbs.change(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Remove a job and its files."""
        self._run(verbs.delete(job_id))

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Remove a stored checkpoint, which no unfinished job may need."""
        self._run(verbs.delete_checkpoint(checkpoint_id))
