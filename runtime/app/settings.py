"""The user's settings: kept while the window is open, and in one file if the user wants that."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PySide6.QtCore import QStandardPaths

from ..bundle.typed_json import from_json
from ..errors import BundleError, TinyGPTVError, line_of, reason_of
from ..language.sampling import Sampling
from ..loading import MemoryMode
from ..options import AnswerOptions
from ..system.files import write_atomically
from .theme import SCHEMES

_MOST_RECENT = 10


@dataclass(frozen=True)
class Settings:
    """How the model is loaded, how it answers, and how the window looks.

    Raises:
        TinyGPTVError: A value is out of range.
    """

    bundle: str = ""
    """Folder of the bundle; empty for the built-in demo."""
    threads: int | None = None
    """Number of threads; None for one per physical core."""
    low_memory: bool = False
    max_new_tokens: int | None = None
    """See :class:`~tinygptv.runtime.AnswerOptions`."""
    temperature: float = 0.0
    appearance: str = "system"
    """A colour scheme of :data:`.theme.SCHEMES`."""
    remember: bool = False
    """Whether settings and recent pictures are written to :func:`settings_file`."""
    recent: tuple[str, ...] = ()
    """Paths of recently opened pictures, the newest first."""

    def __post_init__(self) -> None:
        self.options()
        if self.threads is not None and self.threads < 1:
            raise TinyGPTVError(f"threads is {self.threads}; expected at least 1, or null")
        if self.appearance not in SCHEMES:
            raise TinyGPTVError(f"appearance is {self.appearance!r}; expected one of {', '.join(SCHEMES)}")

    @property
    def folder(self) -> Path | None:
        """Path of the bundle; None for the demo."""
        return Path(self.bundle) if self.bundle else None

    @property
    def memory(self) -> MemoryMode:
        return "low" if self.low_memory else "default"

    def options(self, *, at_random: bool = False) -> AnswerOptions:
        """The options for an answer; ``at_random`` samples it even if the temperature is 0."""
        if at_random and not self.temperature:
            return AnswerOptions(self.max_new_tokens, sampling=Sampling(temperature=0.8, top_p=0.9))
        return AnswerOptions(self.max_new_tokens, sampling=Sampling(temperature=self.temperature))

    def with_recent(self, path: str) -> Settings:
        """These settings with one more recent picture."""
        others = (other for other in self.recent if other != path)
        return replace(self, recent=(path, *others)[:_MOST_RECENT])


def settings_file() -> Path:
    """Path of the settings file, in the platform's folder for settings."""
    folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericConfigLocation)
    return Path(folder) / "tinygptv" / "app.json"


def read_settings() -> Settings:
    """Read the remembered settings, or return the defaults.

    Raises:
        TinyGPTVError: The file exists and cannot be read; says what to do.
    """
    path = settings_file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError) as error:
        raise TinyGPTVError(
            f"the settings in {path} cannot be read ({reason_of(error)}); Forget now in Settings deletes them"
        ) from error
    try:
        settings: Settings = from_json(Settings, json.loads(text), "settings")
    except (ValueError, RecursionError, BundleError, TinyGPTVError) as error:
        found = reason_of(error).partition(": copy the bundle")[0].partition("; copy the bundle")[0]
        raise TinyGPTVError(f"{path} holds no settings ({found}); Forget now in Settings deletes it") from error
    return settings


def write_settings(settings: Settings) -> None:
    """Write settings to the settings file.

    Raises:
        TinyGPTVError: The file cannot be written.
    """
    path = settings_file()
    text = json.dumps(asdict(settings), indent=1) + "\n"  # in ASCII: a path need not be valid text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise TinyGPTVError(f"settings cannot be remembered: {line_of(error)}") from error


def forget_settings() -> None:
    """Delete the settings file, and its folder if that is then empty.

    Raises:
        TinyGPTVError: It cannot be deleted.
    """
    path = settings_file()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TinyGPTVError(f"{path} cannot be deleted: {reason_of(error)}") from error
    with suppress(OSError):  # not there, or not empty
        path.parent.rmdir()
