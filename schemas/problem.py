"""The problems (RFC 9457) that the service answers with or a failed job shows: one table, `ProblemKind`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from string import Formatter
from typing import Any, Self, get_args

from pydantic import BaseModel, Field

from schemas.base import PLACE, Output
from schemas.nearest import did_you_mean

TYPE_PREFIX = "urn:eckart:problem:"

# Where a field is a union, pydantic puts the chosen branch into the path; no field has these names.
UNION_TAGS = frozenset({"integer", "rule", "one method", "several methods", "known pairs", "named pairs"})


# Errors of the length of a list, and what holds the bound.
COUNTED = {"too_short": "min_length", "too_long": "max_length"}


class FieldProblem(Output):
    """One invalid field."""

    pointer: str = Field(description="JSON pointer to the field.", examples=["/rank/ratio"])
    detail: str = Field(
        description="What is wrong with the field.", examples=["Input should be less than or equal to 1"]
    )


class Problem(Output):
    """A problem document of RFC 9457: what went wrong and what to do about it."""

    type: str = Field(
        description="Stable name of the kind of problem.", examples=["urn:eckart:problem:invalid-spec"]
    )
    title: str = Field(description="The kind of problem in a few words.", examples=["The spec is not valid"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What is wrong, where, and what to do.",
        examples=["1 field of the spec is not valid. Fix the fields listed in `errors` and resend."],
    )
    errors: tuple[FieldProblem, ...] = Field(
        description="The invalid fields, if any.",
        examples=[[{"pointer": "/rank/ratio", "detail": "Input should be less than or equal to 1"}]],
    )


class ProblemKind(Enum):
    """The table: type, HTTP status, title, detail, and examples of what the detail's placeholders stand for.

    A detail that is just `{reason}` is of a kind that covers many rules: each text is where its rule is
    checked.
    """

    INVALID_HTTP = (
        "invalid-http",
        400,
        "Malformed HTTP request",
        "The request's head or its chunks break the rules of HTTP/1.1; use an ordinary client.",
    )
    UNSUPPORTED_CHECKSUM = (
        "unsupported-checksum",
        400,
        "Unsupported checksum",
        "Use one of the algorithms that Tus-Checksum-Algorithm names, or leave Upload-Checksum out.",
    )
    UNAUTHORIZED = (
        "unauthorized",
        401,
        "A key is needed",
        (
            "This service takes requests with a key that it knows: send it as `Authorization: Bearer <key>` "
            "or as `X-API-Key: <key>`. Its operator gives out keys."
        ),
    )
    CROSS_SITE = (
        "cross-site",
        403,
        "Sent by a page of another site",
        (
            "A web page of another site sent this request, by its Sec-Fetch-Site or Origin header. Only "
            "pages of this service may change anything; programs leave both headers out."
        ),
    )
    NOT_FOUND = ("not-found", 404, "Not found", "No such address; /docs lists all of them.")
    CHECKPOINT_NOT_FOUND = (
        "checkpoint-not-found",
        404,
        "Checkpoint not found",
        "No checkpoint has this id; upload its files first.",
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
    JOB_NOT_FAILED = (
        "job-not-failed",
        409,
        "The job has not failed",
        "The job is {state}; only a failed job can be resumed. Start a new job instead.",
        {"state": "canceled"},
    )
    FAILURE_STAYS = (
        "failure-stays",
        409,
        "The job would fail again",
        (
            "The job failed of its input, which stays what it is: {why} Change what this names, upload "
            "files again where they are at fault, and start a new job."
        ),
        {"why": "The file model.safetensors changed while it was read."},
    )
    UPLOAD_NOT_FOUND = (
        "upload-not-found",
        404,
        "Upload not found",
        (
            "No resumable upload has this id: it has expired, or it was deleted or refused. Begin another "
            "with POST /v1/uploads."
        ),
    )
    SHARDED_RESULT = (
        "sharded-result",
        404,
        "The result has several files",
        (
            "There is no single file. Download all files from {job}/archive, or one by one from "
            "{job}/files/; the report has their names."
        ),
        {"job": "/v1/jobs/J5b0"},
    )
    METHOD_NOT_ALLOWED = (
        "method-not-allowed",
        405,
        "Method not allowed",
        "{reason}",
        {"reason": "The Allow header lists the methods of this address."},
    )
    NOT_ACCEPTABLE = (
        "not-acceptable",
        406,
        "Not available in the requested format",
        "The report is available as application/json and as text/html; change the Accept header.",
    )
    REQUEST_TIMEOUT = (
        "request-timeout",
        408,
        "Timed out while waiting for the body",
        (
            "{reason}, so the request was ended. A resumable upload goes on from its offset; anything else "
            "must be sent again."
        ),
        {"reason": "No data arrived for 60 s"},
    )
    CONTENT_CONFLICT = (
        "content-conflict",
        409,
        "The file is already stored with other bytes",
        (
            "Other bytes are already stored as {name}; upload under another checkpoint id, or delete "
            "this checkpoint first."
        ),
        {"name": "model.safetensors"},
    )
    OFFSET_MISMATCH = (
        "offset-mismatch",
        409,
        "Another byte comes next",
        "Upload-Offset is {given}, but {offset} bytes have arrived; send the bytes that follow them.",
        {"given": 0, "offset": 33554432},
    )
    CHECKPOINT_INCOMPLETE = (
        "checkpoint-incomplete",
        409,
        "The checkpoint is incomplete",
        (
            "The checkpoint lacks {missing}. Upload what is missing; a file that needs no index can be "
            "stored under an id of its own."
        ),
        {"missing": "model-00002-of-00002.safetensors"},
    )
    CHECKPOINT_IN_USE = (
        "checkpoint-in-use",
        409,
        "The checkpoint is in use",
        "A queued or running job needs this checkpoint; cancel the job or wait for its end.",
    )
    CHECKPOINT_GONE = (
        "checkpoint-gone",
        409,
        "The checkpoint was deleted",
        "The checkpoint was deleted or replaced; upload it again, and start a new job.",
    )
    NO_RESULT = (
        "no-result",
        409,
        "The job has no result yet",
        "The job is {state}; its result exists once it has succeeded. Ask again later, or wait with ?wait=.",
        {"state": "running"},
    )
    UNREADABLE_RECORD = (
        "unreadable-record",
        501,
        "The job's record cannot be read",
        (
            "The record of this job was written by another release, or is damaged. Its files are kept. Bring "
            "the service and its workers to the release that wrote it, or delete the job."
        ),
    )
    ENDED_WITHOUT_RESULT = (
        "ended-without-result",
        410,
        "The job ended without a result",
        "The job is {state}, so there will be no result. GET {job} says why; create a new job.",
        {"state": "failed", "job": "/v1/jobs/J5b0"},
    )
    PRECONDITION_FAILED = (
        "precondition-failed",
        412,
        "The precondition does not hold",
        "{header} does not hold: {found}. Nothing was changed.",
        {"header": "If-Match", "found": "no file of this name is stored"},
    )
    TUS_VERSION = (
        "tus-version",
        412,
        "Unsupported version of tus",
        "Send a version in Tus-Resumable that Tus-Version names.",
    )
    TOO_LARGE = (
        "too-large",
        413,
        "The request is too large",
        (
            "{subject} is larger than the limit of {limit_bytes} bytes. Send less, or ask the operator "
            "to raise the limit."
        ),
        {"subject": "The body", "limit_bytes": 107374182400},
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported-media-type",
        415,
        "Unsupported media type",
        "Send {media_types}, and name it in Content-Type.",
        {"media_types": "application/json or multipart/form-data"},
    )
    ENCODED_BODY = (
        "encoded-body",
        415,
        "Unsupported content encoding",
        (
            "Send the bytes as they are, without Content-Encoding; the only Transfer-Encoding "
            "supported is chunked."
        ),
    )
    RANGE_NOT_SATISFIABLE = (
        "range-not-satisfiable",
        416,
        "The range lies outside the file",
        "The Content-Range header gives the file's size; ask for a range within it.",
    )
    FOREIGN_HOST = (
        "foreign-host",
        421,
        "Not a host of this service",
        (
            "The service does not answer under the host that this request names. Use the address on which "
            "it listens, or have its operator add the host to ECKART_ALLOWED_HOSTS."
        ),
    )
    INVALID_REQUEST = (
        "invalid-request",
        422,
        "The request is not valid",
        "{reason}",
        {"reason": ("1 field of the request is not valid. Fix the fields listed in `errors` and resend.")},
    )
    INVALID_JSON = (
        "invalid-json",
        422,
        "Invalid JSON",
        "{reason}",
        {"reason": "Invalid JSON at character 12 (line 1, column 13); correct it and resend."},
    )
    INVALID_MULTIPART = (
        "invalid-multipart",
        422,
        "Malformed multipart body",
        "{reason}",
        {"reason": "The body ends before its closing boundary; send all of it."},
    )
    INVALID_SPEC = (
        "invalid-spec",
        422,
        "The spec is not valid",
        "{reason}",
        {"reason": "1 field of the spec is not valid. Fix the fields listed in `errors` and resend."},
    )
    INVALID_CHECKPOINT = (
        "invalid-checkpoint",
        422,
        "The checkpoint is not valid",
        "{reason}",
        {"reason": "The file is shorter than its header says; upload the whole file."},
    )
    INVALID_CALIBRATION = (
        "invalid-calibration",
        422,
        "The calibration does not fit",
        "{reason}",
        {
            "reason": (
                'The Gram matrix of "encoder.layer.0.output.dense" is [384, 384], but the layer has 1536 '
                "inputs, so it must be [1536, 1536]. Calibrate again, with the model of this checkpoint."
            )
        },
    )
    INVALID_BASE = (
        "invalid-base",
        422,
        "The base does not fit",
        "{reason}",
        {
            "reason": (
                "The base and the checkpoint have other names: 1 tensor is only in the checkpoint "
                '("classifier.weight"). Give the model that this one was fine-tuned from, saved by the same '
                "class."
            )
        },
    )
    INVALID_WEBHOOK = (
        "invalid-webhook",
        422,
        "The webhook is not allowed",
        "{reason}",
        {
            "reason": (
                "Webhooks may not go to https://intranet.example:443. Use a host that the operator allows, "
                "or have it added to ECKART_WEBHOOK_HOSTS; https and its usual port are meant unless an "
                "entry says otherwise."
            )
        },
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
        "The SHA-256 of the body is {actual}, not {expected} as its digest header says; send it again.",
        {"actual": "9f86d081…0f00a08", "expected": "60303ae2…e0a4752"},
    )
    IDEMPOTENCY_MISMATCH = (
        "idempotency-mismatch",
        422,
        "The idempotency key was used for another request",
        "This Idempotency-Key was used for another request; use a new key.",
    )
    UPLOAD_LOCKED = (
        "upload-locked",
        423,
        "The upload is being written",
        (
            "Another request sends bytes of this upload, or its connection broke without the service having "
            "noticed yet. Ask for the offset again in a few seconds."
        ),
    )
    BUSY = (
        "busy",
        429,
        "Too much at a time",
        "{reason} Try again in a few seconds.",
        {"reason": "2 plans are being made, and 16 more requests wait for theirs."},
    )
    OVER_QUOTA = (
        "over-quota",
        429,
        "Over a quota",
        "The request was refused: {found}. To go on, {advice}, and send it again.",
        {"found": "8 uploads are under way already", "advice": "wait for one to end"},
    )
    HEADERS_TOO_LARGE = (
        "headers-too-large",
        431,
        "The request's head is too large",
        "Send a shorter address and fewer or shorter headers.",
    )
    CHECKSUM_MISMATCH = (
        "checksum-mismatch",
        460,
        "The checksum does not match",
        "The bytes do not have the digest that Upload-Checksum gives, and were dropped; send them again.",
    )
    INTERNAL_ERROR = (
        "internal-error",
        500,
        "Internal error",
        "The fault is in the service; its log has the cause under this request's X-Request-ID.",
    )
    RESULT_DAMAGED = (
        "result-damaged",
        500,
        "A file of the result is damaged",
        (
            "The file {file} of this result has {found_bytes} bytes on the disk, but was written with "
            "{recorded_bytes}. Run the job again, or have its operator restore the file from a backup."
        ),
        {"file": "model.safetensors", "found_bytes": 1000, "recorded_bytes": 46240},
    )
    STORE_UNAVAILABLE = (
        "store-unavailable",
        503,
        "Redis is unavailable",
        "Redis cannot be reached; try again in a few seconds.",
    )
    FILES_LOCKED = (
        "files-locked",
        503,
        "The files are locked",
        (
            "Another process of the service keeps these files locked; try again later. If it stays so, look "
            "for a worker that is stopped or waits for its disk."
        ),
    )
    NOT_READY = (
        "not-ready",
        503,
        "The service is not ready",
        "Missing: {missing}. `errors` says more about each.",
        {"missing": "workers"},
    )
    OUT_OF_SPACE = (
        "out-of-space",
        507,
        "The disk is full",
        "There is not enough disk space{found}. Delete jobs or checkpoints, or try again later.",
        {"found": ": 90000000 bytes are needed, and 71000000 are free"},
    )

    OUT_OF_MEMORY = (
        "out-of-memory",
        507,
        "No worker has enough memory",
        (
            "{layer} needs {needed_bytes} bytes of memory or more, and no worker may use more than "
            "{memory_bytes}. Exclude it, or give a worker more memory."
        ),
        {"layer": '"model.embed_tokens"', "needed_bytes": 25769803776, "memory_bytes": 8589934592},
    )

    # Only the `error` of a failed job shows these: no response carries these kinds.
    UNUSABLE_CHECKPOINT = (
        "unusable-checkpoint",
        422,
        "The checkpoint cannot be read",
        "{reason} Delete the checkpoint, upload it again and start a new job.",
        {"reason": "The file model.safetensors changed while it was read."},
    )
    CHECKPOINT_CHANGED = (
        "checkpoint-changed",
        409,
        "The input is not what was stored",
        (
            "{reason} Files in the data directory must never be written to. Delete the checkpoint, upload it "
            "again and start a new job."
        ),
        {"reason": "The file model.safetensors was deleted."},
    )
    WORKER_TROUBLE = (
        "worker-trouble",
        500,
        "The worker could not finish the job",
        (
            "All attempts failed, the last one with {error}. See the worker's log, fix the cause "
            "(memory or disk, for example) and resume the job."
        ),
        {"error": "MemoryError"},
    )
    LAYER_HUNG = (
        "layer-hung",
        500,
        "A layer did not end",
        (
            "All attempts failed. In the last one, layer {layer} took longer than {limit_s} s, which no such "
            "layer should. See the worker's log for where it stood, and resume the job; if the machine is "
            "just slow, raise ECKART_LAYER_LIMIT_S first."
        ),
        {"layer": "encoder.layer.3.output.dense", "limit_s": 1800},
    )
    WORKER_LOST = (
        "worker-lost",
        500,
        "The worker was lost",
        (
            "The worker died or its lease expired, in {attempts} attempts that got no further. It may lack "
            "memory: give it more, and resume the job."
        ),
        {"attempts": 3},
    )

    status: int
    title: str
    detail: str
    examples: Mapping[str, object]

    def __new__(
        cls, kind: str, status: int, title: str, detail: str, examples: Mapping[str, object] | None = None
    ) -> Self:
        """Make a member whose value is the last part of its type: `ProblemKind("too-large")` finds it."""
        member = object.__new__(cls)
        member._value_ = kind
        member.status, member.title, member.detail = status, title, detail
        member.examples = examples or {}
        return member

    @property
    def placeholders(self) -> frozenset[str]:
        """The names in the detail that `text` fills in."""
        return frozenset(name for _, name, _, _ in Formatter().parse(self.detail) if name)

    def text(self, **values: object) -> str:
        """Fill in the detail, which needs exactly these values."""
        assert values.keys() == self.placeholders, f"{self.value} needs {sorted(self.placeholders)}"
        return self.detail.format(**values)

    def problem(
        self, detail: str, *, fault: str | None = None, errors: tuple[FieldProblem, ...] = ()
    ) -> Problem:
        """Build the document; `fault`, where a kind distinguishes several, ends the type."""
        kind = f"{self.value}:{fault}" if fault else self.value
        return Problem(
            type=TYPE_PREFIX + kind, title=self.title, status=self.status, detail=detail, errors=errors
        )


def field_problems(
    errors: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None
) -> tuple[FieldProblem, ...]:
    """Turn pydantic's errors into pointers and messages, without the invalid values.

    With the model that was checked, an unknown field is answered with the one that was probably meant.
    """
    found = list(errors)
    told = [e for e in found if not (e["type"] == "too_short" and any(_is_below(o["loc"], e) for o in found))]
    return tuple(FieldProblem(pointer=_pointer(_place(e)), detail=_sentence(e, model)) for e in told)


def _is_below(path: Sequence[int | str], error: Mapping[str, Any]) -> bool:
    """Whether an error is of an item in a list that another error says has too few: it counts valid ones."""
    return len(path) > len(error["loc"]) and path[: len(error["loc"])] == error["loc"]


def _place(error: Mapping[str, Any]) -> Sequence[int | str]:
    beside: Sequence[int | str] | None = error.get("ctx", {}).get(PLACE)
    return error["loc"] if beside is None else (*error["loc"][:-1], *beside)


def _sentence(error: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    """Replace messages of pydantic that speak of Python instead of JSON."""
    if error["type"] == "extra_forbidden":
        known = set() if model is None else fields_at(model, error["loc"][:-1])
        hint = did_you_mean(str(error["loc"][-1]), known) if known else ""
        return f"unknown field{hint or '; is it misspelled or in the wrong place?'}"
    if "integer" in error["loc"] and error["type"].startswith("int_"):
        return 'give a whole number such as 64, or a rule such as {"ratio": 0.5}'
    if error["type"] == "tuple_type":
        return "Input should be a list"
    if error["type"] in COUNTED:
        bound = error["ctx"][COUNTED[error["type"]]]
        most = "at least" if error["type"] == "too_short" else "at most"
        return f"give {most} {bound} item{'' if bound == 1 else 's'}, not {error['ctx']['actual_length']}"
    return own_words(str(error["msg"]))


def own_words(message: str) -> str:
    """Return the message of an error of pydantic without what pydantic puts before ours."""
    return message.removeprefix("Value error, ")


def fields_at(model: type[BaseModel], path: Iterable[int | str]) -> set[str]:
    """Return the names of the fields that a document of this model may have at a path of an error."""
    models = {model}
    for step in path:
        if isinstance(step, int) or step in UNION_TAGS:
            continue
        models = {
            below
            for each in models
            if step in each.model_fields
            for below in _models_in(each.model_fields[step].annotation)
        }
    return {name for each in models for name in each.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _pointer(path: Iterable[int | str]) -> str:
    steps = (str(step) for step in path if step not in UNION_TAGS)
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


class SpecError(ValueError):
    """A checkpoint cannot meet the spec; `pointer` is a field of the spec, `detail` says what to change."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(pointer, detail)
        self.pointer = pointer
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
