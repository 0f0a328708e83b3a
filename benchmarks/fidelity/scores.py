"""What measure.py found, as text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import scheme

Scores = dict[str, float]


def tables(document: Mapping[str, Mapping[str, Scores]]) -> str:
    """Two tables in Markdown."""
    lines = [
        "| vision transformer, scheme | mean token cosine | worst token | relative error |",
        "| --- | --- | --- | --- |",
    ]
    for name, scores in document["vision"].items():
        cells = f"{scores['mean_cosine']:.5f} | {scores['worst_cosine']:.4f} | {scores['relative_error']:.2%}"
        lines.append(f"| {scheme(name)} | {cells} |")
    lines += ["", "| language model, scheme | KL | same top token | perplexity |", "| --- | --- | --- | --- |"]
    for name, scores in document["language"].items():
        lines.append(
            f"| {scheme(name)} | {scores['kl']:.4f} ({scores['kl_low']:.4f} to {scores['kl_high']:.4f}) "
            f"| {scores['top_1_agreement']:.2%} ({scores['top_1_low']:.2%} to {scores['top_1_high']:.2%}) "
            f"| {scores['perplexity_change']:+.2%} |"
        )
    return "\n".join(lines)
