"""What multipart bodies are made of: checkpoint files, and for a job its spec."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from schemas.format.errors import CheckpointError
from schemas.format.header import Header
from schemas.format.header_stream import HeaderParser
from schemas.format.index import FILE_NAME, INDEX_ENDING, ShardIndex, check_shards
from schemas.spec import CompressionSpec
from service import errors
from service.dependencies import Services
from service.json_body import parse_model
from service.multipart import CappedText, MultipartSink, Part, PartHead
from service.uploads import Space
from state.checkpoints import CheckpointStore, StoredCheckpoint
from state.errors import CheckpointNotFound
from state.upload import IndexParser, StoredFile, Upload

Content = Header | ShardIndex


def check_fit(sent: Mapping[str, Content], stored: StoredCheckpoint | None) -> None:
    """Refuse what the store would refuse once the first files are already published."""
    headers = {name: content for name, content in sent.items() if isinstance(content, Header)}
    index = next((content for content in sent.values() if isinstance(content, ShardIndex)), None)
    if stored is not None:
        check_one_index(sorted({*sent, *(file.name for file in stored.files)}))
        headers = {**stored.headers, **headers}
        index = index or stored.index
    if index is not None:
        _check_shards(index, headers)


def check_one_index(names: list[str]) -> None:
    """Refuse a second index."""
    found = [name for name in names if name.endswith(INDEX_ENDING)]
    if len(found) > 1:
        raise CheckpointError(
            "second-index", f"{found[0]} and {found[1]} are both indexes. Use one index per checkpoint."
        )


def _check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    named = set(index.shards)
    if extra := sorted(headers.keys() - named):
        raise CheckpointError(
            "shard-extra",
            f"The index does not name the file {extra[0]}. Name it there, or use another checkpoint id.",
            "/weight_map",
        )
    if named == headers.keys():
        check_shards(index, headers)


NAME_ADVICE = (
    "A file name starts with a letter or digit, goes on with those and . _ -, has at most 128 characters "
    "and ends in .safetensors or .safetensors.index.json."
)


def check_file_name(name: str) -> str:
    """Refuse a name that a stored file cannot have."""
    if not FILE_NAME.fullmatch(name):
        raise errors.InvalidRequest(NAME_ADVICE)
    return name


def new_file_name(head: PartHead, known: Collection[str]) -> str:
    """Check the file name of a part against the rules and the files that the form has sent before."""
    if head.filename is None:
        raise errors.InvalidMultipart(f"The part `{head.name}` must be a file; give it a file name.")
    name = check_file_name(head.filename)
    if name in known:
        raise errors.InvalidMultipart(f"The file {name} came twice; send it once.")
    check_one_index([*known, name])
    return name


class SpecField:
    """The part `spec` of a form: read once, strictly, within a limit."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._spec: CompressionSpec | None = None

    def part(self) -> Part:
        return CappedText(limit_bytes=self._limit_bytes, keep=self._keep)

    def required(self) -> CompressionSpec:
        if self._spec is None:
            raise errors.InvalidMultipart(
                "The part `spec` is missing; send what is to be done in it, as JSON."
            )
        return self._spec

    def _keep(self, text: bytes) -> None:
        if self._spec is not None:
            raise errors.InvalidMultipart("The part `spec` came twice; send it once.")
        self._spec = parse_model(CompressionSpec, text, kind=errors.InvalidSpec, subject="spec")


@dataclass(frozen=True, slots=True)
class FormContent:
    """What a whole form held."""

    checkpoint_id: str
    files: tuple[StoredFile, ...]
    spec: CompressionSpec | None


