"""Pictures that come by drag and drop or from the clipboard."""

from __future__ import annotations

from PySide6.QtCore import QMimeData
from PySide6.QtGui import QImage


def has_picture(data: QMimeData) -> bool:
    """Whether there is something in it that may be a picture; a file is not looked into."""
    return data.hasImage() or _file_in(data) is not None


def picture_in(data: QMimeData) -> str | QImage | None:
    """The path of the first file, or a picture's pixels.

    What comes from a browser has pixels besides an address, which nobody here would go to.
    """
    if path := _file_in(data):
        return path
    image = data.imageData() if data.hasImage() else None
    return image if isinstance(image, QImage) and not image.isNull() else None


def _file_in(data: QMimeData) -> str | None:
    return next((url.toLocalFile() for url in data.urls() if url.isLocalFile()), None)
