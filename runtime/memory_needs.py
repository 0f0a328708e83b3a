"""Estimates a bundle's memory needs from its manifest, and writes the advice if there is too little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .bundle.manifest import DECODER, GRAPHS, Contract, Manifest
from .errors import MemoryShortageError, is_memory_shortage
from .language.kv_cache import GROWTH
from .system.machine import SystemMemory, system_memory

PROCESS_BYTES = 120_000_000
"""Memory of Python, numpy and onnxruntime."""
PACKING_OVERHEAD = 1.07
"""Ratio of packed weights to the weights in the bundle (measured: 1.01 to 1.06)."""
TEXT_POSITIONS = 480
"""Positions of a question and its answer without pictures, for estimates of the KV cache."""
CAPTION_POSITIONS = 96
"""Typical positions of a caption and its prompt without the picture, for estimates of a batch's KV caches."""
DECODER_SHARE = {"int8": 1.0, "int4": 0.6}
"""Size of a decoder's weights by precision, relative to int8 (at Phi-2's sizes; the last layer is int8 in both)."""
MOST_PICTURES = 3
"""Maximum number of pictures in the report; more may fit in the context."""
CERTAIN = 0.9
"""Fraction of an estimate below which memory is certainly not enough."""
HELPFUL = 0.85
"""Fraction of the needed memory below which an alternative is worth recommending."""


@dataclass(frozen=True)
class Need:
    """Estimated memory for one question about one picture, in bytes."""

    memory: str
    """Memory mode: ``default`` or ``low``, as for :meth:`TinyGPTV.load`."""
    peak: int
    """Peak memory, including weights."""
    unbacked: int
    """The part not backed by a file: the rest can be read again from the disk, if slowly."""
    fits: bool | None
    """Whether ``peak`` is available now; None if the system does not report what is available."""


@dataclass(frozen=True)
class Tier:
    """A precision that the model can be exported at, with its memory needs on this machine."""

    precision: str
    """Precision of the decoder: ``int8`` or ``int4``."""
    peak: int
    """Peak memory in bytes, with all graphs open."""
    fits: bool | None
    """See :attr:`Need.fits`."""


@dataclass(frozen=True)
class CacheNeed:
    """Memory of the KV cache for one question about some pictures and its answer."""

    pictures: int
    positions: int
    """Positions of the pictures, the question and the answer; at most the context."""
    bytes: int


def need_of(manifest: Manifest, mode: str, is_tuned: bool, mem: SystemMemory, captions: int = 1) -> Need:
    """Memory needs of a bundle in a mode, ``default`` or ``low``; tuned or not; for captions decoded together."""
    weights = _weights(manifest)
    computing = max(graph.working_bytes for graph in manifest.graphs.values())
    caches = caches_of(manifest.contract)[0].bytes
    if captions > 1:
        caches = max(caches, _caption_bytes(manifest.contract) * (captions + 1))  # one more is at its prompt
    work = PROCESS_BYTES + computing + caches
    held = sum(weights.values()) if mode == "default" else max(weights.values())
    peak = held + work
    return Need(mode, peak, work if is_tuned else peak, _fits(peak, mem))


def _weights(manifest: Manifest) -> dict[str, int]:
    """Size in memory of each graph's weights, in bytes."""
    sizes = {record.name: record.size for record in manifest.files}
    return {name: int(sizes[manifest.graphs[name].data] * PACKING_OVERHEAD) for name in GRAPHS}


def _fits(peak: int, mem: SystemMemory) -> bool | None:
    return None if mem.available is None else peak <= mem.available


def tiers_of(manifest: Manifest, mem: SystemMemory) -> Iterator[Tier]:
    """Memory needs of a bundle's model at each precision."""
    own = DECODER_SHARE.get(manifest.graphs[DECODER].precision)
    if own is None:
        return
    peak, decoder = need_of(manifest, "default", False, mem).peak, _weights(manifest)[DECODER]
    for precision, share in DECODER_SHARE.items():
        needed = peak + int(decoder * (share / own - 1))
        yield Tier(precision, needed, _fits(needed, mem))


def caches_of(contract: Contract) -> tuple[CacheNeed, ...]:
    """KV cache sizes for one and more pictures, as many as fit in the context."""
    found = []
    for pictures in range(1, MOST_PICTURES + 1):
        positions = pictures * contract.image_tokens + TEXT_POSITIONS
        if positions > contract.context and pictures > 1:
            break
        positions = min(positions, contract.context)
        found.append(CacheNeed(pictures, positions, positions * contract.cache_bytes_per_position))
    return tuple(found)


def _caption_bytes(contract: Contract) -> int:
    """Size of the KV cache of a typical caption."""
    steps = -(-(contract.image_tokens + CAPTION_POSITIONS) // GROWTH)
    return min(steps * GROWTH, contract.context) * contract.cache_bytes_per_position


def check_memory(manifest: Manifest, mode: str, is_tuned: bool) -> None:
    """Check before loading that the memory may be enough.

    Swap counts as memory here, since slow answers are better than none.

    Args:
        manifest: Manifest of the bundle.
        mode: ``default`` or ``low``.
        is_tuned: Whether weights are mapped from the disk.

    Raises:
        MemoryShortageError: It is not enough; says what is needed, what is available and what would help.
    """
    mem = system_memory()
    if mem.available is None or mem.swap is None:
        return
    if need_of(manifest, mode, is_tuned, mem).unbacked * CERTAIN > mem.available + mem.swap:
        raise MemoryShortageError(_shortage(manifest, mode, is_tuned, mem))


@contextmanager
def shortage_told(manifest: Manifest, mode: str, is_tuned: bool) -> Iterator[None]:
    """Turn memory errors of any library in the body into MemoryShortageError.

    Args:
        manifest: Manifest of the bundle.
        mode: ``default`` or ``low``.
        is_tuned: Whether weights are mapped from the disk.
    """
    try:
        yield
    except MemoryShortageError:
        raise
    except Exception as error:
        if not is_memory_shortage(error):
            raise
        raise MemoryShortageError(_shortage(manifest, mode, is_tuned, system_memory())) from error


def _shortage(manifest: Manifest, mode: str, is_tuned: bool, mem: SystemMemory) -> str:
    def size(count: int) -> str:
        return f"{count / 1e9:.1f} GB"

    need = need_of(manifest, mode, is_tuned, mem).unbacked
    ways = {}
    if mode == "default":
        ways["use --memory low"] = need_of(manifest, "low", is_tuned, mem).unbacked
    if not is_tuned:
        ways["run tinygptv tune once, so that weights are read from the disk"] = need_of(
            manifest, mode, True, mem
        ).unbacked
    if manifest.graphs[DECODER].precision == "int8":
        tiers = {tier.precision: tier.peak for tier in tiers_of(manifest, mem)}
        ways["use a bundle exported with --precision int4"] = tiers["int4"]
    advice = [
        f"{way} (about {size(count)})"
        for way, count in ways.items()
        if count < HELPFUL * need and (mem.available is None or count <= mem.available)
    ]
    available = "" if mem.available is None else f", {size(mem.available)} are available"
    return (
        f"there is not enough memory: {manifest.name} needs about {size(need)}{available}: "
        f"{', or '.join(['close other programs', *advice])}"
    )
