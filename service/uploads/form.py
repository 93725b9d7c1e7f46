"""Multipart bodies of checkpoint files: an upload of several files, or a whole job with its spec.

The parts are streamed to the disk as they arrive. The files become visible together, at the end of the body,
once they are known to be consistent with each other and with what is stored.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pydantic import BaseModel

from schemas.checkpoint import FileInfo
from schemas.format.errors import quoted
from schemas.format.names import is_file_name, is_index, legal_name, why_not
from schemas.problem import ProblemKind
from schemas.spec import CompressionSpec
from schemas.webhook import WebhookRequest
from service.dependencies import Services
from service.errors import ProblemError
from service.json_body import parse_model
from service.uploads.multipart import MultipartSink, Part, PartHead, TextPart
from service.webhooks.check import check_webhook
from state.checkpoints.consistency import check_companions, check_one_index, check_together
from state.checkpoints.store import StoredCheckpoint
from state.errors import CheckpointNotFound
from state.uploads.upload import StoredFile, Upload

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class UploadContent:
    """What a body held; `spec` is None where it is no job."""

    checkpoint_id: str
    files: tuple[StoredFile, ...]
    spec: CompressionSpec | None
    webhook: WebhookRequest | None
    warnings: tuple[str, ...]


class JsonPart(Generic[M]):
    """A part that holds one JSON document: `content` is what it held, None before it came."""

    def __init__(
        self,
        name: str,
        model: type[M],
        *,
        kind: ProblemKind,
        limit_bytes: int,
        check: Callable[[M], object] = lambda _content: None,
    ) -> None:
        """Parse it as `model`, or refuse it with a problem of this kind; `check` may refuse it too."""
        self._name = name
        self._model = model
        self._kind = kind
        self._limit_bytes = limit_bytes
        self._check = check
        self.content: M | None = None

    def part(self) -> Part:
        return TextPart(subject=f"The {self._name}", limit_bytes=self._limit_bytes, receive=self._parse)

    def _parse(self, text: bytes) -> None:
        if self.content is not None:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART, f"The part `{self._name}` came twice; send it once."
            )
        self.content = parse_model(self._model, text, kind=self._kind, subject=self._name)
        self._check(self.content)


def spec_part(*, limit_bytes: int) -> JsonPart[CompressionSpec]:
    return JsonPart("spec", CompressionSpec, kind=ProblemKind.INVALID_SPEC, limit_bytes=limit_bytes)


def required_spec(part: JsonPart[CompressionSpec]) -> CompressionSpec:
    """Return the spec, or refuse a body without one."""
    if part.content is None:
        raise ProblemError(
            ProblemKind.INVALID_MULTIPART,
            "The part `spec` is missing; send the compression spec in it, as JSON.",
        )
    return part.content


class CheckpointParts:
    """Stores the files of a multipart body under one id.

    `with_spec`: the body is a whole job, and the id is its own, so that nothing else is stored under it.
    """

    def __init__(self, services: Services, checkpoint_id: str, *, with_spec: bool) -> None:
        self._store = services.checkpoints
        self._id = checkpoint_id
        self._limit_bytes = services.settings.max_upload_bytes
        self._with_spec = with_spec
        self._names = FileNames()
        self._uploads: dict[str, Upload] = {}
        limit_bytes = services.settings.max_spec_bytes
        self._spec = spec_part(limit_bytes=limit_bytes)
        self._webhook = JsonPart(
            "webhook",
            WebhookRequest,
            kind=ProblemKind.INVALID_WEBHOOK,
            limit_bytes=limit_bytes,
            check=partial(check_webhook, services, pointer="/url"),
        )

    def part(self, head: PartHead) -> Part:
        if head.name == "checkpoint":
            return self._begin_file(head)
        if head.name == "spec" and self._with_spec:
            return self._spec.part()
        if head.name == "webhook" and self._with_spec:
            return self._webhook.part()
        names = "`checkpoint`, `spec` and `webhook`" if self._with_spec else "`checkpoint`"
        raise ProblemError(
            ProblemKind.INVALID_MULTIPART, f"A part has an unknown name; the parts are {names}."
        )

    def commit(self) -> UploadContent:
        """Publish the files, if none is missing and all are consistent.

        A full disk, or another client that stores other files under the id at the same time, can still stop
        it halfway. Then the files already published stay, since somebody may have seen them.
        """
        if not self._uploads:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART,
                "The part `checkpoint` is missing; send the safetensors file in it.",
            )
        spec = required_spec(self._spec) if self._with_spec else None
        stored = self._stored()
        check_together({name: upload.finish() for name, upload in self._uploads.items()}, stored)
        sent = {name: upload.info for name, upload in self._uploads.items()}
        known = {file.name: file for file in stored.files} if stored else {}
        self._check_headers(known)
        check_companions((known | sent).values())
        # A file that is stored already is either the same or refused; neither changes anything, so such
        # files come first.
        order = sorted(self._uploads, key=lambda name: name not in known)
        files = tuple(self._uploads[name].commit() for name in order)
        return UploadContent(self._id, files, spec, self._webhook.content, self._names.warnings)

    def abort(self) -> None:
        """Remove the files that are not published; those of a job's own request are removed in any case."""
        for upload in self._uploads.values():
            upload.abort()
        if self._with_spec:
            with contextlib.suppress(CheckpointNotFound):
                self._store.delete(self._id)

    def _stored(self) -> StoredCheckpoint | None:
        try:
            return self._store.get(self._id)
        except CheckpointNotFound:
            return None

    def _begin_file(self, head: PartHead) -> Part:
        name = self._names.add(head)
        # The headers that have arrived so far are refused together, before the next file is taken.
        self._check_headers({})
        upload = self._store.receive(self._id, name, content_bytes=None, limit_bytes=self._limit_bytes)
        self._uploads[name] = upload
        return upload

    def _check_headers(self, stored: Mapping[str, FileInfo]) -> None:
        sent = [upload.header.size for upload in self._uploads.values() if upload.header is not None]
        others = {name: info for name, info in stored.items() if name not in self._uploads}
        self._store.check_header_sizes(self._id, others, sent)


