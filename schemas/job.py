"""The JSON documents of a job: the request, its state and progress, and lists of jobs."""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.base import Input, Output
from schemas.format.names import CHECKPOINT_ID
from schemas.problem import Problem
from schemas.report import Totals
from schemas.spec import CompressionSpec
from schemas.webhook import Webhook, WebhookRequest

JobState = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "canceled"})
UNFINISHED: frozenset[JobState] = frozenset({"queued", "running"})


class JobRequest(Input):
    """The request for a job, or for a plan, on a stored checkpoint."""

    checkpoint: Annotated[
        str, Field(pattern=CHECKPOINT_ID.pattern, description="Id of the checkpoint.", examples=["my-model"])
    ]
    spec: CompressionSpec = Field(description="The compression spec.")
    webhook: WebhookRequest | None = Field(
        default=None, description="Where to tell that the job has ended; a plan ignores it.", examples=[None]
    )


class Progress(Output):
    """The progress of a job."""

    layers_done: int = Field(description="Layers finished.", examples=[12])
    layers_total: int = Field(description="Layers selected; 0 until the job has started.", examples=[37])
    layer: str | None = Field(description="The current layer.", examples=["encoder.layer.3.output.dense"])
    fraction: float = Field(
        description="Share of the work done, from 0 to 1; layers count by their cost. Under a budget all are "
        "decomposed before the first is done, and that counts too. 1 only when all layers are done.",
        examples=[0.33],
    )


NO_PROGRESS = Progress(layers_done=0, layers_total=0, layer=None, fraction=0.0)


class Links(Output):
    """URLs of a job and its results."""

    self: str = Field(description="This job.", examples=["/v1/jobs/J5b0"])
    report: str = Field(description="The report.", examples=["/v1/jobs/J5b0/report"])
    checkpoint: str = Field(
        description="The compressed checkpoint, where it is a single weight file.",
        examples=["/v1/jobs/J5b0/checkpoint"],
    )
    files: str = Field(description="Any result file, by name.", examples=["/v1/jobs/J5b0/files/{filename}"])
    archive: str = Field(description="All result files as one tar.", examples=["/v1/jobs/J5b0/archive"])
    events: str = Field(description="Its changes as server-sent events.", examples=["/v1/jobs/J5b0/events"])
    cancel: str = Field(description="POST here to cancel the job.", examples=["/v1/jobs/J5b0/cancel"])


class Waiting(Output):
    """Why a queued job is not started at once: the trouble of its last attempt."""

    type: str = Field(
        description="The kind of problem, as in `error`.", examples=["urn:eckart:problem:out-of-space"]
    )
    title: str = Field(description="The problem in a few words.", examples=["The disk is full"])
    next_attempt_at: str = Field(
        description="When it is tried again, or soon after.", examples=["2026-01-02T03:05:06Z"]
    )


class ListedJob(Output):
    """A job in a list, which shows no spec: it may be large."""

    id: str = Field(description="Id of the job; it cannot be guessed.", examples=["J5b0"])
    state: JobState = Field(description="State of the job.", examples=["running"])
    checkpoint: str = Field(description="Id of the input checkpoint.", examples=["my-model"])
    progress: Progress = Field(description="Progress of the job.")
    attempt: int = Field(description="How many times a worker has started it.", examples=[1])
    queue_position: int | None = Field(
        description="Number of jobs ahead of this one; null unless queued.", examples=[None]
    )
    waiting: Waiting | None = Field(
        description="Why it pauses after trouble, and until when; null unless it does.", examples=[None]
    )
    created_at: str = Field(description="Time of creation.", examples=["2026-01-02T03:04:05Z"])
    started_at: str | None = Field(
        description="Start of the latest attempt.", examples=["2026-01-02T03:04:06Z"]
    )
    finished_at: str | None = Field(description="Time of the end.", examples=[None])
    expires_at: str | None = Field(
        description="When the job and its files are deleted; null if never.", examples=[None]
    )
    error: Problem | None = Field(
        description="Why the job failed, or cannot be read by this release; null otherwise.", examples=[None]
    )
    summary: Totals | None = Field(
        description="Totals of the report; null until the job has succeeded.", examples=[None]
    )
    links: Links = Field(description="URLs of the job and its results.")


class Job(ListedJob):
    """A job."""

    spec: dict[str, Any] = Field(
        description="The compression spec, with defaults filled in.",
        examples=[{"method": "svd", "rank": {"ratio": 0.5}}],
    )
    warnings: tuple[str, ...] = Field(
        description="What is odd about the checkpoint, and probable mistakes in the spec; once the job has "
        "succeeded, also what only the work showed, such as weights with NaN.",
        examples=[[]],
    )
    webhook: Webhook | None = Field(description="Where its end is told; null without one.")


class JobList(Output):
    """Jobs, newest first."""

    jobs: tuple[ListedJob, ...] = Field(description="The jobs of this page.")
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page.", examples=[None]
    )
