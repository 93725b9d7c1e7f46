"""Every kind of problem that the service answers with: one table."""

from collections.abc import Mapping
from enum import Enum

from schemas.problem import FieldProblem, Problem, problem


class Kind(Enum):
    """The rows of the table: slug, HTTP status, title, default detail."""

    INVALID_HTTP = (
        "invalid-http",
        400,
        "Malformed HTTP request",
        "The request's head or its chunks break the rules of HTTP/1.1; use an ordinary client.",
    )
    NOT_FOUND = ("not-found", 404, "Not found", "No such address; /docs lists all of them.")
    CHECKPOINT_NOT_FOUND = (
        "checkpoint-not-found",
        404,
        "Checkpoint not found",
        "No checkpoint has this id; upload its files with PUT /v1/checkpoints/{id}/{filename}.",
    )
    JOB_NOT_FOUND = (
        "job-not-found",
        404,
        "Job not found",
        "No job has this id; GET /v1/jobs lists all of them.",
    )
    FILE_NOT_FOUND = (
        "file-not-found",
        404,
        "File not found",
        "The job has no result file of this name; its report lists the files.",
    )
    METHOD_NOT_ALLOWED = (
        "method-not-allowed",
        405,
        "Method not allowed",
        "The Allow header lists the methods of this address.",
    )
    NOT_ACCEPTABLE = (
        "not-acceptable",
        406,
        "Not available in the requested format",
        "The report is available as application/json; change the Accept header.",
    )
    REQUEST_TIMEOUT = (
        "request-timeout",
        408,
        "Timed out while waiting for the body",
        "No data arrived for too long, so the upload was discarded; send the request again.",
    )
    CONTENT_CONFLICT = (
        "content-conflict",
        409,
        "The file is already stored with other bytes",
        "A stored file never changes; delete the checkpoint first, or choose another id.",
    )
    CHECKPOINT_INCOMPLETE = (
        "checkpoint-incomplete",
        409,
        "The checkpoint is incomplete",
        "Upload the missing files first; GET the checkpoint lists them.",
    )
    CHECKPOINT_IN_USE = (
        "checkpoint-in-use",
        409,
        "The checkpoint is in use",
        "Wait until its jobs have ended, or cancel them, then delete it.",
    )
    CHECKPOINT_GONE = (
        "checkpoint-gone",
        409,
        "The checkpoint was deleted",
        "The checkpoint was deleted or replaced during the request; upload it again.",
    )
    NO_RESULT = (
        "no-result",
        409,
        "The job has no result",
        "A result exists once its job has succeeded; GET the job shows its state.",
    )
    SHARDED_RESULT = (
        "sharded-result",
        409,
        "The result has several files",
        "Download them one by one from /v1/jobs/{id}/files/{filename}; the report lists their names.",
    )
    TOO_LARGE = (
        "too-large",
        413,
        "The request is too large",
        "Send less, or ask the operator to raise the limit.",
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported-media-type",
        415,
        "Unsupported media type",
        "Send application/json or multipart/form-data, and name it in Content-Type.",
    )
    ENCODED_BODY = (
        "encoded-body",
        415,
        "Unsupported content encoding",
        "Send the bytes as they are, without Content-Encoding.",
    )
    RANGE_NOT_SATISFIABLE = (
        "range-not-satisfiable",
        416,
        "The range lies outside the file",
        "The Content-Range header gives the file's size; ask for a range within it.",
    )
    INVALID_REQUEST = (
        "invalid-request",
        422,
        "The request is not valid",
        "The request breaks a rule of this address; /docs lists the rules.",
    )
    INVALID_JSON = ("invalid-json", 422, "Invalid JSON", "Correct the JSON and resend.")
    INVALID_MULTIPART = (
        "invalid-multipart",
        422,
        "Malformed multipart body",
        "Let your client write the boundaries and the part headers, and send the whole body.",
    )
    INVALID_SPEC = ("invalid-spec", 422, "The spec is not valid", "Correct the spec and resend.")
    INVALID_CHECKPOINT = (
        "invalid-checkpoint",
        422,
        "The checkpoint is not valid",
        "Write the file again with the safetensors library and upload the whole of it.",
    )
    INVALID_CALIBRATION = (
        "invalid-calibration",
        422,
        "The calibration does not fit",
        "Compute the Gram matrices again, with the model that the checkpoint was saved from.",
    )
    PARTIAL_BODY = (
        "partial-body",
        422,
        "Partial uploads are not supported",
        "Send the whole file, without Content-Range.",
    )
    DIGEST_MISMATCH = (
        "digest-mismatch",
        422,
        "The digest does not match",
        "The body's SHA-256 differs from the one in Repr-Digest, so it was discarded; send the file again.",
    )
    IDEMPOTENCY_MISMATCH = (
        "idempotency-mismatch",
        422,
        "The idempotency key was used for another request",
        "Give each request its own Idempotency-Key; repeat one only with the same spec and checkpoint.",
    )
    HEADERS_TOO_LARGE = (
        "headers-too-large",
        431,
        "The request's head is too large",
        "Send a shorter address and fewer or shorter headers.",
    )
    INTERNAL_ERROR = (
        "internal-error",
        500,
        "Internal error",
        "The fault is in the service; its log has the cause under this request's X-Request-ID.",
    )
    STORE_UNAVAILABLE = (
        "store-unavailable",
        503,
        "Redis is unavailable",
        "Redis does not answer; nothing was stored. Try again in a few seconds.",
    )
    NOT_READY = (
        "not-ready",
        503,
        "The service is not ready",
        "Something is missing that jobs need; `errors` lists each part.",
    )
    OUT_OF_SPACE = (
        "out-of-space",
        507,
        "The disk is full",
        "The service has not enough disk space; delete jobs or checkpoints, or try again later.",
    )

    def __init__(self, slug: str, status: int, title: str, detail: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title
        self.detail = detail

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that every answer of this kind carries."""
        return _HEADERS.get(self, {})


_HEADERS: Mapping[Kind, Mapping[str, str]] = {
    Kind.ENCODED_BODY: {"Accept-Encoding": "identity"},
    Kind.STORE_UNAVAILABLE: {"Retry-After": "5"},
    Kind.NOT_READY: {"Retry-After": "5"},
}

KIND_BY_SLUG: Mapping[str, Kind] = {kind.slug: kind for kind in Kind}


class ProblemError(Exception):
    """Raised anywhere below a route; the handlers in `service.problems` answer with it."""

    def __init__(
        self,
        kind: Kind,
        detail: str | None = None,
        *,
        code: str | None = None,
        pointer: str | None = None,
        errors: tuple[FieldProblem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the kind's own detail unless one is given.

        `code` is appended to the problem's type; `pointer` names the one field at fault.
        """
        self.kind = kind
        self.detail = detail or kind.detail
        self.slug = f"{kind.slug}:{code}" if code else kind.slug
        self.errors = errors
        if pointer is not None:
            self.errors = (FieldProblem(pointer=pointer, detail=self.detail), *errors)
        self.headers = {**kind.headers, **(headers or {})}
        super().__init__(self.detail)

    def problem(self) -> Problem:
        """Build the RFC 9457 document."""
        return problem(self.slug, self.kind.title, self.kind.status, self.detail, errors=self.errors)
