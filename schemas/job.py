"""What a job looks like from outside."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Input, Output
from schemas.format.index import CHECKPOINT_ID
from schemas.problem import Problem
from schemas.report import Totals
from schemas.spec import CompressionSpec

JobState = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "canceled"})


class JobRequest(Input):
    """A job, or a plan, for a stored checkpoint."""

    checkpoint: Annotated[
        str, Field(pattern=CHECKPOINT_ID.pattern, description="The checkpoint's id.", examples=["my-model"])
    ]
    spec: CompressionSpec = Field(description="What is to be done.")


class Progress(Output):
    """How far a job has come."""

    layers_done: int = Field(description="Layers finished.", examples=[12])
    layers_total: int = Field(description="Layers selected; 0 until the job has started.", examples=[37])
    layer: str | None = Field(description="The layer at hand.", examples=["encoder.layer.3.output.dense"])
    fraction: float = Field(description="Between 0 and 1, by the work each layer costs.", examples=[0.33])


NO_PROGRESS = Progress(layers_done=0, layers_total=0, layer=None, fraction=0.0)


class Links(Output):
    """Where the job's things are."""

    self: str = Field(description="This job.", examples=["/v1/jobs/J5b0"])
    report: str = Field(description="Its report.", examples=["/v1/jobs/J5b0/report"])
    checkpoint: str = Field(
        description="Its compressed checkpoint, for a single file.", examples=["/v1/jobs/J5b0/checkpoint"]
    )
    files: str = Field(description="Any result file, by name.", examples=["/v1/jobs/J5b0/files/{filename}"])
    cancel: str = Field(description="Cancels it.", examples=["/v1/jobs/J5b0/cancel"])


class Job(Output):
    """A job's state."""

    id: str = Field(description="The job's id; it cannot be guessed.", examples=["J5b0"])
    state: JobState = Field(description="Where it stands.", examples=["running"])
    checkpoint: str = Field(description="The id of its input.", examples=["my-model"])
    spec: CompressionSpec = Field(description="What was asked for.")
    progress: Progress = Field(description="How far it has come.")
    attempt: int = Field(description="How many times a worker has started it.", examples=[1])
    queue_position: int | None = Field(
        description="Jobs before this one, from 0; null unless queued.", examples=[None]
    )
    created_at: str = Field(description="When it was accepted.", examples=["2026-01-02T03:04:05Z"])
    started_at: str | None = Field(description="When work last began.", examples=["2026-01-02T03:04:06Z"])
    finished_at: str | None = Field(description="When it ended.", examples=[None])
    expires_at: str | None = Field(
        description="When its files go; null: never by themselves.", examples=[None]
    )
    warnings: tuple[str, ...] = Field(description="What is likely not meant.", examples=[[]])
    error: Problem | None = Field(description="Why it failed; null otherwise.", examples=[None])
    summary: Totals | None = Field(description="The report's totals, once it has succeeded.", examples=[None])
    links: Links = Field(description="Where its things are.")


class JobList(Output):
    """Jobs, newest first."""

    jobs: tuple[Job, ...] = Field(description="The jobs of this page.")
    next_cursor: str | None = Field(
        description="Give it as `cursor` for the next page; null on the last.", examples=[None]
    )
