"""The chart of compare.py's figures: one bar a contender, in a panel each for speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from contenders import OURS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

OURS_COLOUR, PEER_COLOUR = "#D55E00", "#0072B2"
"""Vermilion and blue of Okabe and Ito's palette, which colour-blind readers can tell apart."""
FILE_BACKED_ALPHA = 0.35

Document = Mapping[str, Any]


def draw(document: Document, path: Path) -> None:
    """Write the PNG; panels of what was not measured are left out."""
    figures = document["figures"]
    measured = [key for key in document["names"] if key in figures]
    decoders = [key for key in measured if "decode_step_seconds" in figures[key]]
    encoders = [key for key in measured if "encode_seconds" in figures[key]]
    panels: list[tuple[str, Sequence[str], Callable[[Axes, Sequence[str]], None]]] = []

    def speed(name: str, convert: Callable[[float], float], digits: int) -> Callable[[Axes, Sequence[str]], None]:
        def fill(axes: Axes, keys: Sequence[str]) -> None:
            found = [figures[key][name] for key in keys]
            values = [convert(figure["median"]) for figure in found]
            bars = axes.barh(range(len(keys)), values, color=[_colour(key) for key in keys])
            axes.bar_label(bars, fmt=f"%.{digits}f", padding=4)

        return fill

    def memory(axes: Axes, keys: Sequence[str]) -> None:
        left = [0.0] * len(keys)
        for name, alpha in (("anonymous_bytes", 1.0), ("file_bytes", FILE_BACKED_ALPHA)):
            values = [figures[key][name]["median"] / 1e9 for key in keys]
            bars = axes.barh(range(len(keys)), values, left=left, color=[_colour(key) for key in keys], alpha=alpha)
            left = [start + value for start, value in zip(left, values, strict=True)]
        axes.bar_label(bars, labels=[f"{total:.1f}" for total in left], padding=4)
        shades = [Patch(color="0.3"), Patch(color="0.3", alpha=FILE_BACKED_ALPHA)]
        axes.legend(shades, ["anonymous", "file-backed"], loc="upper right", frameon=False)

    if decoders:
        panels += [
            ("Decode, tokens/s (more is better)", decoders, speed("decode_step_seconds", lambda s: 1 / s, 1)),
            ("Prompt of 70, tokens/s (more is better)", decoders, speed("prefill_70_seconds", lambda s: 70 / s, 0)),
            ("Memory while decoding, GB (less is better)", decoders, memory),
        ]
    if encoders:
        panels.append(("Image of 448 px, seconds (less is better)", encoders, speed("encode_seconds", float, 1)))

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = 1.2 + 0.42 * max(len(keys) for _, keys, _ in panels)
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        picture = Figure(figsize=(7.2 * columns, height * rows), layout="constrained")
        grid = picture.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, keys, fill) in zip(grid, panels, strict=False):
            fill(axes, keys)
            axes.set_yticks(range(len(keys)), [document["names"][key] for key in keys])
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.set_title(title, loc="left", fontweight="bold")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        picture.savefig(path, dpi=110)


def _colour(key: str) -> str:
    return OURS_COLOUR if key in {contender.key for contender in OURS.values()} else PEER_COLOUR
