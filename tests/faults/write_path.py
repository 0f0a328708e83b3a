"""What a command that writes may leave behind when one of its calls fails."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from .tracing import Done, run

HERE = Path(__file__).resolve().parent
RED, TEAL = (HERE.parent / "images" / name for name in ("red_triangle.png", "teal_circle.png"))
TINYGPTV = [sys.executable, "-m", "tinygptv.runtime.cli"]


def environment(folder: Path) -> dict[str, str]:
    """For commands whose home is within ``folder``; so many threads and lines of progress bars each time."""
    spoken = ("TINYGPTV_", "ORT_", "XDG_", "PYTHON", "LC_", "LANG", "TQDM_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(spoken)}
    fixed = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    fixed["MPLCONFIGDIR"] = str(folder.parent / "matplotlib")  # it would write its list of fonts to the home folder
    return kept | fixed | {"HOME": str(folder / "home"), "TQDM_MININTERVAL": "1e9", "ORT_DISABLE_TELEMETRY": "1"}


class WritePath(ABC):
    """One command that writes into its folder. It is given a new folder with :meth:`prepare` for each call that fails.

    After an error the folder is as before or as after an undisturbed run, to the bit, and one line names a file and
    the reason. After a kill, and where the very removal of a file failed, all that is not hidden is; and the next run
    ends as an undisturbed one.
    """

    goes_on: ClassVar[bool] = False
    """Whether the command does its work, with the same output, even if nothing can be written."""
    resumes: ClassVar[bool] = False
    """Whether :meth:`is_kept` holds after errors too: what was complete stays, and the same command goes on."""

    def prepare(self, folder: Path) -> None:
        """What is there before; the folder is new."""
        return

    @abstractmethod
    def command(self, folder: Path, again: bool = False) -> list[str]:
        """The command with its arguments; ``again`` if it was interrupted before."""

    def typed(self, folder: Path) -> str:
        """What it reads from stdin."""
        return ""

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """Whether a state in between is right, hidden files aside: after a kill, and where :attr:`resumes`."""
        return False

    def is_as_good(self, folder: Path, finished: Path) -> bool:
        """Whether the command may end with this, in place of what an undisturbed run makes."""
        return False

    def content(self, path: Path) -> bytes:
        """Of a file, without what is different each time."""
        return path.read_bytes()

    def objection(self, folder: Path, done: Done) -> str | None:
        """What else is wrong after an error."""
        return None

    def _run(self, command: list[str], folder: Path) -> None:
        done = run(command, environment(folder), folder)
        assert done.status == 0, done.err
