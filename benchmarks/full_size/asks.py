"""What measure.py found, as text."""

from __future__ import annotations

import statistics
from typing import Any

MODES = {
    "default": "`tinygptv ask`",
    "low memory": "`--memory low`",
    "tuned": "tuned",
    "tuned, low memory": "tuned, `--memory low`",
    "float32": "the same model in fp32 graphs",
}
COLUMNS = {
    "load": ("load, s", 1),
    "image_encode": ("image, s", 1),
    "prefill": ("prompt, s", 1),
    "time_to_first_token": ("first token, s", 1),
    "decode_tokens_per_second": ("tokens/s", 1),
    "process": ("whole process, s", 1),
    "peak_rss_bytes": ("peak, GB", 1e9),
    "anonymous_bytes": ("of it not to be taken back, GB", 1e9),
}
"""Figures, what they are called in the table, and their unit."""


def samples(document: dict[str, Any], mode: str) -> dict[str, list[float]]:
    """Every sample of each figure. Beside float32 it was asked by default as well: those count too."""
    modes = [name for name in (mode, "beside float32") if name in document["ask"]] if mode == "default" else [mode]
    found = [document["ask"][name] for name in modes]
    return {name: [sample for figure in found for sample in figure[name]["samples"]] for name in found[0]}


def figures(document: dict[str, Any], mode: str) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in samples(document, mode).items()}


def table(document: dict[str, Any]) -> str:
    """Every mode that was measured, in Markdown."""
    lines = [
        f"| a question about a photo | {' | '.join(name for name, _ in COLUMNS.values())} |",
        f"| --- |{' --: |' * len(COLUMNS)}",
    ]
    for mode, name in MODES.items():
        if mode in document["ask"]:
            found = figures(document, mode)
            cells = [f"{found[figure] / unit:.1f}" for figure, (_, unit) in COLUMNS.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def prose(document: dict[str, Any]) -> str:
    """The figures as a paragraph for a reader of the README."""
    default, low, tuned = (figures(document, mode) for mode in ("default", "low memory", "tuned"))
    made, machine = document["export"]["calibrated"], document["machine"]
    return (
        f"At the published sizes ({document['bundle']['source_bytes'] / 1e9:.1f} GB of files, random weights), "
        f"{document['threads']} threads of {machine['cpu']}, medians of {len(samples(document, 'default')['process'])} "
        f"runs with onnxruntime {machine['onnxruntime']}: the export takes {made['seconds']:.0f} s and "
        f"{made['peak_rss_bytes'] / 1e9:.1f} GB of memory and writes {document['bundle']['bytes'] / 1e9:.1f} GB; "
        f"`tinygptv ask` then loads in {default['load']:.1f} s, has the first token of its answer about a photo "
        f"{default['time_to_first_token']:.1f} s later, writes {default['decode_tokens_per_second']:.1f} tokens/s, "
        f"and peaks at {default['peak_rss_bytes'] / 1e9:.1f} GB. With `--memory low` it peaks at "
        f"{low['peak_rss_bytes'] / 1e9:.1f} GB; tuned, it loads in {tuned['load']:.1f} s, with "
        f"{tuned['anonymous_bytes'] / 1e9:.1f} GB of memory that the system cannot take back.\n"
    )
