"""What was done, or would be, to the components of a pipeline: one table, and one document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eckart.plain_text import columns, page, plain, wrapped
from eckart.types import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eckart.pipeline_folder import PipelineFolder
    from eckart.types import PlanDocument

SUMS = (
    "layers_factored",
    "layers_kept",
    "parameters_before",
    "parameters_after",
    "bytes_before",
    "bytes_after",
)
HEADER = ("component", "factored", "kept", "bytes before", "bytes after", "saved", "error")


def pipeline_document(pipeline: PipelineFolder, found: Mapping[str, Report | PlanDocument]) -> dict[str, Any]:
    """Return the document of each component, what is copied, and the sums; bytes are those of all files."""
    sums = {name: sum(getattr(one.totals, name) for one in found.values()) for name in SUMS}
    copied_bytes = pipeline.copied_bytes
    for name in ("bytes_before", "bytes_after"):
        sums[name] += copied_bytes
    return {
        "components": {name: one.model_dump(mode="json", exclude_unset=True) for name, one in found.items()},
        "copied": {"files": len(pipeline.copied), "bytes": copied_bytes},
        "warnings": list(pipeline.warnings),
        "totals": sums,
    }


def pipeline_table(pipeline: PipelineFolder, found: Mapping[str, Report | PlanDocument]) -> str:
    """Show a row for each component, one for all that is copied, and the sums."""
    rows = [_row(name, one) for name, one in found.items()]
    totals = pipeline_document(pipeline, found)["totals"]
    copied_bytes = pipeline.copied_bytes
    rows.append(("all else, copied", "-", "-", f"{copied_bytes:,}", f"{copied_bytes:,}", "0.0%", "-"))
    counts = (f"{totals['layers_factored']:,}", f"{totals['layers_kept']:,}")
    rows.append(("total", *counts, *_bytes(totals["bytes_before"], totals["bytes_after"]), "-"))
    copied = {path.relative_to(pipeline.folder).parts[0]: None for path in pipeline.copied}
    whole = [name for name in copied if name not in pipeline.components]
    warnings = [
        f"warning: {name}: {plain(warning)}"
        for name, one in found.items()
        if isinstance(one, Report)
        for warning in one.warnings
    ]
    return page(
        wrapped(f"pipeline {plain(pipeline.name)}"),
        columns(HEADER, rows),
        wrapped(f"copied: {plain(', '.join(whole))}") if whole else [],
        [line for warning in warnings for line in wrapped(warning)],
    )


def _row(name: str, one: Report | PlanDocument) -> tuple[str, ...]:
    totals = one.totals
    error = f"{one.totals.relative_error:#.3g}" if isinstance(one, Report) else "-"
    counts = (f"{totals.layers_factored:,}", f"{totals.layers_kept:,}")
    return (plain(name), *counts, *_bytes(totals.bytes_before, totals.bytes_after), error)


def _bytes(before: int, after: int) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}" if before else "-"
