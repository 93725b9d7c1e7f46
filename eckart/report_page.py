"""A report in the page that shows it: what the page needs, escaped, in the template of the page.

A copy of schemas/report_page.py, made by `make docs`: the client shares no code.
"""

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

REPORT_MARK = "{report}"
# Of all layers together, and the bounds of one: what a chart of a spectrum can show, or must.
SPECTRUM_POINTS = 24_000
MOST_POINTS = 256
LEAST_POINTS = 8
DIGITS = 4
MEMBERS = (
    "version",
    "job_id",
    "created_at",
    "spec",
    "environment",
    "warnings",
    "input",
    "calibration",
    "base",
    "output",
    "totals",
    "not_selected",
    "how_to_load",
)
# All but the indices of columns and rows, which are many and in no chart.
LAYER_MEMBERS = (
    "name",
    "shape",
    "dtype",
    "outcome",
    "reason",
    "method",
    "rank",
    "break_even_rank",
    "parameters_before",
    "parameters_after",
    "bytes_before",
    "bytes_after",
    "relative_error",
    "optimal_error",
    "weighted_error",
    "optimal_weighted_error",
    "predicted_loss",
    "seconds",
)


def report_page(template: str, report: Mapping[str, Any]) -> str:
    """Put a report, as its JSON was parsed, into the template of its page."""
    # ASCII without `<`: nothing in it ends the element, or begins another one.
    data = json.dumps(page_data(report), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    before, _, after = template.partition(REPORT_MARK)
    return before + data + after


def page_data(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a report: fewer points of each spectrum, and fewer digits of layers."""
    layers = report["layers"]
    points = max(LEAST_POINTS, min(MOST_POINTS, SPECTRUM_POINTS // max(1, len(layers))))
    return {
        **{name: _finite(report[name]) for name in MEMBERS if report.get(name) is not None},
        "page": {"points": points, "digits": DIGITS},
        "layers": [_layer(layer, points) for layer in layers],
    }


def _layer(layer: Mapping[str, Any], points: int) -> dict[str, Any]:
    kept = {name: _cut(layer[name]) for name in LAYER_MEMBERS if layer.get(name) is not None}
    values = layer.get("singular_values")
    if not values:
        return kept
    given = layer.get("singular_value_indices") or range(len(values))
    places = _spread(min(len(values), len(given)), points)
    indices = [given[place] for place in places]
    kept["singular_values"] = [_cut(values[place]) for place in places]
    if indices != list(range(len(indices))):
        kept["singular_value_indices"] = indices
    return kept


def _spread(count: int, most: int) -> Iterable[int]:
    """Choose at most so many places, evenly, with the first and the last."""
    if count <= most:
        return range(count)
    return [round(at * (count - 1) / (most - 1)) for at in range(most)]


def _cut(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if isfinite(value) else None


def _finite(value: Any) -> Any:
    """Make what JSON cannot hold null, as in a damaged file."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
