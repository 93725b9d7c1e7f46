"""The service's documents as the user's side reads them.

They are lenient: a field that a newer service adds is kept as it came, and one that an older service lacks
takes its default. The service describes the same documents strictly, in its OpenAPI schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Document(BaseModel):
    """A frozen document that keeps the fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow")


class FieldProblem(Document):
    """One bad field: a JSON pointer to it, and what is wrong."""

    pointer: str = ""
    detail: str


class Problem(Document):
    """Why the service refused, or why a job failed (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] = ()


class FileInfo(Document):
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str


class Checkpoint(Document):
    """A stored checkpoint, as far as the client needs it."""

    id: str
    files: tuple[FileInfo, ...] = ()
    complete: bool = False


class ListedCheckpoint(Checkpoint):
    """A stored checkpoint in a list."""

    stored_at: str = ""
    bytes: int = 0


class CheckpointList(Document):
    """Stored checkpoints, the latest first."""

    checkpoints: tuple[ListedCheckpoint, ...]
    next_cursor: str | None = None


class Savings(Document):
    """Sums over every tensor of a checkpoint, before and after."""

    parameters_before: int
    parameters_after: int
    parameter_savings: float
    compression_factor: float
    bytes_before: int
    bytes_after: int
    layers_factored: int
    layers_kept: int


class Totals(Savings):
    """What a job saved, at what error, in what time."""

    relative_error: float
    weighted_error: float | None = None
    predicted_loss: float | None = None
    error_over_optimal: float | None = None
    seconds: float = 0.0


class PlanTotals(Savings):
    """What a job would save; upper bounds where not `exact`."""

    exact: bool = True


class Layer(Document):
    """What a plan and a report say of each selected weight."""

    name: str
    tensor: str
    shape: tuple[int, ...]
    shape_after: tuple[int, ...] | None = None
    transposed: bool = False
    calibrated: bool = False
    dtype: str
    outcome: str
    reason: str | None = None
    method: str
    rank: int | None = None
    break_even_rank: int | None = None
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int


class RankBounds(Document):
    """Between which ranks a layer will land whose rank depends on its spectrum."""

    least: int
    most: int


class PlannedLayer(Layer):
    """What would be done to one weight."""

    rank_bounds: RankBounds | None = None
    pair: str | None = None


class LayerReport(Layer):
    """What was done to one weight."""

    selector: str | None = None
    relative_error: float | None = None
    optimal_error: float | None = None
    weighted_error: float | None = None
    optimal_weighted_error: float | None = None
    predicted_loss: float | None = None
    bias_corrected: bool = False
    decomposition: str | None = None
    singular_values: tuple[float, ...] | None = None
    singular_value_indices: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    seconds: float = 0.0

    @property
    def error_and_optimum(self) -> tuple[float | None, float | None]:
        """The error and the best possible one at this rank, of the outputs where the layer is calibrated."""
        if self.weighted_error is None:
            return self.relative_error, self.optimal_error
        return self.weighted_error, self.optimal_weighted_error


class PlanDocument(Document):
    """What would be done to each layer of a checkpoint."""

    checkpoint: str | None = None
    warnings: tuple[str, ...] = ()
    layers: tuple[PlannedLayer, ...]
    totals: PlanTotals

    def _repr_html_(self) -> str:
        """Show the plan in a notebook."""
        from eckart.notebook import plan_html

        return plan_html(self)


class CheckpointReport(Document):
    """One side of the work: the input or the output."""

    files: tuple[FileInfo, ...]
    parameters: int
    bytes: int


class Report(Document):
    """What was done to each layer of a checkpoint."""

    version: int = 1
    job_id: str | None = None
    created_at: str
    spec: dict[str, Any]
    environment: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    input: CheckpointReport
    calibration: tuple[FileInfo, ...] | None = None
    base: tuple[FileInfo, ...] | None = None
    output: CheckpointReport
    totals: Totals
    how_to_load: str | None = None
    layers: tuple[LayerReport, ...]

    def plot(self) -> Figure:
        """Draw the errors of the layers and their spectra; needs matplotlib, the extra `plot`."""
        from eckart.plot import report_figure

        return report_figure(self)

    def _repr_html_(self) -> str:
        """Show the report in a notebook."""
        from eckart.notebook import report_html

        return report_html(self)


class JobProgress(Document):
    """How far a job has come."""

    layers_done: int = 0
    layers_total: int = 0
    layer: str | None = None
    fraction: float = 0.0


class Links(Document):
    """Where the things of a job are."""

    self: str | None = None
    report: str | None = None
    checkpoint: str | None = None
    files: str | None = None
    archive: str | None = None
    events: str | None = None
    cancel: str | None = None


class Delivery(Document):
    """One attempt to deliver the message of a webhook."""

    message: str = ""
    attempt: int
    at: str
    status: int | None = None
    error: str | None = None
    next_at: str | None = None


class Webhook(Document):
    """Where the end of a job is told, and what was tried."""

    url: str
    events: tuple[str, ...] = ()
    deliveries: tuple[Delivery, ...] = ()


class Waiting(Document):
    """Why a queued job pauses after trouble, and when it is tried again."""

    type: str
    title: str
    next_attempt_at: str


class ListedJob(Document):
    """A job in a list; its `state` is `queued`, `running`, `succeeded`, `failed` or `canceled`."""

    id: str
    state: str
    checkpoint: str
    progress: JobProgress = JobProgress()
    attempt: int = 0
    queue_position: int | None = None
    waiting: Waiting | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    error: Problem | None = None
    summary: Totals | None = None
    links: Links = Links()

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in {"succeeded", "failed", "canceled"}


class Job(ListedJob):
    """A job."""

    spec: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    webhook: Webhook | None = None


class JobEvent(Document):
    """A change of a job: `state`, `progress` or `end` by its `kind`; a `progress` has no `job`."""

    kind: str
    id: str = ""
    job: Job | None = None
    progress: JobProgress


class JobList(Document):
    """One page of jobs, newest first."""

    jobs: tuple[ListedJob, ...]
    next_cursor: str | None = None
