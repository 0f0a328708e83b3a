"""Pictures and saved conversations from drag and drop or the clipboard."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QMimeData
from PySide6.QtGui import QImage


def has_picture(data: QMimeData) -> bool:
    """Whether the data may contain a picture; files are not opened."""
    return data.hasImage() or bool(_files_in(data))


def pictures_in(data: QMimeData) -> list[str | QImage]:
    """The paths of files, or a picture's pixels.

    Data from a browser has pixels besides an address; the address is never fetched.
    """
    if paths := _files_in(data):
        return list(paths)
    image = data.imageData() if data.hasImage() else None
    return [image] if isinstance(image, QImage) and not image.isNull() else []


def name_of(source: str | QImage) -> str:
    """The name of a picture for display."""
    return Path(source).name if isinstance(source, str) else "pasted picture"


def _files_in(data: QMimeData) -> list[str]:
    return [url.toLocalFile() for url in data.urls() if url.isLocalFile()]
