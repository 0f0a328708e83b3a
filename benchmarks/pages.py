"""Writes the tables of README.md, docs/ and benchmarks/ again from the results files.

    python benchmarks/pages.py

It measures nothing, and draws no chart. The table of easy_vqa is written by its own script.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).resolve().parent / name)
    for name in (".", "peers", "full_size", "fidelity", "machines", "reliability", "cluster")
)

import asks
import bundles
import engine
import kernel_table
import ran
import reliability
import render
import scores
import targets
from reporting import write_section
from tinygptv.export.verify.bounds import DEFAULTS
from tinygptv.export.verify.command import MEANINGS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCHMARKS, CLUSTER, FAITHFULNESS, RELIABILITY = (
    ROOT / "docs" / f"{page}.md" for page in ("benchmarks", "cluster", "faithfulness", "reliability")
)


def sections() -> Iterator[tuple[Path, str, str]]:
    """(file, name of the section, its text) of every table that is made from results alone."""
    peers, ceilings = _read("peers/results.json"), _read("peers/ceilings.json")
    yield HERE / "README.md", render.SECTION, render.report(peers, ceilings, "peers.png")
    for tier in ("int4", "int8_cache"):
        yield HERE / "README.md", f"peers-{tier}", render.report(_read(f"peers/{tier}.json"), ceilings)
    yield BENCHMARKS, "peers-summary", render.summary(peers)
    full_size = _read("full_size/results.json")
    yield ROOT / "README.md", "full-size", asks.summary(full_size)
    yield BENCHMARKS, "asks", asks.table(full_size)
    yield BENCHMARKS, "exports", asks.exports(full_size)
    yield BENCHMARKS, "measured-with", asks.measured_with(full_size)
    yield BENCHMARKS, "asks-zen4", asks.table(_read("full_size/results_zen4.json"))
    found = targets.read_rows()
    yield HERE / "README.md", targets.SECTION, targets.table(found)
    yield BENCHMARKS, "missed", targets.missed(found)
    yield HERE / "README.md", "bundles", bundles.report(_read("full_size/bundles.json"))
    yield HERE / "README.md", "kernels", kernel_table.table(_read("full_size/kernels.json"))
    yield HERE / "machines" / "README.md", "machines", ran.report(_read("machines/results.json"))
    fidelity = scores.tables(_read("fidelity/results.json"))
    for page in (HERE / "fidelity" / "README.md", FAITHFULNESS):
        yield page, "fidelity", fidelity
    yield FAITHFULNESS, "verify-bounds", verify_bounds()
    yield FAITHFULNESS, "verified", verified()
    for section in (reliability.fuzz, reliability.soak, reliability.faults, reliability.large_pictures):
        yield RELIABILITY, section.__name__, section(_read(f"reliability/{section.__name__}.json"))
    cluster = _read("cluster/results.json")
    yield CLUSTER, "cluster-memory", engine.memory(cluster)
    yield CLUSTER, "cluster-measured", engine.measured(cluster)
    yield CLUSTER, "cluster-kills", engine.kills(_read("cluster/kills.json"))
    yield CLUSTER, "cluster-costs", engine.costs(full_size, _read("full_size/int4.json"), _read("full_size/steps.json"))


def verify_bounds() -> str:
    """The bounds that `tinygptv-export verify` checks by default."""
    lines = [f"| option | what | {' | '.join(DEFAULTS)} |", f"| --- | --- |{' --- |' * len(DEFAULTS)}"]
    bounds = {precision: dataclasses.asdict(bound) for precision, bound in DEFAULTS.items()}
    for name, meaning in MEANINGS.items():
        side = "at most" if name.startswith("max_") else "at least"
        cells = (f"{side} {bound[name]:g}" for bound in bounds.values())
        meaning = meaning.replace("|", "\\|")  # which would end the cell
        lines.append(f"| `--{name.replace('_', '-')}` | {meaning} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verified() -> str:
    """What `tinygptv-export verify` found at the published sizes."""
    found = {tier: _read(f"full_size/verify/{tier}.json") for tier in ("int8", "int8_cache", "int4")}
    lines = [f"| | {' | '.join(found)} |".replace("_cache", ", int8 KV cache"), f"| --- |{' --: |' * len(found)}"]
    for number, bound in enumerate(found["int8"]["bounds"]):
        values = (f"{tier['bounds'][number]['value']:.6g}" for tier in found.values())
        lines.append(f"| `--{bound['name'].replace('_', '-')}` | {' | '.join(values)} |")
    lines.append(f"| all bounds hold | {' | '.join('yes' if tier['holds'] else '**no**' for tier in found.values())} |")
    memory = (f"{tier['seconds']:.0f} s, {tier['peak_rss_bytes'] / 1e9:.1f} GB" for tier in found.values())
    lines.append(f"| took | {' | '.join(memory)} |")
    return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    for file, section, text in sections():
        write_section(file, section, text)
