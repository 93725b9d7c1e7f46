"""Write the companions of a result: copied as they are, but for config.json and the model card."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.companion import CONFIG_NAME, card_name, parse_config
from schemas.format.encodings.finding import VALUE_DTYPES
from schemas.format.encodings.lora import NAME as LORA
from schemas.format.encodings.quantization import MODELOPT_NAME
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.metadata import FactoredLayer, factored_layers
from schemas.model_card import model_card
from schemas.planning.mlp_widths import Width, mlp_widths, with_widths
from schemas.planning.model_folder import folder_config, has_plain_names, how_to_load
from schemas.planning.quantized_config import (
    with_modelopt_skipped,
    with_skipped,
    without_quantization,
)
from schemas.planning.resizing import LOAD_AS_BEFORE
from schemas.report import Report
from state.files import AtomicFile, write_atomic

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class CompanionWriter:
    """The companions of the input, with their sizes and digests, and where they go."""

    checkpoint: CheckpointFiles
    files: Mapping[str, FileInfo]
    result_dir: Path

    def copy(self, name: str) -> FileInfo:
        with AtomicFile(self.result_dir / name) as file:
            for block in self._blocks(name):
                file.write(block)
            self._check(name, file.info.sha256)
            return file.publish()

    def read(self, name: str) -> bytes:
        content = b"".join(self._blocks(name))
        self._check(name, hashlib.sha256(content).hexdigest())
        return content

    def write(self, name: str, content: bytes) -> FileInfo:
        return write_atomic(self.result_dir / name, content)

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self.checkpoint.path(name).open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
        except FileNotFoundError as error:
            raise CheckpointError("file-changed", f"The file {name} was deleted.") from error

    def _check(self, name: str, sha256: str) -> None:
        if sha256 != self.files[name].sha256:
            raise CheckpointError("file-changed", f"The file {name} changed since it was stored.")


def check_config(checkpoint: CheckpointFiles) -> None:
    """Refuse a config.json that cannot be changed before any work is done."""
    if CONFIG_NAME in checkpoint.companions:
        parse_config(checkpoint.path(CONFIG_NAME).read_bytes())


def write_companions(
    checkpoint: CheckpointFiles,
    input_files: Sequence[FileInfo],
    output: CheckpointFiles,
    report: Report,
    result_dir: Path,
) -> Report:
    """Write the companions and return the report with them; with a config.json, the result gets a model card.

    Raises
    ------
    CheckpointError
        If a companion is not what it was when it was stored.
    """
    writer = CompanionWriter(checkpoint, {file.name: file for file in input_files}, result_dir)
    has_config = CONFIG_NAME in checkpoint.companions
    rewritten = {CONFIG_NAME, card_name(checkpoint.companions)} if has_config else set()
    if _is_decoded(report):
        rewritten.add(MODELOPT_NAME)
    # An adapter has a config of its own, for example.
    made = rewritten | {file.name for file in report.output.files}
    written = [writer.copy(name) for name in checkpoint.companions if name not in made]
    if _is_decoded(report) and MODELOPT_NAME in checkpoint.companions and _is_quantized(output):
        written.append(writer.write(MODELOPT_NAME, _modelopt_left(writer.read(MODELOPT_NAME), report)))
    layers = _factored(output)
    is_adapter = report.spec["layout"] == "adapter"
    is_resized = is_adapter and report.base is None
    is_plain = has_config and bool(layers) and has_plain_names(output)
    hint = how_to_load(layers, in_folder=has_config, is_adapter=is_adapter, is_plain=is_plain)
    hint = LOAD_AS_BEFORE if is_resized else hint
    report = report.model_copy(update={"how_to_load": hint})
    if has_config:
        files, warnings = _write_config_and_card(writer, report, layers, output, is_plain=is_plain)
        written += files
        report = report.model_copy(update={"warnings": (*report.warnings, *warnings)})
    return report.with_companions(sorted(written, key=lambda file: file.name))


def _write_config_and_card(
    writer: CompanionWriter,
    report: Report,
    layers: Mapping[str, FactoredLayer],
    output: CheckpointFiles,
    *,
    is_plain: bool,
) -> tuple[list[FileInfo], tuple[str, ...]]:
    """Write the two companions that say what was done; return them, and what needs a warning."""
    companions = writer.checkpoint.companions
    before = writer.read(CONFIG_NAME)
    narrowed, warnings = _narrowed_config(before, writer.checkpoint, report)
    narrowed = _quantization_left(narrowed, writer.checkpoint, report, output)
    after, warning = narrowed, None
    if layers:
        after, warning = folder_config(narrowed, layers, writer.checkpoint.entry_name, output)
    card = card_name(companions)
    original = writer.read(card) if card in companions else b""
    text = model_card(
        report, parse_config(narrowed), companions, original, is_factored=bool(layers), is_plain=is_plain
    )
    files = [writer.write(CONFIG_NAME, after), writer.write(card, text)]
    return files, (*warnings, *((warning,) if warning else ()))


def _narrowed_config(
    raw: bytes, checkpoint: CheckpointFiles, report: Report
) -> tuple[bytes, tuple[str, ...]]:
    """Return the config.json with the widths of the MLPs whose neurons were cut, and what it cannot say."""
    cut = {
        layer.name: Width(layer.shape[0 if layer.transposed else 1], layer.rank)
        for layer in report.layers
        if layer.shape_after is not None and layer.columns is not None and layer.rank is not None
    }
    if not cut:
        return raw, ()
    config, warnings = with_widths(parse_config(raw), mlp_widths(checkpoint.tensors, checkpoint.aliases, cut))
    return json.dumps(config, indent=2).encode() + b"\n", warnings


def _quantization_left(
    raw: bytes, checkpoint: CheckpointFiles, report: Report, output: CheckpointFiles
) -> bytes:
    """Return the config.json of a model of which some weights, or all, are quantized no longer."""
    if not _is_decoded(report):
        return raw
    config, factored = parse_config(raw), _factored_names(report)
    if _is_quantized(output):
        others = {weight.module for weight in checkpoint.planned().encoded}.difference(factored)
        changed = with_skipped(config, factored, others)
    else:
        changed = without_quantization(config)
    return json.dumps(changed, indent=2).encode() + b"\n"


def _modelopt_left(raw: bytes, report: Report) -> bytes:
    """Return ModelOpt's own file, without the modules that are quantized no longer."""
    document = with_modelopt_skipped(parse_config(raw), _factored_names(report))
    return json.dumps(document, indent=2).encode() + b"\n"


def _is_decoded(report: Report) -> bool:
    """Whether a weight that was quantized has been factored."""
    return any(layer.encoding not in (None, LORA) for layer in report.layers if layer.outcome == "factored")


def _factored_names(report: Report) -> list[str]:
    return [layer.name for layer in report.layers if layer.outcome == "factored"]


def _is_quantized(output: CheckpointFiles) -> bool:
    """Whether a weight of the output may still be quantized as in the input."""
    own = {name for header in output.headers.values() for name in factored_layers(header.metadata)}
    return any(
        tensor.dtype in VALUE_DTYPES and tensor.name.rpartition(".")[0] not in own
        for tensor in output.tensors
    )


def _factored(output: CheckpointFiles) -> dict[str, FactoredLayer]:
    return {
        name: layer
        for header in output.headers.values()
        for name, layer in factored_layers(header.metadata).items()
    }
