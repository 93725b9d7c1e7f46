"""Every refusal, drawn once and kept in one file: status, title and advice stand on the class.

Refusal
├── InvalidHttp 400
├── NotFound 404
│   ├── CheckpointNotFound
│   ├── JobNotFound
│   └── FileNotFound
├── MethodNotAllowed 405
├── NotAcceptable 406
├── RequestTimeout 408
├── Conflict 409
│   ├── ContentConflict
│   ├── CheckpointIncomplete
│   ├── CheckpointInUse
│   ├── CheckpointGone
│   ├── NoResult
│   └── ShardedResult
├── TooLarge 413
├── UnsupportedMediaType 415
│   └── EncodedBody
├── RangeNotSatisfiable 416
├── InvalidRequest 422
│   ├── InvalidJson
│   ├── InvalidMultipart
│   ├── InvalidSpec
│   ├── InvalidCheckpoint
│   │   └── InvalidCalibration
│   ├── PartialBody
│   ├── DigestMismatch
│   └── IdempotencyMismatch
├── HeadersTooLarge 431
├── InternalError 500
├── Unavailable 503
│   ├── StoreUnavailable
│   └── NotReady
└── OutOfSpace 507
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

from schemas.problem import FieldProblem, Problem, problem


class Refusal(Exception):  # noqa: N818 - the tree reads better without "Error" on every leaf
    """What the service answers instead of obeying; `advice` is the detail unless one is given."""

    slug: str
    title: ClassVar[str]
    status: ClassVar[int]
    advice: ClassVar[str]
    example: ClassVar[str]  # a detail as it may be given, shown in the documentation; the advice if not said
    headers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        cls.example = vars(cls).get("example", cls.advice)

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: tuple[FieldProblem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.advice)
        self.detail = detail or self.advice
        self.errors = errors
        self.sent_headers = {**self.headers, **(headers or {})}

    def problem(self) -> Problem:
        """Say it as RFC 9457 would."""
        return problem(self.slug, self.title, self.status, self.detail, errors=self.errors)


class InvalidHttp(Refusal):
    slug = "invalid-http"
    title = "This is no HTTP request"
    status = HTTPStatus.BAD_REQUEST
    advice = "The request's head or its chunks break the rules of HTTP/1.1; use an ordinary client."


class NotFound(Refusal):
    slug = "not-found"
    title = "Nothing is here"
    status = HTTPStatus.NOT_FOUND
    advice = "No such address; /docs lists all of them."


class CheckpointNotFound(NotFound):
    slug = "checkpoint-not-found"
    title = "No such checkpoint"
    advice = "No checkpoint has this id; upload its files with PUT /v1/checkpoints/{id}/{filename}."


class JobNotFound(NotFound):
    slug = "job-not-found"
    title = "No such job"
    advice = "No job has this id; GET /v1/jobs lists all of them."


class FileNotFound(NotFound):
    slug = "file-not-found"
    title = "No such file"
    advice = "The job has no result file of this name; its report lists the files."


class MethodNotAllowed(Refusal):
    slug = "method-not-allowed"
    title = "This address does not take that method"
    status = HTTPStatus.METHOD_NOT_ALLOWED
    advice = "The Allow header lists the methods that this address takes."


class NotAcceptable(Refusal):
    slug = "not-acceptable"
    title = "Not available in that form"
    status = HTTPStatus.NOT_ACCEPTABLE
    advice = "The report is available as application/json; change the Accept header."


class RequestTimeout(Refusal):
    slug = "request-timeout"
    title = "The body stopped arriving"
    status = HTTPStatus.REQUEST_TIMEOUT
    advice = "Nothing arrived for too long, so what had come was dropped; send the request again."
    example = "Nothing arrived for 60 s, so what had come was dropped; send it again."


class Conflict(Refusal):
    slug = "conflict"
    title = "Not possible in this state"
    status = HTTPStatus.CONFLICT
    advice = "What was asked for does not fit the present state; look at it with GET and try again."


class ContentConflict(Conflict):
    slug = "content-conflict"
    title = "The file exists with other bytes"
    advice = "A stored file never changes; delete the checkpoint first, or choose another id."


class CheckpointIncomplete(Conflict):
    slug = "checkpoint-incomplete"
    title = "The checkpoint lacks files"
    advice = "Upload the missing files first; GET the checkpoint names them."
    example = "Upload the missing files first: model-00002-of-00002.safetensors."


class CheckpointInUse(Conflict):
    slug = "checkpoint-in-use"
    title = "A job needs the checkpoint"
    advice = "Wait for its jobs to end, or cancel them, then delete it."


class CheckpointGone(Conflict):
    slug = "checkpoint-gone"
    title = "The checkpoint was deleted meanwhile"
    advice = "The checkpoint was deleted or replaced meanwhile; upload it again."


class NoResult(Conflict):
    slug = "no-result"
    title = "The job has no result"
    advice = "A result exists once its job has succeeded; GET the job says how it stands."
    example = "The job is running; its result exists once it has succeeded. Ask again later."


class ShardedResult(Conflict):
    slug = "sharded-result"
    title = "The result has several files"
    advice = "Fetch them one by one at /v1/jobs/{id}/files/{filename}; the report lists their names."


class TooLarge(Refusal):
    slug = "too-large"
    title = "The body is over a limit"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    advice = "Send less, or have the limit raised."
    example = "The body may hold at most 107374182400 bytes."


class UnsupportedMediaType(Refusal):
    slug = "unsupported-media-type"
    title = "The body has a type that is not taken here"
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    advice = "Send application/json or multipart/form-data, and say so in Content-Type."


class EncodedBody(UnsupportedMediaType):
    slug = "encoded-body"
    title = "The body is compressed in transit"
    advice = "Send the bytes as they are, without Content-Encoding."
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class RangeNotSatisfiable(Refusal):
    slug = "range-not-satisfiable"
    title = "The range lies outside the file"
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    advice = "The Content-Range header gives the file's size; ask for a range within it."


class InvalidRequest(Refusal):
    slug = "invalid-request"
    title = "The request is not valid"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    advice = "The request breaks a rule of this address; /docs has the rules."
    example = "1 field of the request is not valid; mend what errors lists and send the request again."


class InvalidJson(InvalidRequest):
    slug = "invalid-json"
    title = "The text is not strict JSON"
    advice = "Mend the JSON and send the request again."
    example = "The JSON is broken at character 12 (line 1, column 13); mend it and send the request again."


class InvalidMultipart(InvalidRequest):
    slug = "invalid-multipart"
    title = "The multipart body is malformed"
    advice = "Leave the boundaries and the heads of the parts to your client, and send all of it."
    example = "The body ends before its closing boundary; send all of it."


class InvalidSpec(InvalidRequest):
    slug = "invalid-spec"
    title = "The spec is not valid"
    advice = "Mend the spec and send the request again."
    example = "1 field of the spec is not valid; mend what errors lists and send the request again."


class InvalidCheckpoint(InvalidRequest):
    slug = "invalid-checkpoint"
    title = "The checkpoint is not valid"
    advice = "Write the file again with the safetensors library and upload the whole of it."
    example = "The file is shorter than its header says; upload the whole file."
    fault: ClassVar[str] = "not-json"  # one that the type may name, shown in the documentation

    def __init__(self, code: str, detail: str, *, pointer: str | None = None) -> None:
        where = (FieldProblem(pointer=pointer, detail=detail),) if pointer is not None else ()
        super().__init__(detail, errors=where)
        self.slug = f"{type(self).slug}:{code}"


class InvalidCalibration(InvalidCheckpoint):
    slug = "invalid-calibration"
    title = "The calibration does not fit"
    advice = "Make the Gram matrices anew, from the model that the checkpoint is of."
    example = (
        'The Gram matrix of "encoder.layer.0.output.dense" is [384, 384], but the layer has 1536 inputs, so '
        "[1536, 1536] is needed. Calibrate again, with the model that this checkpoint is of."
    )
    fault = "gram-shape"


class PartialBody(InvalidRequest):
    slug = "partial-body"
    title = "The body is a part of a file"
    advice = "Send the whole file, without Content-Range."


class DigestMismatch(InvalidRequest):
    slug = "digest-mismatch"
    title = "The bytes do not have the digest given"
    advice = "What arrived has another SHA-256 than Repr-Digest says, so it was dropped; send the file again."


class IdempotencyMismatch(InvalidRequest):
    slug = "idempotency-mismatch"
    title = "The idempotency key was used for another request"
    advice = "Give each request its own Idempotency-Key; repeat one only with the same spec and checkpoint."


class HeadersTooLarge(Refusal):
    slug = "headers-too-large"
    title = "The request's head is too large"
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    advice = "Send a shorter address and fewer or shorter headers."


class InternalError(Refusal):
    slug = "internal-error"
    title = "Something went wrong here"
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    advice = (
        "This is our fault, not yours; the service's log has the cause under this request's X-Request-ID."
    )


class Unavailable(Refusal):
    slug = "unavailable"
    title = "Not available now"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    advice = "Try again later."
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class StoreUnavailable(Unavailable):
    slug = "store-unavailable"
    title = "The job store is away"
    advice = "Redis does not answer; nothing was stored. Try again in a few seconds."


class NotReady(Unavailable):
    slug = "not-ready"
    title = "Not ready for work"
    advice = "Something that work needs is missing; see errors for each."
    example = "Missing: workers. See errors for each."


class OutOfSpace(Refusal):
    slug = "out-of-space"
    title = "The disk is full"
    status = HTTPStatus.INSUFFICIENT_STORAGE
    advice = "The service's disk has no room for this; delete jobs or checkpoints, or try again later."
