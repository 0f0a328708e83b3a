"""What this machine can do with a bundle, and what it will: one look at everything that speed and memory depend on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .bundle.checksums import damaged_files
from .bundle.manifest import GRAPHS, Manifest, read_manifest
from .bundle.sessions import products_saturate, telemetry_is_off
from .errors import TinyGPTVError
from .system.machine import Kernels, Memory, Processor, int8_kernels, memory, processor
from .tuning.find import Tuned, cache_home, is_intact, key_of, read_index

PACKAGES = ("tinygptv", "onnxruntime", "numpy", "pillow", "tokenizers")
PROCESS_BYTES = 120_000_000
"""Python, numpy and onnxruntime by themselves."""
PACKING_OVERHEAD = 1.07
"""Packed weights over weights as they are in the bundle (measured: 1.01 to 1.06)."""
TYPICAL_POSITIONS = 512
"""Of a question about an image and its answer: what the KV cache is reckoned for."""


@dataclass(frozen=True)
class Need:
    """Memory for one question about an image, estimated, in bytes."""

    memory: str
    """``default`` or ``low``, as for :meth:`TinyGPTV.load`."""
    peak: int
    """At the most at once, weights included."""
    unbacked: int
    """Of it, what no file backs: the rest can be read again from the disk, if slowly."""
    fits: bool
    """Whether ``peak`` is available now."""


@dataclass(frozen=True)
class TunedState:
    """One place where a tuned copy may be."""

    folder: str
    usable: bool
    reason: str
    """Why it is not; empty if it is."""


@dataclass(frozen=True)
class BundleReport:
    """A bundle that can be read."""

    folder: str
    name: str
    stage: int
    precision: dict[str, str]
    """Of each graph."""
    bytes: int
    tuned: tuple[TunedState, ...]
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class Report:
    """What :func:`examine` found."""

    cpu: Processor
    int8: Kernels
    int8_saturates: bool
    """Whether products of uint8 and int8 would overflow, so that uint8 weights are used instead (tried out)."""
    memory: Memory
    versions: dict[str, str]
    python: str
    threads: int
    """That will compute."""
    telemetry_off: bool
    bundle: BundleReport | None
    problems: tuple[str, ...]
    """What stands in the way of an answer; none if it is empty."""
    advice: tuple[str, ...]


def examine(folder: Path) -> Report:
    """Look at this machine and a bundle; every file of the bundle is read and compared with its SHA-256.

    Args:
        folder: The bundle.
    """
    telemetry_off = telemetry_is_off()  # before anything imports onnxruntime
    cpu, mem = processor(), memory()
    problems: list[str] = []
    advice: list[str] = []
    bundle = None
    try:
        bundle = _bundle(folder, mem, problems)
    except (TinyGPTVError, OSError) as error:
        problems.append(str(error))
    else:
        default, low = bundle.needs
        if not low.fits:
            problems.append(
                f"about {low.peak / 1e9:.1f} GB of memory are needed (--memory low), {mem.available / 1e9:.1f} GB are "
                "available: close other programs"
            )
        elif not default.fits:
            advice.append("use --memory low: with all graphs open at once the bundle does not fit in free memory")
        if not any(place.usable for place in bundle.tuned):
            advice.append("tinygptv tune lets weights be mapped from the disk instead of filling memory")
    if not telemetry_off:
        advice.append("set ORT_DISABLE_TELEMETRY=1 before onnxruntime is imported")
    return Report(
        cpu=cpu,
        int8=int8_kernels(cpu),
        int8_saturates=products_saturate(),
        memory=mem,
        versions={package: version(package) for package in PACKAGES},
        python=sys.version.split()[0],
        threads=cpu.cores,
        telemetry_off=telemetry_off,
        bundle=bundle,
        problems=tuple(problems),
        advice=tuple(advice),
    )


def _bundle(folder: Path, mem: Memory, problems: list[str]) -> BundleReport:
    manifest = read_manifest(folder)
    if damaged := damaged_files(folder, manifest.files):
        problems.append(f"{', '.join(damaged)} of {folder} is damaged; copy the bundle again")
    key = key_of(folder)
    places = []
    for home in (folder, cache_home(key)):
        found = read_index(home, manifest, key)
        intact = isinstance(found, Tuned) and is_intact(found, manifest)
        reason = found if isinstance(found, str) else "" if intact else "damaged: run tinygptv tune again"
        places.append(TunedState(str(home), intact, reason))
        if isinstance(found, Tuned):
            if not intact:
                problems.append(f"the tuned copy in {home} is damaged: run tinygptv tune again")
            break  # the first that fits is used
    is_tuned = places[-1].usable
    return BundleReport(
        folder=str(folder),
        name=manifest.name,
        stage=manifest.stage,
        precision={name: manifest.graphs[name].precision for name in GRAPHS},
        bytes=sum(record.size for record in manifest.files),
        tuned=tuple(places),
        needs=tuple(_need(manifest, mode, is_tuned, mem) for mode in ("default", "low")),
    )


def _need(manifest: Manifest, mode: str, is_tuned: bool, mem: Memory) -> Need:
    sizes = {record.name: record.size for record in manifest.files}
    weights = [int(sizes[manifest.graphs[name].data] * PACKING_OVERHEAD) for name in GRAPHS]
    vision, language = manifest.architecture.vision, manifest.architecture.language
    tokens = vision.num_tokens
    seeing = 8 * tokens * (vision.num_attention_heads * tokens + vision.intermediate_size)
    cached = 4 * language.num_hidden_layers * language.hidden_size * TYPICAL_POSITIONS
    work = PROCESS_BYTES + seeing + cached
    held = sum(weights) if mode == "default" else max(weights)
    peak = held + work
    return Need(mode, peak, work if is_tuned else peak, peak <= mem.available)


def render(report: Report) -> str:
    """The report for a person, a line for each thing."""
    cpu, mem, bundle = report.cpu, report.memory, report.bundle
    limit = f", this container's limit {mem.limit / 1e9:.1f}" if mem.limit else ""
    rows = [
        ("CPU", f"{cpu.name} ({cpu.architecture})"),
        ("features", " ".join(cpu.features) or "none that matter, or none that this system tells of"),
        ("int8 kernels", f"{report.int8.name}: {report.int8.note}"),
        (
            "int8 products",
            "would saturate at 16 bits here: uint8 weights are used instead, which is slower"
            if report.int8_saturates
            else "exact (tried out)",
        ),
        ("threads", f"{report.threads} (physical cores; {cpu.threads} logical ones are ours to use)"),
        ("memory", f"{mem.available / 1e9:.1f} GB available of {mem.total / 1e9:.1f} GB{limit}"),
        ("versions", f"Python {report.python}, " + ", ".join(f"{k} {v}" for k, v in report.versions.items())),
        ("telemetry", "off" if report.telemetry_off else "on: onnxruntime was imported before tinygptv"),
    ]
    if bundle is not None:
        precisions = " ".join(f"{name} {precision}" for name, precision in bundle.precision.items())
        rows += [
            ("bundle", f"{bundle.folder} ({bundle.name}, stage {bundle.stage}, {bundle.bytes / 1e9:.2f} GB)"),
            ("precision", precisions),
            *(("tuned", f"{place.folder}: {place.reason or 'yes, will be used'}") for place in bundle.tuned),
            *(
                (
                    f"memory {need.memory}",
                    f"needs about {need.peak / 1e9:.1f} GB ({need.unbacked / 1e9:.1f} GB not backed by files): "
                    + ("fits" if need.fits else "does not fit"),
                )
                for need in bundle.needs
            ),
        ]
    rows += [("advice", text) for text in report.advice]
    rows += [("problem", text) for text in report.problems] or [("answers", "can be had")]
    return "\n".join(f"{name:>14}  {text}" for name, text in rows)
