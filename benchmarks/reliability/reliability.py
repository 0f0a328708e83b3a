"""What the long runs of the fuzzer, the soak, the fault tests and the largest pictures found, as tables in Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import wrapped

_UNITS = {"resident_bytes": "MB", "anonymous_bytes": "MB"}


def fuzz(document: dict[str, Any]) -> str:
    """A row for each kind of input."""
    kinds = document["kinds"]
    lines = ["| kind of input | inputs | of these read | findings |", "| --- | --: | --: | --: |"]
    lines += [
        f"| {name.replace('-', ' ')} | {one['inputs']:,.0f} | {one['taken']:,.0f} | {one['findings']:,.0f} |"
        for name, one in kinds.items()
    ]
    total = {what: sum(one[what] for one in kinds.values()) for what in ("inputs", "taken", "findings")}
    lines.append(f"| all | {total['inputs']:,.0f} | {total['taken']:,.0f} | {total['findings']:,.0f} |")
    return "\n".join(lines)


def soak(document: dict[str, Any]) -> str:
    """What was done in a sentence, and a row for each figure of the server."""
    done = document["done"]
    words = (
        f"{document['date']}, {document['minutes']:.0f} minutes, {document['clients']} clients: {done['ask']:,} "
        f"questions about {document['pictures']:,} pictures, {done['cancel']:,} streams closed before their end, "
        f"{done['send_nonsense']:,} malformed requests, {done['stay_silent']:,} silent connections, "
        f"{done['look']:,} health checks. Wrong answers: {len(document['wrong'])}."
    )
    lines = [
        wrapped(words),
        "",
        "| the server's | after the warm-up | at the end | at rest |",
        "| --- | --: | --: | --: |",
    ]
    for name, found in document["flat"].items():
        scale = 1e6 if name in _UNITS else 1
        figures = (found["after_warm_up"], found["at_the_end"], document["at_rest"][name])
        cells = " | ".join(f"{figure / scale:,.0f}" for figure in figures)
        what = name.removesuffix("_bytes") + f" memory, {_UNITS[name]}" if name in _UNITS else name
        lines.append(f"| {what} | {cells} |")
    return "\n".join(lines)


def faults(document: dict[str, Any]) -> str:
    """A row for each write path, and how long all of them take."""
    paths = document["paths"]
    rows = {
        name: (one["calls"], one["points"], sum(one["runs"].values()), len(one["findings"]))
        for name, one in paths.items()
    }
    rows["all"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    lines = ["| write path | calls | of these failed | runs | findings |", "| --- |" + " --: |" * 4]
    lines += [f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |" for name, cells in rows.items()]
    hours = sum(one["seconds"] for one in paths.values()) / 3600
    return "\n".join([*lines, "", f"The sweeps took {hours:.0f} hours in all; some of them ran at the same time."])


def large_pictures(document: dict[str, Any]) -> str:
    """A row for each kind of picture."""
    kinds = document["kinds"]
    most = {what: max(one[f"{what}_bytes"] for one in kinds.values()) / 1e9 for what in ("prepare", "whole")}
    lines = [
        f"{document['date']}, Pillow {document['pillow']}: at most {most['prepare']:.1f} GB to prepare a picture, "
        f"{most['whole']:.1f} GB until it is there as RGB.",
        "",
        "| the largest | megapixels | to prepare it, GB | bytes a pixel | as RGB, GB |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, one in kinds.items():
        prepared = one["prepare_bytes"]
        cells = (f"{one['pixels'] / 1e6:.0f}", f"{prepared / 1e9:.2f}", f"{prepared / one['pixels']:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {one['whole_bytes'] / 1e9:.2f} |")
    return "\n".join(lines)
