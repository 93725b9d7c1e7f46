"""Write an adapter of lower ranks: all stays as it was, but for the pairs and what the config says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.checkpoint import FileInfo
from schemas.format.companion import MAX_CONFIG_BYTES, parse_config
from schemas.format.encodings.lora import lora_ranks
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.planning.adapter import CONFIG_NAME
from schemas.planning.layer import ADAPTER_PREFIX
from schemas.planning.resizing import check_adapter_config, refused_config, resized_config, without_prefix
from state.files import write_atomic
from worker.context import JobContext
from worker.layer import LayerOutcome
from worker.output import ranks_of, write_output
from worker.work_plan import WorkPlan

# Where diffusers keeps the config of each of several adapters.
METADATA_CONFIG = "lora_adapter_metadata"


def is_resized(work: WorkPlan) -> bool:
    """Whether the checkpoint is an adapter whose pairs get lower ranks."""
    return any(layer.is_lora for layer in work.layers)


def check_resizable(checkpoint: CheckpointFiles) -> None:
    """Refuse an adapter of which nothing tells the scales, or not for certain.

    Raises
    ------
    CheckpointError
        With the fault ``bad-adapter-config``.
    """
    if any(METADATA_CONFIG in header.metadata for header in checkpoint.headers.values()):
        raise refused_config(
            f"the file has a config of its own in the metadata entry {METADATA_CONFIG}, which is not taken"
        )
    ranks = lora_ranks(checkpoint.tensors)
    if CONFIG_NAME in checkpoint.companions:
        check_adapter_config(
            _config(checkpoint), {without_prefix(name): rank for name, rank in ranks.items()}
        )
    elif any(name.startswith(ADAPTER_PREFIX) for name in ranks):
        raise refused_config(
            "it is not there, and only it says how PEFT scales each layer. Send the adapter's whole folder, "
            "and give a folder as output"
        )


def write_resized(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    context: JobContext,
    result_dir: Path,
) -> tuple[CheckpointFiles, tuple[FileInfo, ...]]:
    """Write the weight files, and the config if there is one and a rank has changed."""
    output, files = write_output(work, outcomes, context, result_dir)
    if CONFIG_NAME not in work.checkpoint.companions or not ranks_of(outcomes):
        return output, files
    before, after = (
        {without_prefix(name): rank for name, rank in lora_ranks(each.tensors).items()}
        for each in (work.checkpoint, output)
    )
    config = json.dumps(resized_config(_config(work.checkpoint), before, after), indent=2) + "\n"
    return output, (*files, write_atomic(result_dir / CONFIG_NAME, config.encode()))


def _config(checkpoint: CheckpointFiles) -> Mapping[str, Any]:
    raw = checkpoint.path(CONFIG_NAME).read_bytes()
    if len(raw) > MAX_CONFIG_BYTES:
        raise refused_config("it is too large")
    try:
        return parse_config(raw)
    except CheckpointError:
        raise refused_config("it is no JSON object of a usual size") from None
