"""HEIC pictures, as phones take them: read by pillow-heif, where that is installed."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from ..errors import ImageError
from ..system.installing import install_command


def open_heif(file: BinaryIO, name: str) -> Image.Image:
    """Open a HEIF file for Pillow, whose own list of formats stays as the host program has it.

    Args:
        file: At its beginning.
        name: What messages call it.

    Raises:
        ImageError: pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC picture, which needs pillow-heif; run: {install_command('heif')}, or save it as JPEG"
        ) from error
    image: Image.Image = HeifImageFile(file)
    return image
