"""What the OpenAPI document says that FastAPI cannot find out: problems, headers, and streamed bodies."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from schemas.job import JobRequest
from schemas.problem import Problem, ProblemKind
from schemas.webhook import URL_EXAMPLE
from service.access.authentication import OPEN_PATHS
from service.access.browsers import PROBES, SAFE_METHODS, SecurityHeaders
from service.errors import HEADERS as PROBLEM_HEADERS

REFERENCE = "#/components/schemas/{model}"
# INVALID_REQUEST: a query parameter that the address does not have.
ANY_OPERATION = (ProblemKind.INVALID_HTTP, ProblemKind.INVALID_REQUEST, ProblemKind.INTERNAL_ERROR)
API = "/v1/"

Responses = dict[int | str, dict[str, Any]]

# A fault that ends the type, for the kinds that have one.
FAULT_EXAMPLES: Mapping[ProblemKind, str] = {
    ProblemKind.INVALID_CHECKPOINT: "not-json",
    ProblemKind.INVALID_CALIBRATION: "gram-shape",
    ProblemKind.INVALID_BASE: "other-names",
}


def problem_responses(*kinds: ProblemKind) -> Responses:
    """Describe the problems of an operation, and those that any operation may meet, each with an example."""
    by_status: defaultdict[int, list[ProblemKind]] = defaultdict(list)
    for kind in dict.fromkeys((*kinds, *ANY_OPERATION)):
        by_status[kind.status].append(kind)
    return {status: _response(found) for status, found in sorted(by_status.items())}


def _response(kinds: list[ProblemKind]) -> dict[str, Any]:
    headers = {name for kind in kinds for name in PROBLEM_HEADERS.get(kind, {})}
    described: dict[str, Any] = {
        "description": "; ".join(kind.title for kind in kinds) + ".",
        "content": {
            "application/problem+json": {
                "schema": {"$ref": REFERENCE.format(model="Problem")},
                "examples": {kind.value: {"summary": kind.title, "value": _example(kind)} for kind in kinds},
            }
        },
    }
    if headers:
        described["headers"] = {name: HEADERS[name] for name in sorted(headers)}
    return described


def _example(kind: ProblemKind) -> dict[str, Any]:
    example = kind.problem(kind.text(**kind.examples), fault=FAULT_EXAMPLES.get(kind))
    return example.model_dump(mode="json")


def _header(description: str, example: object, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}, "example": example}


HEADERS: dict[str, dict[str, Any]] = {
    "Accept-Encoding": _header("The supported content coding.", "identity"),
    "Content-Range": _header("Which bytes these are.", "bytes 0-1023/90864192"),
    "ETag": _header("Identifies this representation; send it back as If-None-Match.", '"9f86d081884c7d65"'),
    "Location": _header("The address of what was created.", "/v1/jobs/J5b0"),
    "Repr-Digest": _header(
        "The SHA-256 of the whole file, RFC 9530.", "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"
    ),
    "Tus-Checksum-Algorithm": _header("The algorithms of Upload-Checksum.", "sha256,sha1"),
    "Tus-Extension": _header("The supported extensions of tus.", "creation,checksum"),
    "Tus-Max-Size": _header("The largest file.", 107374182400, "integer"),
    "Tus-Resumable": _header("The version of tus of this answer.", "1.0.0"),
    "Tus-Version": _header("The supported versions of tus.", "1.0.0"),
    "Upload-Expires": _header(
        "When the upload is removed, unless more of it arrives.", "Thu, 26 Nov 2026 21:19:54 GMT"
    ),
    "Upload-Length": _header("The size of the whole file.", 90868376, "integer"),
    "Upload-Metadata": _header("What the client said of the file.", "checkpoint bXktbW9kZWw="),
    "Upload-Offset": _header("How many bytes have arrived.", 33554432, "integer"),
    "Vary": _header("The request headers that the answer depends on.", "Accept"),
    "WWW-Authenticate": _header("How to send a key.", 'Bearer realm="eckart"'),
    "Retry-After": _header("Seconds to wait before asking again.", 2, "integer"),
}


def described(*headers: str, description: str | None = None) -> dict[str, Any]:
    """Describe a successful answer: its headers, and what it means."""
    answer: dict[str, Any] = {"headers": {name: HEADERS[name] for name in headers}}
    return answer | ({"description": description} if description else {})


RANGE_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "Range",
            "in": "header",
            "required": False,
            "description": "The range of bytes to send, RFC 9110.",
            "schema": {"type": "string"},
            "example": "bytes=0-1023",
        }
    ]
}
BINARY = {"type": "string", "format": "binary"}
SPEC_EXAMPLE = {"method": "svd", "rank": {"ratio": 0.5}}
RAW_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file's bytes.",
        "content": {"application/octet-stream": {"schema": BINARY}},
    }
}

OFFSET_BODY = {
    "requestBody": {
        "required": False,
        "description": "The bytes that follow those which have arrived.",
        "content": {"application/offset+octet-stream": {"schema": BINARY}},
    }
}


def _multipart(name: str, description: str, *, spec: bool, webhook: bool = False) -> dict[str, Any]:
    properties: dict[str, Any] = {
        name: {
            "type": "array",
            "items": BINARY,
            "description": description,
            "examples": [["model.safetensors"]],
        }
    }
    if spec:
        properties["spec"] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": REFERENCE.format(model="CompressionSpec")},
            "description": "The compression spec, as JSON.",
            "examples": [json.dumps(SPEC_EXAMPLE)],
        }
    required = list(properties)
    if webhook:
        properties["webhook"] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": REFERENCE.format(model="WebhookRequest")},
            "description": "Where to tell that the job has ended, as JSON.",
            "examples": [json.dumps({"url": URL_EXAMPLE})],
        }
    return {"schema": {"type": "object", "properties": properties, "required": required}}


JOB_REQUEST = {
    "schema": {"$ref": REFERENCE.format(model="JobRequest")},
    "example": {"checkpoint": "my-model", "spec": SPEC_EXAMPLE},
}


def _files_multipart(*, spec: bool) -> dict[str, Any]:
    return _multipart(
        "checkpoint",
        "The safetensors file, or the shards and their index, and companions such as config.json; each part "
        "with its file name.",
        spec=spec,
        webhook=spec,
    )


FILES_BODY = {
    "requestBody": {"required": True, "content": {"multipart/form-data": _files_multipart(spec=False)}}
}
JOB_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": JOB_REQUEST, "multipart/form-data": _files_multipart(spec=True)},
    }
}
PLAN_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": JOB_REQUEST,
            "multipart/form-data": _multipart(
                "header",
                "The first 8 + N bytes of a safetensors file, N being the length of its header, or the whole "
                "index, or config.json; each part with the file's own name.",
                spec=True,
            ),
        },
    }
}


# Both carry the same key, and neither is needed where the service has none.
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class DocumentedApp(FastAPI):
    """Adds the models that only streamed bodies and problems refer to, and removes FastAPI's own 422."""

    # Whether each request but those of `OPEN_PATHS` must bring a key.
    needs_key = False

    def build_middleware_stack(self) -> ASGIApp:
        """Put the security headers around all, also around what answers an unexpected exception."""
        return SecurityHeaders(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """Make the document at the first call."""
        if self.openapi_schema is None:
            self._complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete(self, document: dict[str, Any]) -> None:
        models: list[tuple[Any, Any]] = [(JobRequest, "validation"), (Problem, "validation")]
        _, added = models_json_schema(models, ref_template=REFERENCE)
        schemas = document["components"]["schemas"]
        schemas |= added["$defs"]
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for method, path, operation in _operations(document):
            if path not in OPEN_PATHS:
                operation["security"] = [*([] if self.needs_key else [{}]), {"bearer": []}, {"header": []}]
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            for kind in _refused_before_routes(method, path):
                operation["responses"][str(kind.status)] = _response([kind])
            if not path.startswith(API):
                operation["responses"].pop("422", None)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out `null`, by which FastAPI means that a parameter is absent: no header or query can say it."""
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return kinds[0] | {name: value for name, value in schema.items() if name != "anyOf"}


def _refused_before_routes(method: str, path: str) -> Iterator[ProblemKind]:
    """Yield what the middleware answers with."""
    if method.upper() not in SAFE_METHODS:
        yield ProblemKind.CROSS_SITE
    if path not in PROBES:
        yield ProblemKind.FOREIGN_HOST
    if path not in OPEN_PATHS:
        yield ProblemKind.UNAUTHORIZED
