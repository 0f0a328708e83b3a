"""Dialogs that ask for files; none of them blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QFileDialog, QWidget

PICTURES = "Pictures (*.jpg *.jpeg *.png *.webp *.bmp *.gif *.tif *.tiff *.avif *.heic *.heif)"
_MARKDOWN, _JSON = "Markdown, to read (*.md)", "JSON, to open again (*.json)"


def choose_pictures(parent: QWidget, do: Callable[..., object]) -> None:
    """Ask which pictures to open."""
    dialog = QFileDialog(parent, "Open pictures", filter=f"{PICTURES};;All files (*)")
    dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
    dialog.filesSelected.connect(lambda paths: do(*paths))
    show(dialog)


def choose_bundle(parent: QWidget, do: Callable[[Path], object]) -> None:
    """Ask which bundle to load."""
    dialog = QFileDialog(parent, "Choose a model: the folder that tinygptv-export wrote")
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    dialog.fileSelected.connect(lambda folder: do(Path(folder)))
    show(dialog)


def choose_conversation(parent: QWidget, do: Callable[[str], object]) -> None:
    """Ask which saved conversation to open."""
    dialog = QFileDialog(parent, "Open a conversation", filter=f"{_JSON};;All files (*)")
    dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
    dialog.fileSelected.connect(do)
    show(dialog)


def save_conversation(parent: QWidget, name: str, do: Callable[[Path], object]) -> None:
    """Ask where to save a conversation about a picture of this name."""
    dialog = _save_dialog(parent, "Save the conversation", f"{Path(name).stem}.json", f"{_JSON};;{_MARKDOWN}", "json")
    dialog.filterSelected.connect(lambda kind: dialog.setDefaultSuffix("md" if kind == _MARKDOWN else "json"))
    dialog.fileSelected.connect(lambda path: do(Path(path)))
    show(dialog)


def save_picture(parent: QWidget, name: str, do: Callable[[str], object]) -> None:
    """Ask where to save a picture of this name with its boxes."""
    kinds = "PNG (*.png);;JPEG (*.jpg *.jpeg);;WebP (*.webp)"
    dialog = _save_dialog(parent, "Save the picture with its boxes", f"{Path(name).stem}_boxes.png", kinds, "png")
    dialog.fileSelected.connect(do)
    show(dialog)


def show(dialog: QDialog) -> None:
    """Open a dialog that is deleted when it is closed."""
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.open()  # unlike exec, does not wait


def _save_dialog(parent: QWidget, title: str, name: str, kinds: str, suffix: str) -> QFileDialog:
    dialog = QFileDialog(parent, title, filter=kinds)
    dialog.setFileMode(QFileDialog.FileMode.AnyFile)
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setDefaultSuffix(suffix)
    dialog.selectFile(name)
    return dialog
