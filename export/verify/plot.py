"""A plot of the comparison: how errors add up from layer to layer, and what each layer adds."""

from __future__ import annotations

import io
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .agreement import LayerAgreement
from .verification import Verification

BLUE, ORANGE = "#0072b2", "#d55e00"
"""Colours of Okabe and Ito's palette, which colour-blind people can distinguish."""
DECADES = 3
"""Decades shown below the largest value: nearly exact layers, such as a norm in float32, fall below the panel."""
CROWDED, STRIDE = 45, 4
"""Above the first number of rows, only every fourth (the second number) of the numbered ones is labelled."""


def draw(found: Verification) -> bytes:
    """Draw a PNG of two panels, both over the layers in the order of computation."""
    layers = found.agreement.layers
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    cosines, errors = figure.subplots(2, 1, sharex=True)
    _line(cosines, [1 - layer.cosine_worst for layer in layers], ORANGE, "worst token")
    _line(cosines, [1 - layer.cosine_mean for layer in layers], BLUE, "mean")
    cosines.set_ylabel("1 - cosine")
    _line(errors, [layer.relative_error for layer in layers], BLUE, "added up from the photo or text on")
    _line(errors, [layer.own_error for layer in layers], ORANGE, "of this layer alone")
    errors.set_ylabel("relative error")
    for axes in (cosines, errors):
        drawn = [float(value) for line in axes.lines for value in line.get_ydata() if 0 < float(value) < math.inf]
        largest = max(drawn, default=1.0)
        axes.set_yscale("log")
        axes.set_ylim(largest / 10**DECADES, 2 * largest)
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color="#dddddd")
        axes.legend(loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    _mark_graphs(cosines, errors, layers)
    errors.set_xlim(-0.7, len(layers) - 0.3)
    figure.suptitle(f"{found.bundle.name} ({found.precision}) against the torch reference")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _line(axes: Axes, values: list[float], colour: str, label: str) -> None:
    axes.plot(values, color=colour, label=label, marker=".", linewidth=1.2)


def _mark_graphs(cosines: Axes, errors: Axes, layers: tuple[LayerAgreement, ...]) -> None:
    """Draw a band for every other graph with its name on top, and as many rows' names below as fit."""
    graphs = [layer.graph for layer in layers]
    for number, graph in enumerate(dict.fromkeys(graphs)):
        start, count = graphs.index(graph), graphs.count(graph)
        for axes in (cosines, errors):
            if number % 2:
                axes.axvspan(start - 0.5, start + count - 0.5, color="#f2f2f2", zorder=0)
        middle = start + (count - 1) / 2
        cosines.text(middle, 1.02, graph, transform=cosines.get_xaxis_transform(), ha="center", va="bottom")
    stride = STRIDE if len(layers) > CROWDED else 1
    numbers = [layer.row.rpartition(" ")[2] for layer in layers]
    shown = [i for i, number in enumerate(numbers) if not number.isdigit() or int(number) % stride == 0]
    errors.set_xticks(shown, [layers[i].row for i in shown], rotation=90, fontsize=8)
