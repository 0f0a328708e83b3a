"""The images of a command: from paths, stdin or the clipboard."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from PIL import Image

from ..errors import ImageError, reason_of
from ..vision.image import ImageSource, open_image
from .terminal import is_terminal

STDIN = "-"


def add_clipboard(parser: argparse.ArgumentParser) -> None:
    """Add the option to read the clipboard."""
    parser.add_argument("--clipboard", action="store_true", help="look at the image on the clipboard")


def read_sources(names: Sequence[str], clipboard: bool) -> list[ImageSource]:
    """The images named by a command in their order, then the image on the clipboard.

    Args:
        names: Paths, or ``-`` for stdin; files are read later.
        clipboard: Whether to read the clipboard.

    Raises:
        ImageError: A file is missing, or there is no image on stdin or the clipboard.
    """
    if list(names).count(STDIN) > 1:
        raise ImageError("- is named twice; expected one image on stdin")
    sources = [_from_stdin() if name == STDIN else _existing(name) for name in names]
    return [*sources, *(from_clipboard() if clipboard else [])]


def _existing(path: str) -> str:
    if not os.path.isfile(path):
        open_image(path)  # which says what it is: before a model was loaded for nothing
    return path


def _from_stdin() -> bytes:
    if sys.stdin is None or is_terminal(sys.stdin):
        raise ImageError("stdin is a terminal, or closed; expected an image: tinygptv ask - QUESTION < photo.jpg")
    data = sys.stdin.buffer.read()
    if not data:
        raise ImageError("stdin is empty; expected an image: tinygptv ask - QUESTION < photo.jpg")
    return data


def from_clipboard() -> list[ImageSource]:
    """The image on the clipboard, or the picture files copied to it.

    Raises:
        ImageError: The clipboard has no image, or this system has no clipboard.
    """
    from PIL import ImageGrab  # for those who use it only

    try:
        found = ImageGrab.grabclipboard()
    except (NotImplementedError, OSError) as error:  # no program to ask, or one that failed
        needs = "it needs wl-paste or xclip" if isinstance(error, NotImplementedError) else reason_of(error)
        raise ImageError(f"the clipboard cannot be read ({needs}); save the image and name the file instead") from error
    if isinstance(found, Image.Image):
        return [found]
    if not found:
        raise ImageError("there is no image on the clipboard; copy one, or name a file")
    return list(found)
