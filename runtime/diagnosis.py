"""Reports what a bundle can do on this machine: everything that speed and memory depend on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .bundle.checksums import damaged_files
from .bundle.manifest import DECODER, GRAPHS, read_manifest
from .bundle.sessions import import_onnxruntime, products_saturate, telemetry_is_off
from .errors import TinyGPTVError
from .memory_needs import CacheNeed, Need, Tier, caches_of, need_of, tiers_of
from .system.machine import Kernels, Processor, SystemMemory, int8_kernels, processor, system_memory
from .tuning.find import Tuned, homes_of, is_intact, read_index

PACKAGES = ("tinygptv", "onnxruntime", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True)
class TunedState:
    """One folder in which a tuned copy may be."""

    folder: str
    usable: bool
    reason: str
    """Why there is no copy that fits; empty if there is one."""


@dataclass(frozen=True)
class BundleDiagnosis:
    """The diagnosis of a readable bundle."""

    folder: str
    name: str
    family: str
    stage: int | None
    """Training stage of TinyGPT-V; None for the other families."""
    precision: dict[str, str]
    """The precision of each graph."""
    bytes: int
    tuned: tuple[TunedState, ...]
    needs: tuple[Need, ...]
    tiers: tuple[Tier, ...]
    """Possible precisions, the most exact first; empty for an fp32 bundle."""
    context: int
    """Context length in positions, including image tokens."""
    image_tokens: int
    """Number of positions of one picture."""
    kv_cache: tuple[CacheNeed, ...]
    """KV cache sizes for one to three pictures, as many as fit in the context."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`diagnose`."""

    cpu: Processor
    int8: Kernels
    int8_saturates: bool
    """Whether products of uint8 and int8 would overflow, so that uint8 weights are used instead (tested)."""
    memory: SystemMemory
    versions: dict[str, str]
    python: str
    threads: int
    """Number of threads that will be used."""
    telemetry_off: bool
    bundle: BundleDiagnosis | None
    problems: tuple[str, ...]
    """Problems that prevent answers; empty if there are none."""
    advice: tuple[str, ...]


