"""What the service says of a stored checkpoint, as far as the user's side needs it."""

from schemas.base import Output
from schemas.checkpoint import FileInfo


class StoredFiles(Output):
    """The files that are there."""

    files: tuple[FileInfo, ...]
