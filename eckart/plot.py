"""A report as a figure of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eckart.types import LayerReport, Report

# So many names can be read below an axis.
NAMED_LAYERS = 48


def report_figure(report: Report) -> Figure:
    """Draw each layer's error beside the best possible one, and the spectra with the ranks marked."""
    try:
        from matplotlib import pyplot as plt
    except ModuleNotFoundError as error:
        raise missing_extra(error, "plot") from error
    figure, (errors, spectra) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    # The caller owns the figure: pyplot would show it a second time, and never free it.
    plt.close(figure)
    _draw_errors(errors, report.layers)
    _draw_spectra(spectra, report.layers)
    return figure


def _draw_errors(axes: Axes, layers: tuple[LayerReport, ...]) -> None:
    pairs = [layer.error_and_optimum for layer in layers]
    nothing = float("nan")
    places = range(1, len(layers) + 1)
    for name, column, mark in (("error", 0, "o"), ("best possible at this rank", 1, "_")):
        values = [nothing if (value := pair[column]) is None else value for pair in pairs]
        axes.plot(places, values, mark, label=name, markersize=4 if mark == "o" else 8)
    is_calibrated = any(layer.weighted_error is not None for layer in layers)
    axes.set(
        title="Error by layer",
        xlabel="layer",
        ylabel="error of the outputs" if is_calibrated else "relative error",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    if len(layers) <= NAMED_LAYERS:
        # Names come from files, and `$` would begin a formula.
        names = [layer.name for layer in layers]
        axes.set_xticks(places, names, rotation=90, fontsize=6, parse_math=False)


def _draw_spectra(axes: Axes, layers: tuple[LayerReport, ...]) -> None:
    for layer in layers:
        values = layer.singular_values or ()
        indices = [index + 1 for index in layer.singular_value_indices or range(len(values))]
        (line,) = axes.plot(indices, values, linewidth=0.9, alpha=0.7)
        if layer.rank in indices:
            axes.plot(
                [layer.rank], [values[indices.index(layer.rank)]], "o", color=line.get_color(), markersize=3
            )
    axes.set(title="Spectra, with the ranks marked", xlabel="index", ylabel="singular value", yscale="log")
