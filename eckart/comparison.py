"""Two reports side by side: totals, specs, and the layers that differ most."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from eckart.plain_text import columns, cut, page, plain, wrapped
from eckart.types import Document, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from eckart.types import LayerReport, Report

ORDERS = ("bytes", "error", "rank")
VALUE_COLUMNS = 32


class SideTotals(Document):
    """One of the two jobs."""

    job_id: str | None
    created_at: str
    totals: Totals


class SpecDifference(Document):
    """A field of the spec that differs, by its JSON pointer; null where a side lacks it."""

    field: str
    a: Any
    b: Any


class LayerSide(Document):
    """What one job did to a layer; the error is that of the outputs where the layer is calibrated."""

    outcome: str
    method: str
    rank: int | None
    bytes: int
    error: float | None


class LayerDifference(Document):
    """A layer that the two jobs treated differently; null where a side did not select it."""

    tensor: str
    a: LayerSide | None
    b: LayerSide | None


class Comparison(Document):
    """Two reports side by side; `layers` begins with those that differ most."""

    a: SideTotals
    b: SideTotals
    same_input: bool
    spec: tuple[SpecDifference, ...]
    by: str
    layers_alike: int
    layers_different: int
    layers: tuple[LayerDifference, ...]


def compare(a: Report, b: Report, *, by: str = "bytes", top: int = 10) -> Comparison:
    """Compare two reports; show the `top` layers that differ most in bytes, error or rank."""
    of_a, of_b = ({layer.tensor: _layer_side(layer) for layer in report.layers} for report in (a, b))
    tensors = list(dict.fromkeys((*of_a, *of_b)))
    different = [
        LayerDifference(tensor=tensor, a=of_a.get(tensor), b=of_b.get(tensor))
        for tensor in tensors
        if of_a.get(tensor) != of_b.get(tensor)
    ]
    different.sort(key=lambda layer: _distance(layer, by), reverse=True)
    return Comparison(
        a=SideTotals(job_id=a.job_id, created_at=a.created_at, totals=a.totals),
        b=SideTotals(job_id=b.job_id, created_at=b.created_at, totals=b.totals),
        same_input=_digests(a) == _digests(b),
        spec=tuple(_spec_differences(a.spec, b.spec)),
        by=by,
        layers_alike=len(tensors) - len(different),
        layers_different=len(different),
        layers=tuple(different[:top]),
    )


def comparison_table(comparison: Comparison, name_a: str, name_b: str) -> str:
    """Show a comparison as text."""
    a, b = comparison.a, comparison.b
    other_input = "the two jobs had different inputs, so layers are compared by their names alone"
    shown = f"{len(comparison.layers)} of {comparison.layers_different} layers that differ"
    return page(
        [f"{letter}: {_title(name, side)}" for letter, name, side in (("A", name_a, a), ("B", name_b, b))],
        [] if comparison.same_input else wrapped(f"warning: {other_input}"),
        columns(("whole checkpoint", "A", "B", "B/A"), _total_rows(a.totals, b.totals)),
        columns(("spec", "A", "B"), [(x.field, _value(x.a), _value(x.b)) for x in comparison.spec])
        or ["the specs are the same"],
        columns(
            ("layers", "A", "B", "bytes A", "bytes B", "error A", "error B"),
            [_layer_row(layer) for layer in comparison.layers],
        ),
        wrapped(f"{shown}, by {comparison.by}; {comparison.layers_alike} are alike"),
    )


def _layer_side(layer: LayerReport) -> LayerSide:
    return LayerSide(
        outcome=layer.outcome,
        method=layer.method,
        rank=layer.rank,
        bytes=layer.bytes_after,
        error=layer.error_and_optimum[0],
    )


def _distance(layer: LayerDifference, by: str) -> float:
    """Return how far the sides are apart; a layer that is kept, or not selected, has no error and rank 0."""
    a, b = ((getattr(side, by) or 0) if side else 0 for side in (layer.a, layer.b))
    return float(abs(a - b))


def _digests(report: Report) -> list[str]:
    return sorted(file.sha256 for file in report.input.files)


def _spec_differences(a: Mapping[str, Any], b: Mapping[str, Any], at: str = "") -> Iterator[SpecDifference]:
    for name in dict.fromkeys((*a, *b)):
        of_a, of_b = a.get(name), b.get(name)
        if isinstance(of_a, dict) and isinstance(of_b, dict):
            yield from _spec_differences(of_a, of_b, f"{at}/{name}")
        elif of_a != of_b:
            yield SpecDifference(field=f"{at}/{name}", a=of_a, b=of_b)


def _title(name: str, side: SideTotals) -> str:
    job = f" (job {side.job_id})" if side.job_id not in {None, name} else ""
    return plain(f"{name}{job}, {side.created_at}")


def _total_rows(a: Totals, b: Totals) -> list[tuple[str, ...]]:
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("parameters", a.parameters_after, b.parameters_after, ",.0f"),
        ("bytes", a.bytes_after, b.bytes_after, ",.0f"),
        ("relative error", a.relative_error, b.relative_error, ".4g"),
        ("error of the outputs", a.weighted_error, b.weighted_error, ".4g"),
        ("layers factored", a.layers_factored, b.layers_factored, ",.0f"),
        ("layers kept", a.layers_kept, b.layers_kept, ",.0f"),
        ("seconds", a.seconds, b.seconds, ",.1f"),
    ]
    return [
        (
            name,
            _number(of_a, form),
            _number(of_b, form),
            _number(of_b / of_a, ".3f") if of_a and of_b else "-",
        )
        for name, of_a, of_b, form in rows
        if of_a is not None or of_b is not None
    ]


def _layer_row(layer: LayerDifference) -> tuple[str, ...]:
    sides = (layer.a, layer.b)
    return (
        plain(layer.tensor),
        *(_what(side) for side in sides),
        *(_number(side.bytes if side else None, ",d") for side in sides),
        *(_number(side.error if side else None, "#.3g") for side in sides),
    )


def _what(side: LayerSide | None) -> str:
    if side is None:
        return "-"
    if side.outcome != "factored":
        return side.outcome
    return f"{side.method} {side.rank}" if side.rank else side.method


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _value(value: Any) -> str:
    return cut(plain(json.dumps(value)), VALUE_COLUMNS)
