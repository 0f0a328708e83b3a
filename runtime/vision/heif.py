"""HEIC pictures, the format of many phones, read by pillow-heif if it is installed."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from ..errors import ImageError
from ..system.installing import install_command


def open_heif(file: BinaryIO, name: str) -> Image.Image:
    """Open a HEIF file for Pillow without registering the format globally.

    Args:
        file: The file, at its beginning.
        name: Name of the file for messages.

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
