"""`eckart compress`, `plan` and `expand` of a whole folder of diffusers: one component after another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from eckart.commands.options import write_json
from eckart.commands.reports import read_report
from eckart.companions import REPORT_NAME
from eckart.errors import InputError
from eckart.model_folder import own_entry, read_config
from eckart.pipeline_folder import (
    INDEX_NAME,
    PipelineFolder,
    check_spec,
    component_classes,
    is_pipeline,
    open_pipeline,
    published,
)
from eckart.pipeline_table import pipeline_document, pipeline_table
from eckart.table import plan_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eckart.types import PlanDocument, Report

    CompressOne: TypeAlias = Callable[
        [argparse.Namespace, dict[str, Any], Path, Path | None], tuple[list[Path], list[str]]
    ]
    PlanOne: TypeAlias = Callable[[argparse.Namespace, dict[str, Any]], PlanDocument]


def are_meant(options: argparse.Namespace) -> bool:
    """Whether the source is a pipeline's folder; only of that components can be named."""
    found = is_pipeline(options.source)
    if options.component and not found:
        raise InputError(f"{options.source}: --component is for a folder with {INDEX_NAME}, a pipeline's")
    return found


def run_compress(
    options: argparse.Namespace, spec: dict[str, Any], into: Path, compress_one: CompressOne
) -> list[str]:
    """Compress each component, show what it came to, and return the ids of what was uploaded."""
    pipeline = _opened(options, spec)
    stored: list[str] = []
    with published(into, pipeline) as part:
        for name in pipeline.components:
            print(f"component {name}", file=sys.stderr)
            stored += compress_one(_of(options, pipeline, name), spec, part / name, None)[1]
        pipeline.copy_rest(part)
    _show(pipeline, {name: read_report(into / name / REPORT_NAME) for name in pipeline.components}, options)
    if not options.json:
        sys.stdout.write(f"\n{into}\n")
    return stored


def run_plan(options: argparse.Namespace, spec: dict[str, Any], plan_one: PlanOne) -> None:
    """Show what jobs would do to each component."""
    pipeline = _opened(options, spec)
    plans = {name: plan_one(_of(options, pipeline, name), spec) for name in pipeline.components}
    if not options.json:
        sys.stdout.write("".join(plan_table(plan) + "\n" for plan in plans.values()))
    _show(pipeline, plans, options)


def expand_components(folder: Path, into: Path, expand: Callable[[Path, Path], Sequence[Path]]) -> list[Path]:
    """Multiply the factored components of a pipeline out, copy the rest, and return the new files."""
    factored = [name for name in component_classes(folder) if own_entry(read_config(folder / name))]
    if not factored:
        raise InputError(f"{folder} holds no component that is factored")
    pipeline = open_pipeline(folder, factored)
    with published(into, pipeline) as part:
        for name in pipeline.checkpoints:
            expand(folder / name, part / name)
        pipeline.copy_rest(part)
    return sorted(path for path in into.rglob("*") if path.is_file())


def _opened(options: argparse.Namespace, spec: dict[str, Any]) -> PipelineFolder:
    """Find the components, and say before any work what will not be as one may think."""
    pipeline = open_pipeline(Path(options.source), options.component)
    named = {name: value for name in ("calibration", "base") if (value := getattr(options, name)) is not None}
    notes = check_spec({**spec, **named}, pipeline)
    _ = pipeline.checkpoints  # whose faults are errors
    for note in (*notes, *pipeline.warnings):
        print(f"eckart: {note}", file=sys.stderr)
    return pipeline


def _of(options: argparse.Namespace, pipeline: PipelineFolder, name: str) -> argparse.Namespace:
    """Return the options for one component."""
    return argparse.Namespace(**{**vars(options), "source": str(pipeline.folder / name)})


def _show(
    pipeline: PipelineFolder, found: Mapping[str, Report | PlanDocument], options: argparse.Namespace
) -> None:
    if options.json:
        write_json(pipeline_document(pipeline, found))
    else:
        sys.stdout.write(pipeline_table(pipeline, found))
