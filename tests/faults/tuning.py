"""Bundles that are tuned, in place or in the user's cache, and given back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

from tinygptv.runtime.bundle.checksums import damaged_files
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.tuning.find import FOLDER, INDEX, Tuned, is_intact, read_index

from .tracing import Done
from .write_path import RED, TINYGPTV, WritePath


class Tune(WritePath):
    """Packed weights in the bundle's own files."""

    more: ClassVar[list[str]] = []

    def prepare(self, folder: Path) -> None:
        shutil.copytree(DEMO_BUNDLE, folder / "bundle")

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return [*TINYGPTV, "tune", str(folder / "bundle"), *self.more]

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """The bundle is undamaged, and what is said to be tuned is."""
        bundle = folder / "bundle"
        manifest = read_manifest(bundle)
        for home in (bundle, *_cached(folder)):
            if (home / FOLDER / INDEX).exists():
                tuned = read_index(home, bundle, manifest)
                if not isinstance(tuned, Tuned) or not is_intact(tuned, manifest):
                    return False
        return not damaged_files(bundle, manifest.files)


class TuneCache(Tune):
    """Packed weights in the user's cache."""

    more: ClassVar[list[str]] = ["--cache"]


class TuneStale(Tune):
    """In place of packed weights that another version made. They are given up first: there is room for one copy."""

    resumes = True

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._run(super().command(folder), folder)
        index = folder / "bundle" / FOLDER / INDEX
        document = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps(document | {"version": 0}), encoding="utf-8")

    def is_kept(self, folder: Path, finished: Path) -> bool:
        index = folder / "bundle" / FOLDER / INDEX
        if index.exists() and json.loads(index.read_text(encoding="utf-8"))["version"] == 0:
            return not damaged_files(folder / "bundle", read_manifest(folder / "bundle").files)
        return super().is_kept(folder, finished)


class Undo(Tune):
    """Packed weights are taken away again, file by file: there need not be room for all of them."""

    resumes = True
    more: ClassVar[list[str]] = ["--undo"]

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._run([*TINYGPTV, "tune", str(folder / "bundle")], folder)


class UndoCache(Undo):
    """The copy in the cache is taken away."""

    def prepare(self, folder: Path) -> None:
        Tune.prepare(self, folder)
        self._run([*TINYGPTV, "tune", str(folder / "bundle"), "--cache"], folder)


class AskTuning(Tune):
    """A question that tunes the bundle first, and is answered anyway."""

    goes_on = True

    def command(self, folder: Path, again: bool = False) -> list[str]:
        bundle = ["--bundle", str(folder / "bundle"), "--threads", "1"]
        return [*TINYGPTV, "ask", str(RED), "[caption]", "--tune", *bundle]

    def is_as_good(self, folder: Path, finished: Path) -> bool:
        """Tuned in the cache, as the bundle's folder could not be written; the same files, and no other."""
        parts = {f"{FOLDER}/{path.name}" for path in (finished / "bundle" / FOLDER).iterdir()}
        parts |= {graph.data for graph in read_manifest(folder / "bundle").graphs.values()}
        is_there = [_files(home) for home in _cached(folder)] == [parts]
        is_alone = _files(folder / "bundle") == _files(DEMO_BUNDLE)
        return is_there and is_alone and self.is_kept(folder, finished)

    def objection(self, folder: Path, done: Done) -> str | None:
        is_tuned = any(folder.rglob(f"{FOLDER}/{INDEX}"))
        return None if is_tuned or "loaded without tuning" in done.err else "nothing is said of the tuning that failed"


def _cached(folder: Path) -> list[Path]:
    """The tuned copies in the cache of a command's home."""
    return list((folder / "home/.cache/tinygptv/tuned").glob("*"))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
