"""How much memory the largest pictures that are read take: each in a process of its own, prepared and as RGB.

    python benchmarks/reliability/large_pictures.py --work /data -o benchmarks/reliability/large_pictures.json
    python benchmarks/pages.py

It takes 2 GB of memory and of disk, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.system.process import peak_rss
from tinygptv.runtime.vision.image import (
    DRAFT_OVERSIZE,
    MAX_PIXELS,
    MAX_WEBP_PIXELS,
    open_image,
    open_picture,
    preprocess,
)

SIZE = 384
SQUASHED = ImagePreprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
ROWS_PER_STRIP = 278
"""The tag of a TIFF."""
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


@dataclass(frozen=True)
class Kind:
    """Of pictures: how one is written."""

    name: str
    format: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of the largest square that is read, in pixels."""
        return math.isqrt(MAX_WEBP_PIXELS if self.format == "WEBP" else MAX_PIXELS)


PROGRESSIVE = {"progressive": True, "subsampling": 0}
KINDS = (
    Kind("JPEG", "JPEG", "RGB"),
    Kind("JPEG, progressive", "JPEG", "RGB", PROGRESSIVE),
    Kind("JPEG, progressive CMYK", "JPEG", "CMYK", PROGRESSIVE),
    Kind("PNG", "PNG", "RGB", {"compress_level": 1}),
    Kind("PNG with transparency", "PNG", "RGBA", {"compress_level": 1}),
    Kind("PNG, 16-bit grey", "PNG", "I;16", {"compress_level": 1}),
    Kind("TIFF", "TIFF", "RGB", {"compression": "tiff_lzw"}),
    Kind("TIFF, to be turned", "TIFF", "RGB", {"compression": "tiff_lzw", "exif": TURNED}),
    Kind("TIFF, one strip", "TIFF", "RGB", {"compression": "tiff_lzw", "tiffinfo": {ROWS_PER_STRIP: 1 << 20}}),
    Kind("TIFF, floats", "TIFF", "F"),
    Kind("WebP", "WEBP", "RGB", {"method": 0}),
    Kind("WebP, lossless with transparency", "WEBP", "RGBA", {"method": 0, "lossless": True, "quality": 0}),
    Kind("GIF", "GIF", "P"),
    Kind("BMP", "BMP", "RGB"),
)


def make(kind: Kind, path: Path) -> None:
    """Write one whose levels rise from row to row."""
    image = Image.linear_gradient("L").resize((kind.side, kind.side))
    image.convert("RGBA" if kind.mode == "RGBA" else kind.mode).save(path, kind.format, **kind.options)


def prepare(path: Path) -> None:
    """As for an answer."""
    preprocess(open_picture(path, DRAFT_OVERSIZE * SIZE), SQUASHED)


def whole(path: Path) -> None:
    """As for boxes that are drawn on it."""
    open_image(path)


def more_than_before(action: Callable[[Path], None], path: Path) -> int:
    """Bytes by which the largest resident set of this process rises."""
    before = peak_rss()
    action(path)
    return peak_rss() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for one picture at a time")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, int]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for kind in KINDS:
            path = given.work / f"largest.{kind.format.lower()}"
            try:
                processes.submit(make, kind, path).result()
                found[kind.name] = {"pixels": kind.side**2, "file_bytes": path.stat().st_size}
                for action in (prepare, whole):
                    taken = processes.submit(more_than_before, action, path).result()
                    found[kind.name][f"{action.__name__}_bytes"] = taken
            finally:
                path.unlink(missing_ok=True)
            print(kind.name, found[kind.name], file=sys.stderr, flush=True)
    document = {"date": str(datetime.now(UTC).date()), "pillow": version("pillow"), "kinds": found}
    given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
