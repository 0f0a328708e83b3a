"""The table of machines, from what run.py wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import wrapped

LEAST = {"image_embeds": 0.999, "prefill_logits": 0.998, "step_logits": 0.998}
"""Cosines that tests/test_golden.py asks of int8."""
Document = dict[str, Any]


def report(document: Document) -> str:
    """Markdown: what ran where, and how it compares with the machine that is not emulated."""
    native, *_ = machines = document["machines"]
    versions = ", ".join(f"{name} {found}" for name, found in native["versions"].items())
    asked = len(native["answers"])
    lines = [
        wrapped(
            f"{document['date']}, {versions}; {document['qemu']}. {asked} questions about "
            f"{len(native['captions'])} pictures to the demo model."
        ),
        "",
        "| machine | instructions | int8 kernels | answers | tuned: answers | tuned: weights packed | undone "
        "| captions | cosines, at least | as tests ask |",
        "| --- | --- | --- | --: | --: | --: | --- | --: | --- | --- |",
    ]
    lines += [_row(machine, native) for machine in machines]
    lines += ["", "| machine | int8 products | the same cosines without that |", "| --- | --- | --- |"]
    for machine in machines:
        if not machine["failure"]:
            guarded = "saturate: weights are taken as uint8" if machine["int8_saturates"] else "exact"
            found = [golden["unguarded"] for golden in machine["golden"].values() if "unguarded" in golden]
            lines.append(f"| {machine['name']} | {guarded} | {_cosines(found) if found else '-'} |")
    return "\n".join(lines)


def _row(machine: Document, native: Document) -> str:
    if machine["failure"]:
        return f"| {machine['name']} | | | did not run: {' '.join(machine['failure'].split())[-200:]} | | | | | | |"
    tuned, golden = machine["tuned"], [one["cosines"] for one in machine["golden"].values()]
    holds = all(one[name] >= least for one in golden for name, least in LEAST.items())
    cells = (
        machine["name"],
        " ".join(machine["doctor"]["cpu"]["features"]),
        machine["doctor"]["int8"]["name"],
        _same(machine["answers"], native["answers"]),
        _same(tuned["answers"], native["answers"]) if tuned["used"] else "not used",
        f"{tuned['packed']} of {tuned['weights']}",
        "to the bit" if tuned["undone"] else "**no**",
        _same(machine["captions"], native["captions"]),
        _cosines(golden),
        "yes" if holds else "**no**",
    )
    return f"| {' | '.join(cells)} |"


def _same(found: dict[str, str], expected: dict[str, str]) -> str:
    same = sum(found.get(key) == text for key, text in expected.items())
    return f"{same} of {len(expected)} the same"


def _cosines(found: list[dict[str, float]]) -> str:
    """The worst of all stages, of each kind."""
    return ", ".join(f"{name} {min(one[name] for one in found):.5f}" for name in LEAST)
