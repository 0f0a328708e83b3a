"""Storage of captions: finds existing ones, and saves each new one as soon as it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ArgumentError, TinyGPTVError, reason_of
from ..folder import Picture
from ..system.files import locked
from .caption_files import CaptionFile, Csv, Form, JsonLines
from .caption_record import Caption
from .caption_table import read_table, write_table
from .options import require

STDOUT = Path("-")
_FORMS: dict[str, type[Csv] | type[JsonLines]] = {
    ".csv": Csv,
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".txt", ""), JsonLines),
}
_TABLES = (".parquet", ".pq")


class OutputError(TinyGPTVError):
    """A caption cannot be saved, and neither could any further ones."""


class Captions:
    """All saved captions; if a picture has several, the last one is valid."""

    def __init__(self, path: Path, known: Iterable[Caption], append: Callable[[Caption], object]) -> None:
        """
        Args:
            path: The file's name.
            known: The captions in the file.
            append: Saves another caption.
        """
        self.path = path
        self._append = append
        self._known: dict[tuple[str, str, str], dict[str, Caption]] = {}
        """Captions by file, question and bundle, then by folder."""
        self._texts: dict[str, set[str]] = {}
        for caption in known:
            self._remember(caption)

    def find(self, picture: Picture, question: str, bundle: str, folders: Iterable[str] = ()) -> Caption | None:
        """The caption of a picture in its present state, if there is one.

        Args:
            picture: The picture.
            question: The question that was asked.
            bundle: Identity of the model that was asked.
            folders: All folders of this run. The caption of a file in another one counts if its name, size and time are
                the same: the folder was moved, or named in another way.
        """
        candidates = self._known.get((picture.file, question, bundle), {})
        for folder, known in candidates.items():
            is_its_own = folder == picture.folder or folder not in folders
            if is_its_own and (known.size, known.mtime) == (picture.size, picture.mtime):
                return known
        return None

    def wrote(self, file: str, text: str) -> bool:
        """Whether a text is one of the file's captions, for any question and from any model."""
        return text in self._texts.get(file, ())

    def is_at(self, path: Path) -> bool:
        """Whether a path refers to this file."""
        try:
            return path.samefile(self.path)
        except OSError:
            return False

    def add(self, caption: Caption) -> None:
        """Save a caption; once this returns, killing the process cannot lose it.

        Raises:
            OSError: The disk is full, or the like.
            ArgumentError: The file's format cannot store the caption.
        """
        self._append(caption)
        self._remember(caption)

    def _remember(self, caption: Caption) -> None:
        self._known.setdefault((caption.file, caption.question, caption.bundle), {})[caption.folder] = caption
        self._texts.setdefault(caption.file, set()).add(caption.text)


@contextmanager
def open_captions(path: Path) -> Iterator[Captions]:
    """Open the file, and lock it against other runs.

    Args:
        path: The file, whose ending says its form. It need not be there yet, and is not if nothing comes of it. ``-``
            is stdout, where nothing is known of earlier runs.

    Raises:
        ArgumentError: Another run is writing to it, it is no file, its ending is none that is known, or it holds
            anything else.
        OutputError: The table cannot be written.
        OSError: It cannot be read or written.
    """
    if path == STDOUT:
        form = JsonLines()
        yield Captions(path, (), lambda caption: print(form.dumps(caption).decode(), end="", flush=True))
        return
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path} is not a regular file; expected an earlier OUTPUT, or a new file")
    place = Path(os.path.realpath(path))  # whatever link leads to it, there is one lock
    ending = path.suffix.lower()
    if ending in _TABLES:
        require("parquet", "pyarrow")
    elif ending not in _FORMS:
        raise ArgumentError(f"{path} ends in {ending}; expected .jsonl, .csv or .parquet")
    refusal = ArgumentError(f"another caption run is writing to {path}; wait for it, or choose another OUTPUT")
    with locked(place.with_name(f".{place.name}.lock"), refusal):
        if ending in _TABLES:
            yield from _table(path, place)
        else:
            with _appended(path, place, _FORMS[ending]()) as file:
                yield Captions(path, file.captions, file.add)


@contextmanager
def _appended(path: Path, place: Path, form: Form) -> Iterator[CaptionFile]:
    is_new = not place.exists()
    try:
        with place.open("a+b", buffering=0) as file:
            yield CaptionFile(path, file, form)
    finally:
        with suppress(OSError):
            if is_new and not place.stat().st_size:
                place.unlink()


def _table(path: Path, place: Path) -> Iterator[Captions]:
    """A table is written completely, at the end of a run; until then, new captions are saved in a file beside it.

    After a kill, the next run reads that file.
    """
    written = read_table(path) if place.exists() else []
    beside = place.with_name(f".{place.name}.jsonl")
    is_complete = False
    try:
        with _appended(beside, beside, JsonLines()) as file:
            added = list(file.captions)

            def add(caption: Caption) -> None:
                _check_unicode(caption)
                file.add(caption)
                added.append(caption)

            try:
                yield Captions(path, [*written, *added], add)
            finally:
                if added:
                    _write(path, dict.fromkeys([*written, *added]), beside)  # after a kill, some may be in both
                    is_complete = True
    finally:
        if is_complete:
            beside.unlink()


def _write(path: Path, captions: Iterable[Caption], beside: Path) -> None:
    try:
        write_table(path, list(captions))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {reason_of(error)}; its captions are in {beside}, where the same command finds "
            "them"
        ) from error


def _check_unicode(caption: Caption) -> None:
    try:
        f"{caption.folder}{caption.file}".encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{caption.file} has a name that is not Unicode, which Parquet cannot hold; rename it, or choose an OUTPUT "
            "that ends in .jsonl"
        ) from error