def begin_file(
    services: Services,
    checkpoint_id: str,
    filename: str,
    *,
    content_bytes: int | None,
    expected_sha256: bytes | None,
) -> Upload:
    """Begin an upload whose whole body is one file."""
    return services.checkpoints.receive(
        checkpoint_id,
        check_file_name(filename),
        content_bytes=content_bytes,
        limit_bytes=services.settings.max_upload_bytes,
        expected_sha256=expected_sha256,
    )


def begin_multipart_upload(
    services: Services, checkpoint_id: str, boundary: bytes, *, with_spec: bool
) -> MultipartSink[UploadContent]:
    """Begin an upload of several files, or of a job's files and its spec."""
    parts = CheckpointParts(services, checkpoint_id, with_spec=with_spec)
    return MultipartSink(parts, boundary=boundary, max_parts=services.settings.max_files + 2 * with_spec)


def check_file_name(name: str) -> str:
    """Refuse an illegal name in an address, which the client would have to know later."""
    if not is_file_name(name):
        raise ProblemError(ProblemKind.INVALID_REQUEST, _why_not(name))
    return name


def _why_not(name: str) -> str:
    legal = legal_name(name)
    if legal is None:
        return why_not(name)
    return (
        f"{quoted(name)} cannot be the name of a stored file: it has at most 128 letters, digits, dots, "
        f"underscores and hyphens, and a lower-case ending. Send this file as {legal}, for example."
    )


class FileNames:
    """The names of the files in one body, made legal where they are not; no two files get one name."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def add(self, head: PartHead) -> str:
        """Return the name of the file in a part that begins."""
        if head.filename is None:
            raise ProblemError(
                ProblemKind.INVALID_MULTIPART, f"The part `{head.name}` must be a file; give it a file name."
            )
        name = legal_name(head.filename)
        if name is None:
            raise ProblemError(ProblemKind.INVALID_REQUEST, why_not(head.filename))
        if name in self._given:
            raise ProblemError(ProblemKind.INVALID_MULTIPART, self._clash(name, head.filename))
        if is_index(name):
            check_one_index([*self._given, name])
        self._given[name] = head.filename
        return name

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say which names were changed."""
        changed = {name: given for name, given in self._given.items() if name != given}
        return tuple(f"The file {quoted(given)} is stored as {name}." for name, given in changed.items())

    def _clash(self, name: str, given: str) -> str:
        other = self._given[name]
        if other == given:
            return f"The file {quoted(name)} came twice; send it once."
        both = f"The files {quoted(other)} and {quoted(given)} would both be stored as {name}"
        return f"{both}; rename one of them."
