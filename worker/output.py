"""Putting the output together: finished layers and untouched tensors, file by file, in one streaming pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from schemas.format.header import Header
from schemas.format.tensor import TensorInfo
from schemas.planning.output import CopiedTensor, FactorTensor, output_metadata, plan_output
from schemas.report import FileReport
from worker.checkpoint.part import WrittenFile
from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool, SpooledLayer
from worker.checkpoint.writer import CheckpointWriter, write_index
from worker.layer import LayerOutcome
from worker.work_plan import InputFile, WorkPlan

FindLayer = Callable[[int], SpooledLayer | None]


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """What was written, the index included."""

    files: tuple[FileReport, ...]
    tensors: tuple[TensorInfo, ...]


def write_output(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    spool: LayerSpool,
    result_dir: Path,
    *,
    check_cancelled: Callable[[], None],
) -> WrittenOutput:
    """Write every output file in the input's shard layout, and the index where there is one.

    `go_on` is asked before each tensor; what it raises stops the work.
    """
    result_dir.mkdir(parents=True, exist_ok=True)
    written: list[WrittenFile] = []
    headers: dict[str, Header] = {}
    find = cache(spool.get)
    for source in work.checkpoint.sources:
        file, header = _write_file(
            source, work, outcomes, find, check_cancelled, result_dir / source.path.name
        )
        written.append(file)
        headers[file.name] = header
    tensors = tuple(tensor for header in headers.values() for tensor in header.tensors)
    if work.checkpoint.index is not None and work.checkpoint.index_path is not None:
        index = write_index(
            result_dir / work.checkpoint.index_path.name,
            {tensor.name: name for name, header in headers.items() for tensor in header.tensors},
            metadata=work.checkpoint.index.metadata,
            total_size_bytes=sum(tensor.nbytes for tensor in tensors),
            total_parameters=sum(tensor.parameters for tensor in tensors),
        )
        written.append(index)
    files = tuple(FileReport(name=x.name, size_bytes=x.size_bytes, sha256=x.sha256) for x in written)
    return WrittenOutput(files, tensors)


def _write_file(
    source: InputFile,
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    find: FindLayer,
    check_cancelled: Callable[[], None],
    path: Path,
) -> tuple[WrittenFile, Header]:
    ranks = {number: outcome.rank for number, outcome in enumerate(outcomes) if outcome.rank is not None}
    errors = {number: outcome.report.relative_error for number, outcome in enumerate(outcomes)}
    planned = plan_output(source.header.tensors, work.layers, ranks)
    metadata = output_metadata(source.header.metadata, planned, work.layers, ranks, errors)
    entries = {entry.name: entry for entry in planned}
    specs = [entry.spec for entry in planned]
    with CheckpointReader(source.path) as reader, CheckpointWriter(path, specs, metadata) as writer:
        # The writer may order tensors anew to keep them aligned, so it is asked what comes next.
        while (following := writer.next) is not None:
            check_cancelled()
            entry = entries[following.name]
            if isinstance(entry, CopiedTensor):
                writer.copy(reader, entry.tensor)
            else:
                _copy_factor(entry, find, writer)
    return writer.written, writer.header


def _copy_factor(entry: FactorTensor, find: FindLayer, writer: CheckpointWriter) -> None:
    layer = find(entry.number)
    if layer is None:
        raise FileNotFoundError(f"the finished layer that holds {entry.name} is gone or damaged")
    with layer.open() as reader:
        writer.copy(reader, layer.factors[entry.position])
