"""Writing a checkpoint one tensor at a time, and its index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from schemas.format.header import LENGTH_BYTES, Header, aligned_order, build_header, parse_header
from schemas.format.index import build_index
from state.files import AtomicFile, write_atomic
from worker.checkpoint.reader import CHUNK_BYTES, dtype_name, tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    import torch

    from schemas.checkpoint import FileInfo
    from schemas.format.header import NewTensor
    from schemas.format.index import ShardIndex
    from schemas.format.tensor import TensorInfo


class Stored(Protocol):
    """The kind of a tensor on disk."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class CheckpointWriter:
    """Writes one safetensors file, tensor by tensor, and publishes it when it is complete.

    The header is written first, so names, dtypes and shapes must be known. The data is hashed while it is
    written. A block that raises, or that ends before every tensor is written, publishes nothing.

    Parameters
    ----------
    path : Path
        Where the file shall appear, replacing what is there.
    tensors : iterable of NewTensor
        The tensors; `aligned_order` may reorder them.
    metadata : mapping of str to str, optional
        The file's ``__metadata__``.
    durable : bool
        Whether the file must be on the disk before it is visible.

    Attributes
    ----------
    header : Header
        The file's header; its tensors are in the order in which they must be written.

    Raises
    ------
    CheckpointError
        If a reader would refuse the header: a name repeats or is too long, or the header exceeds 100 MB.
    KeyError
        If safetensors has no such dtype.

    Examples
    --------
    >>> with CheckpointWriter(path, [NewTensor("w", "F32", (2, 2))]) as writer:  # doctest: +SKIP
    ...     writer.write(torch.eye(2))
    >>> writer.written.sha256  # doctest: +SKIP
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[NewTensor],
        metadata: Mapping[str, str] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        ordered = aligned_order(tensors)
        self._header_json = build_header(ordered, metadata or {})
        # What is written must be what would be accepted.
        self.header: Header = parse_header(
            self._header_json,
            file_bytes=LENGTH_BYTES + len(self._header_json) + sum(tensor.nbytes for tensor in ordered),
        )
        self._path = path
        self._durable = durable
        self._count = 0

    def __enter__(self) -> Self:
        self._file = AtomicFile(self._path, durable=self._durable)
        try:
            self._file.write(len(self._header_json).to_bytes(LENGTH_BYTES, "little"))
            self._file.write(self._header_json)
        except BaseException:
            self._file.abort()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish the file if the block did not raise and wrote every tensor; else remove the temporary file.

        Raises
        ------
        ValueError
            If a tensor was not written, or the number of bytes is not what the header says.
        FileExistsError
            If another process began to write the same file meanwhile.
        OSError
            If the file cannot be written to the disk or renamed.
        """
        with self._file:
            if error is None:
                self._check_complete()
                self._file.publish()

    @property
    def written(self) -> FileInfo:
        """Name, size and SHA-256 of the file; of what was written so far while the block runs."""
        return self._file.info

    @property
    def next(self) -> TensorInfo | None:
        """The tensor that must be written next; None if all are written."""
        tensors = self.header.tensors
        return tensors[self._count] if self._count < len(tensors) else None

    def write(self, tensor: torch.Tensor) -> None:
        """Write the next tensor from memory.

        Parameters
        ----------
        tensor : Tensor, of the next tensor's dtype and shape
            On any device, with any strides.

        Raises
        ------
        ValueError
            If dtype or shape differ from the next tensor's, or every tensor is written.
        CheckpointError
            With fault ``dtype-not-writable``, if safetensors has no such dtype.
        OSError
            If the file cannot be written.
        """
        self._step(dtype_name(tensor.dtype), tuple(tensor.shape))
        raw = tensor_bytes(tensor.detach().cpu().contiguous())
        for offset in range(0, len(raw), CHUNK_BYTES):
            self._file.write(raw[offset : offset + CHUNK_BYTES])

    def copy(self, tensor: Stored, pieces: Iterable[memoryview]) -> None:
        """Write the next tensor by copying the bytes of one on disk.

        Parameters
        ----------
        tensor : Stored
            Its dtype and shape are those of the next tensor; its name may differ.
        pieces : iterable of memoryview
            Its bytes, as `CheckpointReader.chunks` yields them; what that raises is raised here.

        Raises
        ------
        ValueError
            If dtype or shape differ from the next tensor's, or every tensor is written.
        OSError
            If the file cannot be written.
        """
        self._step(tensor.dtype, tensor.shape)
        for piece in pieces:
            self._file.write(piece)

    def _step(self, dtype: str, shape: tuple[int, ...]) -> None:
        wanted = self.next
        if wanted is None:
            raise ValueError("Every tensor of this file is written already.")
        if (dtype, shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"{wanted.name} comes next as {wanted.dtype} {list(wanted.shape)}, not {dtype} {list(shape)}."
            )
        self._count += 1

    def _check_complete(self) -> None:
        if self.next is not None:
            raise ValueError(f"{self._path.name} is incomplete: {self.next.name} was not written.")
        if self._file.size_bytes != self.header.file_bytes:
            raise ValueError(
                f"{self._path.name} has {self._file.size_bytes} bytes, not {self.header.file_bytes}."
            )


def write_index(
    path: Path,
    weight_map: Mapping[str, str],
    *,
    source: ShardIndex,
    total_size_bytes: int,
    total_parameters: int,
) -> FileInfo:
    """Write the index of a sharded checkpoint atomically.

    Parameters
    ----------
    path : Path
        Where the index shall appear, replacing what is there.
    weight_map : mapping of str to str
        The file name of each tensor, in the order to list them.
    source : ShardIndex
        The input's index, whose metadata and further keys are kept. ``total_size`` is set;
        ``total_parameters`` is updated if present.
    total_size_bytes : int
        The bytes of all tensors together, at least 0.
    total_parameters : int
        The elements of all tensors together, at least 0.

    Returns
    -------
    FileInfo
        Name, size and SHA-256 of the index.

    Raises
    ------
    ValueError
        If ``source`` holds NaN, infinity or half of a surrogate pair, which JSON cannot represent.
    FileExistsError
        If another process began to write the same path meanwhile.
    OSError
        If the file cannot be written, forced to the disk or renamed.
    """
    text = build_index(
        weight_map,
        source=source,
        total_size_bytes=total_size_bytes,
        total_parameters=total_parameters,
    )
    return write_atomic(path, text)
