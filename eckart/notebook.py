"""Reports and plans as a notebook shows them: a static table with bars, in which every text is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from eckart.table import group_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eckart.table import Group, L
    from eckart.types import Layer, LayerReport, PlanDocument, PlannedLayer, Report, Savings

ROWS = 30
BAR = (
    '<div style="min-width:8em;background:rgba(128,128,128,.25)">'
    '<div style="width:{share:.1f}%;height:.9em;background:#4a90d9"></div></div>'
)


def report_html(report: Report) -> str:
    """Show what was done: the sums, and a row for each group of similar layers."""
    totals = report.totals
    error = totals.relative_error if totals.weighted_error is None else totals.weighted_error
    sums = f"{_sums(totals)}, with an error of {error:.3g}"
    rows = [
        (*_cells(group), _rank(layer.rank for layer in group.layers), *_errors(group))
        for group in group_layers(report.layers)
    ]
    heads = ("layers", "n", "shape", "what", "bytes kept", "rank", "worst error", "best possible")
    return _page(f"Report of {report.job_id or 'a local run'}", sums, heads, rows, report.warnings)


def plan_html(plan: PlanDocument) -> str:
    """Show what would be done, in the same form."""
    bounds = "" if plan.totals.exact else "; the spectra decide some ranks, so these are upper bounds"
    rows = [(*_cells(group), _planned_rank(group.layers)) for group in group_layers(plan.layers)]
    heads = ("layers", "n", "shape", "what", "bytes kept", "rank")
    return _page(
        f"Plan for {plan.checkpoint or 'the headers'}",
        _sums(plan.totals) + bounds,
        heads,
        rows,
        plan.warnings,
    )


def _page(
    title: str, sums: str, heads: Iterable[str], rows: Sequence[Sequence[str]], warnings: Iterable[str]
) -> str:
    """Put cells, which are HTML already, and texts, which are not, together."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows[:ROWS])
    more = f"<p>and {len(rows) - ROWS} more rows</p>" if len(rows) > ROWS else ""
    told = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return (
        f"<div><p><strong>{escape(title)}</strong>: {escape(sums)}</p>"
        + (f"<ul>{told}</ul>" if told else "")
        + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _sums(totals: Savings) -> str:
    saved = 1 - totals.bytes_after / totals.bytes_before if totals.bytes_before else 0.0
    return (
        f"{totals.layers_factored} layers factored, {totals.layers_kept} kept; "
        f"{totals.parameter_savings:.1%} of the parameters and {saved:.1%} of the bytes saved"
    )


def _cells(group: Group[L]) -> tuple[str, ...]:
    first = group.first
    what = first.method if first.outcome == "factored" else f"kept: {first.reason}"
    share = _share(group.layers)
    bar = BAR.format(share=100 * min(1.0, share))
    shape = "x".join(map(str, first.shape))
    return escape(group.name), str(len(group.layers)), shape, escape(what), f"{bar}{share:.1%}"


def _share(layers: Iterable[Layer]) -> float:
    sizes = [(layer.bytes_before, layer.bytes_after) for layer in layers]
    before, after = (sum(column) for column in zip(*sizes, strict=True))
    return after / before if before else 1.0


def _rank(ranks: Iterable[int | None]) -> str:
    known = sorted({rank for rank in ranks if rank})
    return "-".join(map(str, dict.fromkeys((known[0], known[-1])))) if known else ""


def _planned_rank(layers: Sequence[PlannedLayer]) -> str:
    bounds = [layer.rank_bounds for layer in layers if layer.rank_bounds]
    return _rank(rank for bound in bounds for rank in (bound.least, bound.most)) or _rank(
        x.rank for x in layers
    )


def _errors(group: Group[LayerReport]) -> tuple[str, str]:
    """Return the error of the worst layer and the best possible one, of the outputs where calibrated."""
    pairs = [layer.error_and_optimum for layer in group.layers]
    error, best = max(pairs, key=lambda pair: pair[0] or 0.0)
    return _number(error), _number(best)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
