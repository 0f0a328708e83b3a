"""What kernels.py measured, as a table in Markdown."""

from __future__ import annotations

from typing import Any

from reporting import scheme


def table(document: dict[str, Any]) -> str:
    """A row for each variant of each group of operators."""
    lines = ["| operators | variant | median, ms | min | max |", "| --- | --- | --: | --: | --: |"]
    for group, variants in document["milliseconds"].items():
        for variant, figures in variants.items():
            cells = (f"{figures[name]:.2f}" for name in ("median", "min", "max"))
            lines.append(f"| {group.replace(' 1 tokens', ' 1 token')} | {scheme(variant)} | {' | '.join(cells)} |")
    return "\n".join(lines)
