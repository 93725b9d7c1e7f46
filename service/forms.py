"""What multipart bodies are made of: checkpoint files, and for a job its spec."""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.checkpoint import FILE_NAME
from schemas.compression import CompressionSpec
from service import errors
from service.multipart import CappedText, Part, PartHead
from service.strictjson import parse_model
from service.uploads import Space
from state.checkpoints import CheckpointStore
from state.uploads import StoredFile, Upload

NAME_ADVICE = (
    "A file name starts with a letter or digit, goes on with those and . _ -, has at most 128 characters "
    "and ends in .safetensors or .safetensors.index.json."
)


def check_file_name(name: str) -> str:
    """Refuse a name that a stored file cannot have."""
    if not FILE_NAME.fullmatch(name):
        raise errors.InvalidRequest(NAME_ADVICE)
    return name


@dataclass(frozen=True, slots=True)
class FormContent:
    """What a whole form held."""

    checkpoint_id: str
    files: tuple[StoredFile, ...]
    spec: CompressionSpec | None


class FilePart:
    """A checkpoint file on its way to the store."""

    def __init__(self, upload: Upload, *, space: Space, keep: Callable[[StoredFile], None]) -> None:
        self._upload = upload
        self._space = space
        self._keep = keep

    def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes, as long as there is room."""
        self._space.require(0)
        self._upload.write(block)

    def end(self) -> None:
        """Publish the file."""
        self._keep(self._upload.commit(None))

    def abort(self) -> None:
        """Leave nothing; harmless after the end."""
        self._upload.abort()


class CheckpointForm:
    """Stores the files of a form under one id; `with_spec`: the form is a whole job."""

    def __init__(
        self,
        store: CheckpointStore,
        checkpoint_id: str,
        *,
        withdraw: Callable[[list[str]], None],
        space: Space,
        limit_bytes: int,
        spec_limit_bytes: int,
        with_spec: bool,
    ) -> None:
        self._store = store
        self._id = checkpoint_id
        self._withdraw = withdraw
        self._space = space
        self._limit_bytes = limit_bytes
        self._spec_limit_bytes = spec_limit_bytes
        self._with_spec = with_spec
        self._files: list[StoredFile] = []
        self._open: FilePart | None = None
        self._spec: CompressionSpec | None = None

    def part(self, head: PartHead) -> Part:
        """Begin a file or the spec."""
        if head.name == "checkpoint":
            return self._file(head.filename)
        if head.name == "spec" and self._with_spec:
            return CappedText(limit_bytes=self._spec_limit_bytes, keep=self._keep_spec)
        names = "`checkpoint` and `spec`" if self._with_spec else "`checkpoint`"
        raise errors.InvalidMultipart(f"A part has a name that is not known here; the parts are {names}.")

    def commit(self) -> FormContent:
        """Give what came, provided that nothing is missing."""
        if not self._files:
            raise errors.InvalidMultipart(
                "The part `checkpoint` is missing; send the safetensors file in it."
            )
        if self._with_spec and self._spec is None:
            raise errors.InvalidMultipart(
                "The part `spec` is missing; send what is to be done in it, as JSON."
            )
        return FormContent(self._id, tuple(self._files), self._spec)

    def abort(self) -> None:
        """Remove what this form brought, and nothing else."""
        if self._open is not None:
            self._open.abort()
        if created := [file.name for file in self._files if file.created]:
            self._withdraw(created)

    def _file(self, filename: str | None) -> Part:
        if filename is None:
            raise errors.InvalidMultipart("The part `checkpoint` must be a file; give it a file name.")
        upload = self._store.receive(
            self._id, check_file_name(filename), content_bytes=None, limit_bytes=self._limit_bytes
        )
        self._open = FilePart(upload, space=self._space, keep=self._files.append)
        return self._open

    def _keep_spec(self, text: bytes) -> None:
        if self._spec is not None:
            raise errors.InvalidMultipart("The part `spec` came twice; send it once.")
        self._spec = parse_model(CompressionSpec, text, kind=errors.InvalidSpec, subject="spec")


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