def diagnose(folder: Path) -> Diagnosis:
    """Look at this machine and a bundle; every file of the bundle is read and compared with its SHA-256.

    Args:
        folder: The bundle.
    """
    telemetry_off = telemetry_is_off()  # before anything imports onnxruntime
    import_onnxruntime()
    cpu, mem = processor(), system_memory()
    problems: list[str] = []
    advice: list[str] = []
    bundle = None
    try:
        bundle = _diagnose_bundle(folder, mem, problems)
    except (TinyGPTVError, OSError) as error:
        problems.append(str(error))
    else:
        default, low = bundle.needs
        if mem.available is None:
            advice.append("check that there is enough memory: this system does not say how much is free")
        elif not low.fits:
            problems.append(
                f"about {low.peak / 1e9:.1f} GB of memory are needed (--memory low), {mem.available / 1e9:.1f} GB are "
                "available: close other programs"
            )
        elif not default.fits:
            advice.append("use --memory low: with all graphs open at once the bundle does not fit in free memory")
        if (better := _better_tier(bundle)) is not None:
            advice.append(
                f"a bundle exported with --precision {better.precision} would suit this memory: it needs about "
                f"{better.peak / 1e9:.1f} GB" + (", and is more exact" if better.precision == "int8" else "")
            )
        if not any(place.usable for place in bundle.tuned):
            advice.append("tinygptv tune lets weights be mapped from the disk instead of filling memory")
    if not telemetry_off:
        advice.append("set ORT_DISABLE_TELEMETRY=1 before onnxruntime is imported")
    return Diagnosis(
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


def _better_tier(bundle: BundleDiagnosis) -> Tier | None:
    """The most exact precision that fits with all graphs open, if it differs from the bundle's own."""
    best = next((tier for tier in bundle.tiers if tier.fits), None)
    return None if best is None or best.precision == bundle.precision[DECODER] else best


def _diagnose_bundle(folder: Path, mem: SystemMemory, problems: list[str]) -> BundleDiagnosis:
    manifest = read_manifest(folder)
    if damaged := damaged_files(folder, manifest.files):
        problems.append(f"{', '.join(damaged)} of {folder} is damaged; copy the bundle again")
    places = []
    for home in homes_of(folder):
        found = read_index(home, folder, manifest)
        intact = isinstance(found, Tuned) and is_intact(found, manifest)
        reason = found if isinstance(found, str) else "" if intact else "damaged: run tinygptv tune again"
        places.append(TunedState(str(home), intact, reason))
        if isinstance(found, Tuned):
            if not intact:
                problems.append(f"the tuned copy in {home} is damaged: run tinygptv tune again")
            break  # the first that fits is used
    is_tuned = places[-1].usable
    return BundleDiagnosis(
        folder=str(folder),
        name=manifest.name,
        family=manifest.family,
        stage=manifest.stage,
        precision={name: manifest.graphs[name].precision for name in GRAPHS},
        bytes=sum(record.size for record in manifest.files),
        tuned=tuple(places),
        needs=tuple(need_of(manifest, mode, is_tuned, mem) for mode in ("default", "low")),
        tiers=tuple(tiers_of(manifest, mem)),
        context=manifest.contract.context,
        image_tokens=manifest.contract.image_tokens,
        kv_cache=caches_of(manifest.contract),
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def render(report: Diagnosis) -> str:
    """The report as text, one item a line."""
    cpu, mem, bundle = report.cpu, report.memory, report.bundle
    available = "unknown how much is" if mem.available is None else f"{mem.available / 1e9:.1f} GB"
    total = "" if mem.total is None else f" of {mem.total / 1e9:.1f} GB"
    limit = f", this container's limit {mem.limit / 1e9:.1f} GB" if mem.limit else ""
    features = " ".join(cpu.features) or "none of those that matter for speed"
    if not cpu.all_features:
        features += " (there may be more: this system does not report them all)"
    rows = [
        ("CPU", f"{cpu.name} ({cpu.architecture})"),
        ("features", features),
        ("int8 kernels", f"{report.int8.name}: {report.int8.note}"),
        (
            "int8 products",
            "would saturate at 16 bits here: uint8 weights are used instead, which is slower"
            if report.int8_saturates
            else "exact (tested)",
        ),
        ("threads", f"{report.threads} (physical cores; {cpu.threads} logical ones are available)"),
        ("memory", f"{available} available{total}{limit}"),
        ("versions", f"Python {report.python}, " + ", ".join(f"{k} {v}" for k, v in report.versions.items())),
        ("telemetry", "off" if report.telemetry_off else "on: onnxruntime was imported before tinygptv"),
    ]
    if bundle is not None:
        stage = "" if bundle.stage is None else f", stage {bundle.stage}"
        caches = ", ".join(
            f"{cache.pictures} picture{'s' * (cache.pictures > 1)} {cache.bytes / 1e6:,.1f} MB"
            for cache in bundle.kv_cache
        )
        precisions = " ".join(f"{name} {precision}" for name, precision in bundle.precision.items())
        rows += [
            ("bundle", f"{bundle.folder} ({bundle.name}, {bundle.family}{stage}, {_size(bundle.bytes)})"),
            ("precision", precisions),
            *(("tuned", f"{place.folder}: {place.reason or 'yes, will be used'}") for place in bundle.tuned),
            *(
                (
                    f"memory {need.memory}",
                    f"needs about {need.peak / 1e9:.1f} GB ({need.unbacked / 1e9:.1f} GB not backed by files): "
                    + {True: "fits", False: "does not fit", None: "whether it fits is unknown"}[need.fits],
                )
                for need in bundle.needs
            ),
            (
                "KV cache",
                f"{caches}, each with a question and its answer ({bundle.image_tokens} tokens a picture, context of "
                f"{bundle.context:,})",
            ),
        ]
    rows += [("advice", text) for text in report.advice]
    rows += [("problem", text) for text in report.problems] or [("answers", "yes")]
    return "\n".join(f"{name:>14}  {text}" for name, text in rows)
