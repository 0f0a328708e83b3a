"""``tinygptv app``: a window to ask about pictures."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TinyGPTVError
from ..model import TinyGPTV
from .options import BUNDLE_VARIABLE, add_model_options, examples, require, tunes

if TYPE_CHECKING:
    from .options import Commands

EXAMPLES = examples("tinygptv app", "tinygptv app photo.jpg other.jpg --bundle ~/models/tinygptv")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "app",
        help="a window: drop a picture, ask about it",
        description="Open a window: drop, open or paste a picture, ask about it, and watch the answer come.",
        epilog=EXAMPLES,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures to begin with, or saved conversations")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the window until it is closed (status 0) or Ctrl-C is pressed in the terminal (130)."""
    require("app", "PySide6", "psutil")
    no_screen = not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))
    if sys.platform == "linux" and no_screen:  # where Qt would end the process
        raise TinyGPTVError(
            "there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set); use tinygptv chat instead"
        )
    try:
        from ..app.start import start
    except ImportError as error:
        raise TinyGPTVError(
            f"Qt cannot be loaded ({error}); install its system libraries, on Debian libegl1, libgl1, "
            "libxkbcommon0 and libdbus-1-3"
        ) from error
    named = options.bundle or os.environ.get(BUNDLE_VARIABLE)
    load = partial(TinyGPTV.load, tune=tunes(options))
    return start(load, Path(named) if named else None, options.threads, options.memory, options.images)
