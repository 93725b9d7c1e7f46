"""Write the result of a difference job as a LoRA adapter, and say what the adapter does not hold."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from schemas.checkpoint import FileInfo
from schemas.format.companion import CONFIG_NAME as MODEL_CONFIG_NAME
from schemas.format.files import CheckpointFiles
from schemas.planning.adapter import ADAPTER_NAME, CONFIG_NAME, adapter_config
from schemas.planning.output import ADAPTER_METADATA, plan_adapter
from schemas.planning.references import BaseError
from state.files import write_atomic
from worker.context import JobContext
from worker.layer import LayerOutcome
from worker.output import ranks_of, write_tensors
from worker.work_plan import WorkPlan


def write_adapter(
    work: WorkPlan,
    outcomes: Sequence[LayerOutcome],
    context: JobContext,
    result_dir: Path,
) -> tuple[CheckpointFiles, tuple[FileInfo, ...]]:
    """Write the file with the factors of all layers, and the config.

    The progress is notified before each tensor; an exception from its observer stops the work.

    Raises
    ------
    BaseError
        If there is no layer to write.
    """
    ranks = ranks_of(outcomes)
    if not ranks:
        raise BaseError(
            "no-difference",
            "No layer is in the adapter: the selected weights equal those of the base, or were left out.",
        )
    result_dir.mkdir(exist_ok=True)
    planned = plan_adapter(work.layers, ranks)
    written, header = write_tensors(result_dir / ADAPTER_NAME, planned, ADAPTER_METADATA, context)
    layers = {work.layers[number].name: (work.layers[number], rank) for number, rank in ranks.items()}
    modules = [tensor.name for tensor in work.checkpoint.tensors]
    config = json.dumps(adapter_config(layers, modules), indent=2) + "\n"
    files = (written, write_atomic(result_dir / CONFIG_NAME, config.encode()))
    return CheckpointFiles({ADAPTER_NAME: header}, folder=result_dir), files


def without_config(checkpoint: CheckpointFiles) -> CheckpointFiles:
    """Return the checkpoint without its config.json, which would make a model's folder of an adapter's."""
    return replace(checkpoint, companions=tuple(n for n in checkpoint.companions if n != MODEL_CONFIG_NAME))
