"""Reports and plans as plain text, at most 100 columns wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from eckart.plain_text import WIDTH, columns, cut, page, plain, wrapped
from eckart.spec import schema
from eckart.types import Layer, LayerReport, PlannedLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eckart.types import PlanDocument, PlanTotals, Report, Totals

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True, slots=True)
class Group(Generic[L]):
    """Layers of one place in the network, one shape, one method and one outcome; never empty."""

    layers: tuple[L, ...]

    @property
    def first(self) -> L:
        """One of the layers; the others differ from it only in numbers."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The common name, with `*` where the numbers differ."""
        parts = zip(*(layer.name.split(".") for layer in self.layers), strict=True)
        return ".".join(column[0] if len(set(column)) == 1 else "*" for column in parts)

    @property
    def saved(self) -> float:
        """The saved share of the bytes."""
        after = sum(layer.bytes_after for layer in self.layers)
        return 1 - after / sum(layer.bytes_before for layer in self.layers)


def group_layers(layers: Iterable[L]) -> list[Group[L]]:
    """Group layers that differ only in numbers, in the order of the first of each group."""
    groups: dict[tuple[object, ...], list[L]] = {}
    for layer in layers:
        groups.setdefault(_group_key(layer), []).append(layer)
    return [Group(tuple(alike)) for alike in groups.values()]


def _group_key(layer: Layer) -> tuple[object, ...]:
    place = tuple("*" if part.isdecimal() else part for part in layer.name.split("."))
    same = (layer.shape, layer.transposed, layer.calibrated, layer.dtype, layer.method, layer.outcome)
    return (place, *same, layer.reason)


def report_table(report: Report) -> str:
    """Show what was done: a row for each group of similar layers, what was kept and why, and the sums."""
    groups = group_layers(report.layers)
    totals = report.totals
    rows = [
        (
            *_cells(group, _ranks(x.rank for x in group.layers)),
            f"{group.saved:.1%}",
            *_errors(group.layers, totals),
        )
        for group in groups
        if group.first.outcome == "factored"
    ]
    return page(
        wrapped(_title(report)),
        columns(("layers", "n", "shape", "method", "rank", "saved", *_heads(totals)), rows),
        _kept(groups),
        _sums(totals),
        wrapped(
            f"{totals.layers_factored} factored with a relative error of {totals.relative_error:.4g}, "
            f"{totals.layers_kept} {_fate(report.layers)}, in {totals.seconds:.1f} s"
        )
        + (wrapped(_legend(totals)) if rows else []),
        wrapped(report.how_to_load) if report.how_to_load else [],
        _warnings(report.warnings),
    )


def plan_table(plan: PlanDocument) -> str:
    """Show what would be done, in the same form."""
    groups = group_layers(plan.layers)
    rows = [
        (*_cells(group, _planned_ranks(group.layers)), _planned_saving(group))
        for group in groups
        if group.first.outcome == "factored"
    ]
    totals = plan.totals
    open_ranks = "the spectra decide the ranks within these bounds; the sums are upper bounds"
    return page(
        wrapped(f"plan for {plain(plan.checkpoint or 'the headers')}"),
        columns(("layers", "n", "shape", "method", "rank", "saved"), rows),
        _kept(groups),
        _sums(totals),
        wrapped(f"{totals.layers_factored} to be factored, {totals.layers_kept} to be {_fate(plan.layers)}")
        + ([] if totals.exact else wrapped(open_ranks)),
        _warnings(plan.warnings),
    )


def _title(report: Report) -> str:
    job = f"job {plain(report.job_id)}" if report.job_id else "local work"
    rank, method = report.spec.get("rank"), report.spec.get("method")
    methods = " or ".join(method) if isinstance(method, list) else str(method)
    rule = ""
    if isinstance(rank, dict):
        rule = " at " + " ".join(f"{kind} {value}" for kind, value in rank.items())
    elif rank is not None:
        rule = f" at rank {rank}"
    overrides = len(report.spec.get("overrides", ()))
    more = f" with {overrides} overrides" if overrides else ""
    device = report.environment.get("device", "an unnamed device")
    return plain(f"{job}: {methods}{rule}{more}, on {device}, {report.created_at}")


def _cells(group: Group[L], rank: str) -> tuple[str, ...]:
    first = group.first
    return (plain(group.name), str(len(group.layers)), _shape(first.shape), first.method, rank)


