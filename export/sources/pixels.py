"""The image preprocessing of a published model, from its processor's file or the published code's constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.errors import ExportError

from ..documents import Config, read_json
from ..parts import Three, Tower

PROCESSOR = "preprocessor_config.json"
BICUBIC = 3
"""Pillow's number for bicubic."""


def image_preprocessing(tower: Tower, image_size: int, config: Config, folder: Path | None) -> ImagePreprocessing:
    """The image preprocessing for a tower.

    Args:
        tower: The vision tower.
        image_size: The tower's image size.
        config: The model's; ``image_aspect_ratio`` decides about padding.
        folder: Where a preprocessor_config.json may be; the constants of the published processors otherwise.

    Raises:
        ExportError: The processor does something else, or the pictures are cut into several.
    """
    mean, std = tower.MEAN, tower.STD
    if folder is not None and (folder / PROCESSOR).is_file():
        mean, std = _read(folder / PROCESSOR, tower.CROPS, image_size)
    config.expect("image_aspect_ratio", None, "square", "pad")
    padded = config.get("image_aspect_ratio") == "pad"
    return ImagePreprocessing(
        image_size=image_size,
        mean=mean,
        std=std,
        resample="bicubic",
        fit="pad" if padded else "crop" if tower.CROPS else "squash",
        pad_color=tuple(int(255 * value) for value in mean) if padded else None,
    )


def _read(file: Path, crops: bool, image_size: int) -> tuple[Three, Three]:
    """Read mean and standard deviation, after checking that all other settings are as published."""
    config = Config(str(file), read_json(file))
    for name in ("do_resize", "do_normalize", "do_rescale", "do_center_crop", "do_convert_rgb"):
        config.expect(name, None, crops if name == "do_center_crop" else True)
    if crops:
        config.expect("do_center_crop", True)
    config.expect("resample", BICUBIC)
    config.expect("rescale_factor", None, 1 / 255)
    config.get("crop_size")  # of no use where nothing is cropped
    for name in ("size", "crop_size")[: 1 + crops]:
        sides = _sides(config.get(name))
        if sides != {image_size}:
            raise ExportError(
                f"{file}: {name} is {config.get(name)!r:.60}; expected {image_size}, as the tower's image_size"
            )
    mean, std = _three(config, "image_mean"), _three(config, "image_std")
    config.finish()
    return mean, std


def _sides(size: Any) -> set[Any]:
    """The values in a size, which is written as a number or as an object of sides."""
    return set(size.values()) if isinstance(size, dict) else {size}


def _three(config: Config, name: str) -> Three:
    values = config.get(name)
    if not isinstance(values, list) or len(values) != 3 or not all(type(v) in (int, float) and v > 0 for v in values):
        raise ExportError(f"{config.label}: {name} is {values!r:.60}; expected three positive numbers")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
