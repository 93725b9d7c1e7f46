"""Write the output files from finished layers and copied tensors, in one streaming pass per file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from schemas.checkpoint import FileInfo
from schemas.format.files import CheckpointFiles
from schemas.format.header import Header
from schemas.planning.model_folder import output_names
from schemas.planning.output import CopiedTensor, FactorTensor, output_metadata, plan_output
from worker.checkpoint.reader import CheckpointReader
from worker.checkpoint.spool import LayerSpool, SpooledLayer
from worker.checkpoint.writer import CheckpointWriter, write_index
from worker.layer import LayerOutcome
from worker.work_plan import WorkPlan


class FinishedLayers:
    """The stored tensors of finished layers; the file of a layer is opened once for tensors in a row."""

    def __init__(self, spool: LayerSpool) -> None:
        self._spool = spool
        self._number: int | None = None
        self._layer: SpooledLayer | None = None
        self._reader: CheckpointReader | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def copy(self, entry: FactorTensor, writer: CheckpointWriter) -> None:
        """Write the next tensor from a finished layer."""
        if entry.number != self._number:
            self._open(entry)
        assert self._layer is not None
        assert self._reader is not None
        writer.copy(self._reader, self._layer.factors[entry.position])

    def _open(self, entry: FactorTensor) -> None:
        layer = self._spool.get(entry.number)
        if layer is None:
            raise FileNotFoundError(f"the finished layer with {entry.name} is missing or damaged")
        if self._reader is not None:
            self._reader.close()
        self._number, self._layer, self._reader = entry.number, layer, layer.open()


def write_output(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    spool: LayerSpool,
    result_dir: Path,
    *,
    check_canceled: Callable[[], None],
) -> tuple[CheckpointFiles, tuple[FileInfo, ...]]:
    """Write all weight files, sharded like the input, and the index if the input has one.

    `check_canceled` is called before each tensor; an exception from it stops the work.
    """
    result_dir.mkdir(parents=True, exist_ok=True)
    infos: list[FileInfo] = []
    headers: dict[str, Header] = {}
    names = output_names(work.checkpoint, work.layers, ranks_of(outcomes))
    for name in work.checkpoint.headers:
        path = result_dir / names[name]
        info, headers[path.name] = _write_file(name, work, outcomes, spool, check_canceled, path)
        infos.append(info)
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
    name: str,
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    spool: LayerSpool,
    check_canceled: Callable[[], None],
    path: Path,
) -> tuple[FileInfo, Header]:
    header = work.checkpoint.headers[name]
    ranks = ranks_of(outcomes)
    errors = {number: outcome.report.relative_error for number, outcome in enumerate(outcomes)}
    planned = plan_output(header.tensors, work.layers, ranks)
    metadata = output_metadata(header.metadata, planned, work.layers, ranks, errors)
    entries = {entry.name: entry for entry in planned}
    new_tensors = [entry.new_tensor for entry in planned]
    source = work.checkpoint.path(name)
    with (
        CheckpointReader(source) as reader,
        FinishedLayers(spool) as layers,
        CheckpointWriter(path, new_tensors, metadata) as writer,
    ):
        # The writer may reorder tensors to align them, so it decides which one is next.
        while (following := writer.next) is not None:
            check_canceled()
            entry = entries[following.name]
            if isinstance(entry, CopiedTensor):
                writer.copy(reader, entry.tensor)
            else:
                layers.copy(entry, writer)
    return writer.written, writer.header


def ranks_of(outcomes: Sequence[LayerOutcome]) -> dict[int, int]:
    """Return the rank of each factored layer, by its number."""
    return {number: outcome.rank for number, outcome in enumerate(outcomes) if outcome.rank is not None}