def _ranks(ranks: Iterable[int | None]) -> str:
    known = {rank for rank in ranks if rank}  # A form without factors has rank 0.
    return _span(min(known), max(known)) if known else "-"


def _planned_ranks(layers: Sequence[PlannedLayer]) -> str:
    bounds = [layer.rank_bounds for layer in layers if layer.rank_bounds]
    if not bounds:
        return _ranks(layer.rank for layer in layers)
    return _span(min(bound.least for bound in bounds), max(bound.most for bound in bounds))


def _planned_saving(group: Group[PlannedLayer]) -> str:
    return "-" if any(layer.rank_bounds for layer in group.layers) else f"{group.saved:.1%}"


def _errors(layers: Sequence[LayerReport], totals: Totals) -> tuple[str, ...]:
    """Return the cells below `_heads`."""
    if totals.weighted_error is None:
        worst = max(layers, key=lambda layer: layer.relative_error or 0.0)
        return _error(worst.relative_error), _error(worst.optimal_error)
    worst = max(layers, key=lambda layer: layer.weighted_error or layer.relative_error or 0.0)
    errors = _error(worst.relative_error), _error(worst.weighted_error)
    if totals.predicted_loss is None:
        best = worst.optimal_error if worst.weighted_error is None else worst.optimal_weighted_error
        return *errors, _error(best)
    losses = [layer.predicted_loss for layer in layers if layer.predicted_loss is not None]
    return *errors, _error(sum(losses) if losses else None)


def _heads(totals: Totals) -> tuple[str, ...]:
    if totals.weighted_error is None:
        return ("error", "best")
    return ("error", "outputs", "best" if totals.predicted_loss is None else "loss")


def _legend(totals: Totals) -> str:
    over = totals.error_over_optimal
    whole = "" if over is None else f"; over all layers {over:.4g} times the best possible error"
    if totals.weighted_error is None:
        return f"error, best: of the row's worst layer, and the best possible at its rank{whole}"
    if totals.predicted_loss is not None:
        return (
            "error, outputs: of the row's worst layer, of its weight and of its outputs; of all outputs "
            f"{totals.weighted_error:.4g}; loss: the predicted rise of the loss, in total "
            f"{totals.predicted_loss:.4g}"
        )
    return (
        "error, outputs, best: of the row's worst layer, of its weight and of its outputs, "
        f"and the best possible at its rank; of all outputs {totals.weighted_error:.4g}{whole}"
    )


def _fate(layers: Sequence[Layer]) -> str:
    """Say what becomes of layers that are not factored: an adapter has no place for dense weights."""
    is_adapter = any(x.outcome == "kept" and x.parameters_after < x.parameters_before for x in layers)
    return "left out" if is_adapter else "kept dense"


def _kept(groups: Sequence[Group[L]]) -> list[str]:
    """List the layers that stay dense under each reason."""
    texts = schema()["reasons"]
    lines: list[str] = []
    kept = [group for group in groups if group.first.outcome == "kept"]
    for reason in dict.fromkeys(group.first.reason for group in kept):
        text = f": {texts[reason]}" if reason in texts else ""
        fate = _fate([group.first for group in kept])
        lines += wrapped(plain(f"{fate}, {reason}") + text)
        lines += [_kept_line(group) for group in kept if group.first.reason == reason]
    return lines


def _kept_line(group: Group[L]) -> str:
    count = f" ({len(group.layers)}, {_shape(group.first.shape)})"
    return f"  {cut(plain(group.name), WIDTH - len(count) - 2)}{count}"


def _sums(totals: Totals | PlanTotals) -> list[str]:
    rows = [
        (
            what,
            f"{before:,}",
            f"{after:,}",
            f"{1 - after / before:.1%}" if before else "-",
            f"{before / after:.2f}" if after else "-",
        )
        for what, before, after in (
            ("parameters", totals.parameters_before, totals.parameters_after),
            ("bytes", totals.bytes_before, totals.bytes_after),
        )
    ]
    return columns(("whole checkpoint", "before", "after", "saved", "factor"), rows)


def _warnings(warnings: Iterable[str]) -> list[str]:
    return [line for warning in warnings for line in wrapped(f"warning: {plain(warning)}")]


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}..{most}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:#.3g}"
