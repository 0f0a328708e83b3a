"""What every benchmark's report needs: the machine and versions it was made with, and its place in a Markdown file."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
"""Flags of Linux's /proc/cpuinfo that decide which int8 kernels run."""


def describe(packages: Sequence[str]) -> dict[str, object]:
    """CPU, its int8 instruction sets, cores, memory, and the versions of Python and ``packages``."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def describe_bundle(bundle: Path) -> dict[str, object]:
    """A bundle's size, and the hash of its manifest, which holds those of all other files."""
    return {
        "manifest_sha256": hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
        "bytes": sum(path.stat().st_size for path in bundle.iterdir()),
    }


def scheme(name: str) -> str:
    """The usual term for a quantisation scheme, by its name in the results files."""
    usual = {"rows": "per-channel", "one scale for all tokens": "per-channel, activations per-tensor"}
    text = re.sub(r"\b(?:blocks|groups of) (\d+)", r"group-wise (\1)", usual.get(name, name))
    return text.replace(", of 16 for lm_head", ", lm_head group-wise (16)")


def wrapped(text: str) -> str:
    """A paragraph or a list's item in lines of Markdown."""
    return textwrap.fill(
        text, 120, subsequent_indent="  " * text.startswith("- "), break_long_words=False, break_on_hyphens=False
    )


def write_section(file: Path, name: str, text: str) -> None:
    """Put ``text`` between the comments ``<!-- name: start -->`` and ``<!-- name: end -->`` of a Markdown file."""
    start, end = (f"<!-- {name}: {side} -->" for side in ("start", "end"))
    before, found_start, rest = file.read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise SystemExit(f"{file} has no {start} followed by {end}; put both where the text should go")
    file.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