class FilePart:
    """A checkpoint file on its way to the store: whole at its part's end, seen at the form's."""

    def __init__(self, upload: Upload, *, space: Space) -> None:
        self.content: Content | None = None
        self._upload = upload
        self._space = space
        self._scan = IndexParser() if upload.name.endswith(INDEX_ENDING) else HeaderParser()

    def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes, as long as there is room."""
        self._space.require(0)
        self._upload.write(block)
        self._scan.feed(block)

    def end(self) -> None:
        """Check that the file is whole."""
        self.content = self._scan.finish(self._upload.size_bytes)

    def publish(self) -> StoredFile:
        """Give the file its name."""
        return self._upload.commit(None)

    def abort(self) -> None:
        """Leave nothing, unless it is published."""
        self._upload.abort()


class CheckpointForm:
    """Stores the files of a form under one id; `with_spec`: the form is a whole job, and the id its own."""

    def __init__(
        self,
        store: CheckpointStore,
        checkpoint_id: str,
        *,
        space: Space,
        limit_bytes: int,
        spec_limit_bytes: int,
        with_spec: bool,
    ) -> None:
        self._store = store
        self._id = checkpoint_id
        self._space = space
        self._limit_bytes = limit_bytes
        self._with_spec = with_spec
        self._files: dict[str, FilePart] = {}
        self._spec = SpecField(limit_bytes=spec_limit_bytes)

    def part(self, head: PartHead) -> Part:
        """Begin a file or the spec."""
        if head.name == "checkpoint":
            return self._file(head)
        if head.name == "spec" and self._with_spec:
            return self._spec.part()
        names = "`checkpoint` and `spec`" if self._with_spec else "`checkpoint`"
        raise errors.InvalidMultipart(f"A part has a name that is not known here; the parts are {names}.")

    def commit(self) -> FormContent:
        """Publish what came, provided that nothing is missing and all of it fits.

        What can still stop it halfway is the disk, or another client that stores other files under the id
        right now. Then what is published stays: somebody may have been told of it.
        """
        if not self._files:
            raise errors.InvalidMultipart(
                "The part `checkpoint` is missing; send the safetensors file in it."
            )
        spec = self._spec.required() if self._with_spec else None
        stored = self._stored()
        check_fit({name: file.content for name, file in self._files.items() if file.content}, stored)
        # A file that is there is repeated or refused, neither of which changes anything, so these come first.
        known = {file.name for file in stored.files} if stored else set()
        order = sorted(self._files, key=lambda name: name not in known)
        return FormContent(self._id, tuple(self._files[name].publish() for name in order), spec)

    def abort(self) -> None:
        """Remove what is not published, and all of what is a job's own."""
        for file in self._files.values():
            file.abort()
        if self._with_spec:
            with contextlib.suppress(CheckpointNotFound):
                self._store.delete(self._id)

    def _stored(self) -> StoredCheckpoint | None:
        try:
            return self._store.get(self._id)
        except CheckpointNotFound:
            return None

    def _file(self, head: PartHead) -> Part:
        name = new_file_name(head, self._files)
        upload = self._store.receive(self._id, name, content_bytes=None, limit_bytes=self._limit_bytes)
        self._files[name] = FilePart(upload, space=self._space)
        return self._files[name]


class RawFile:
    """One file that is a whole body."""

    def __init__(self, upload: Upload, *, space: Space, expected_sha256: bytes | None) -> None:
        self._upload = upload
        self._space = space
        self._expected_sha256 = expected_sha256

    def write(self, block: bytes) -> None:
        """Take the next bytes, as long as there is room."""
        self._space.require(0)
        self._upload.write(block)

    def commit(self) -> StoredFile:
        """Publish the file."""
        return self._upload.commit(self._expected_sha256)

    def abort(self) -> None:
        """Leave nothing."""
        self._upload.abort()


def begin_file(
    services: Services,
    checkpoint_id: str,
    filename: str,
    *,
    content_bytes: int | None,
    expected: bytes | None,
) -> RawFile:
    """Begin with one file that is the whole body."""
    upload = services.checkpoints.receive(
        checkpoint_id,
        check_file_name(filename),
        content_bytes=content_bytes,
        limit_bytes=services.settings.max_upload_bytes,
    )
    return RawFile(upload, space=services.space, expected_sha256=expected)


def begin_form(
    services: Services, checkpoint_id: str, boundary: bytes, *, with_spec: bool
) -> MultipartSink[FormContent]:
    """Begin with a form of files, and for a job its spec."""
    settings = services.settings
    form = CheckpointForm(
        services.checkpoints,
        checkpoint_id,
        space=services.space,
        limit_bytes=settings.max_upload_bytes,
        spec_limit_bytes=settings.max_spec_bytes,
        with_spec=with_spec,
    )
    return MultipartSink(form, boundary=boundary, max_parts=settings.max_files + with_spec)
