"""How every vision encoder is measured, whatever runs it: an adapter only says how to load it and how to encode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import VisionResult, command_line, emit, memory, prepare_once, repeat, versions
from numpy.typing import NDArray
from vision_input import TOKENS, WIDTH, noise

Features = NDArray[np.float32]
"""image_features, [1, 1025, 1408]."""


@dataclass(frozen=True)
class Loaded:
    """An encoder ready to run, and how it was set up."""

    encode: Callable[[NDArray[np.float32]], Features]
    """From pixel_values, float32 [1, 3, 448, 448]."""
    settings: dict[str, object]


@dataclass(frozen=True)
class Adapter:
    """One peer."""

    peer: str
    description: str
    packages: tuple[str, ...]
    """Whose versions stand beside the figures."""
    variants: tuple[str, ...]
    prepare: Callable[[Path, Path], None]
    """From the folder of published files, fill a folder."""
    load: Callable[[Path, str, int], Loaded]
    """From the prepared folder, a variant and a number of threads."""


def measure(adapter: Adapter, argv: Sequence[str] | None = None) -> int:
    """An adapter's whole command."""
    parser, run = command_line(adapter.description, adapter.variants)
    run.add_argument("--repeats", type=int, default=5, help="images timed, after one to warm up (default: 5)")
    options = parser.parse_args(argv)
    if options.command == "prepare":
        prepare_once(options.out, lambda staging: adapter.prepare(options.checkpoint, staging))
        return 0

    pixel_values = noise()
    started = time.perf_counter()
    loaded = adapter.load(options.model, options.variant, options.threads)
    load_seconds = time.perf_counter() - started
    features = loaded.encode(pixel_values)
    if features.shape != (1, TOKENS, WIDTH) or not np.isfinite(features).all():
        raise SystemExit(
            f"{adapter.peer} {options.variant} gave features {features.shape}, finite: {np.isfinite(features).all()}; "
            f"expected finite ones [1, {TOKENS}, {WIDTH}]: prepare it again from files of the published sizes"
        )
    emit(
        VisionResult(
            peer=adapter.peer,
            variant=options.variant,
            versions=versions(adapter.packages),
            threads=options.threads,
            load_seconds=load_seconds,
            encode_seconds=repeat(lambda: loaded.encode(pixel_values), options.repeats),
            memory=memory(),
            settings=loaded.settings,
        )
    )
    return 0
