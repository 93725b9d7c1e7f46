"""Write the output files from finished layers and copied tensors, several at a time, each in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.files import CheckpointFiles
from schemas.format.header import Header
from schemas.planning.model_folder import output_names
from schemas.planning.output import (
    CopiedTensor,
    FactorTensor,
    OutputTensor,
    StackedTensor,
    output_metadata,
    plan_output,
)
from worker.checkpoint.writer import CheckpointWriter, write_index
from worker.context import JobContext
from worker.executor import canceling_pool
from worker.layer import LayerOutcome
from worker.work_plan import WorkPlan

# Hashing takes a processor for each file; a disk is rarely faster than this many.
FILES_AT_ONCE = 4


def write_output(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    context: JobContext,
    result_dir: Path,
) -> tuple[CheckpointFiles, tuple[FileInfo, ...]]:
    """Write all weight files, sharded like the input, and the index if the input has one.

    The progress is notified before each tensor; an exception from its observer stops the work.
    """
    result_dir.mkdir(exist_ok=True)
    names = output_names(work.checkpoint, work.layers, ranks_of(outcomes))

    def write(name: str) -> tuple[FileInfo, Header]:
        return _write_file(name, work, outcomes, context, result_dir / names[name])

    with canceling_pool(FILES_AT_ONCE, "output") as pool:
        written = list(pool.map(write, work.checkpoint.headers))
    infos = [info for info, _ in written]
    headers = {info.name: header for info, header in written}
    index_name = work.checkpoint.index_name and names[work.checkpoint.index_name]
    output = CheckpointFiles(headers, index_name=index_name, folder=result_dir)
    if work.checkpoint.index is not None and output.index_name is not None:
        weight_map = {tensor.name: name for name, header in headers.items() for tensor in header.tensors}
        index = write_index(
            output.path(output.index_name),
            weight_map,
            source=work.checkpoint.index,
            total_size_bytes=sum(tensor.nbytes for tensor in output.tensors),
            total_parameters=output.parameters,
        )
        infos.append(index)
    return output, tuple(infos)


def _write_file(
    name: str, work: WorkPlan, outcomes: Sequence[LayerOutcome], context: JobContext, path: Path
) -> tuple[FileInfo, Header]:
    header = work.checkpoint.headers[name]
    ranks = ranks_of(outcomes)
    errors = {number: outcome.report.relative_error for number, outcome in enumerate(outcomes)}
    planned = plan_output(header.tensors, work.layers, ranks)
    metadata = output_metadata(header.metadata, planned, work.layers, ranks, errors)
    return write_tensors(path, planned, metadata, context, source=work.checkpoint.path(name))


def write_tensors(
    path: Path,
    planned: Sequence[OutputTensor],
    metadata: Mapping[str, str],
    context: JobContext,
    *,
    source: Path | None = None,
) -> tuple[FileInfo, Header]:
    """Write one file of finished layers and, from the input file `source`, of copied tensors."""
    entries = {entry.name: entry for entry in planned}
    new_tensors = [entry.new_tensor for entry in planned]
    with CheckpointWriter(path, new_tensors, metadata) as writer:
        # The writer may reorder tensors to align them, so it decides which one is next.
        while (following := writer.next) is not None:
            context.progress.between_layers()
            entry = entries[following.name]
            pieces = entry.matrices if isinstance(entry, StackedTensor) else (entry,)
            writer.copy(following, chain.from_iterable(_chunks(piece, context, source) for piece in pieces))
    return writer.written, writer.header


def _chunks(
    piece: CopiedTensor | FactorTensor, context: JobContext, source: Path | None
) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, or of a part of one, which must be of the planned dtype and shape."""
    if isinstance(piece, CopiedTensor):
        assert source is not None
        yield from context.readers.chunks(source, piece.tensor)
        return
    factor = context.spool.factors(piece.number)[piece.position]
    if (factor.dtype, factor.shape) != (piece.dtype, piece.shape):
        raise ValueError(f"{piece.name} is finished as {factor.dtype} {list(factor.shape)}")
    yield from context.spool.chunks(factor)


def ranks_of(outcomes: Sequence[LayerOutcome]) -> dict[int, int]:
    """Return the rank of each factored layer, by its number."""
    return {number: outcome.rank for number, outcome in enumerate(outcomes) if outcome.rank is not None}
