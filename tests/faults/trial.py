"""One write path, failed at one call after the other, and what is wrong afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .tracing import KILL, REMOVALS, Done, Point, run, traced, was_killed
from .write_path import WritePath, environment

TRIES = 5
"""To meet one call, whose number may be another one in the next run."""
Snapshot = dict[str, str]
"""Of a folder: for each path within it what it is."""


@dataclass(frozen=True)
class Outcome:
    """Of one failed call."""

    was_hit: bool
    """Whether the fault met a call in the folder; the calls of two runs may differ by a few."""
    finding: str | None


class Trial:
    """A write path in folders of its own."""

    def __init__(self, path: WritePath, home: Path) -> None:
        """
        Args:
            path: The write path.
            home: An empty folder.

        Raises:
            AssertionError: The command fails by itself.
        """
        self._path, self._log = path, home / "log"
        self._before, self._folder, self._after = home / "before", home / "it", home / "after"
        self._environment = environment(self._folder)
        self._renew_folder(None)
        path.prepare(self._folder)
        shutil.copytree(self._folder, self._before, symlinks=True)
        self.undisturbed = traced(*self._command(), self._log, path.typed(self._folder))
        assert self.undisturbed.status == 0, self.undisturbed.err
        shutil.copytree(self._folder, self._after, symlinks=True)
        self.before, self.after = self._snapshot(self._before), self._snapshot(self._after)

    def points(self, every: int, seed: int) -> list[Point]:
        """Of each call on each file every so many, at least one; which ones depends on the seed."""
        sites: dict[tuple[str, str], list[Point]] = {}
        for point in self.undisturbed.points:
            sites.setdefault((point.call, point.file), []).append(point)
        return [
            point
            for site, some in sites.items()
            for point in some[random.Random(f"{site} {seed}").randrange(min(every, len(some))) :: every]
        ]

    def fail(self, point: Point, fault: str) -> Outcome:
        """Run the command with one fault."""
        for _ in range(TRIES):
            self._renew_folder(self._before)
            done = traced(*self._command(), self._log, self._path.typed(self._folder), (point, fault))
            if done.failed and (fault != KILL or was_killed(done)):
                finding = self._finding(done, fault)
                told = "".join(f"\n    {line}" for line in done.err.splitlines()[-10:])
                return Outcome(True, finding and f"{fault} at {done.failed[0]}: {finding}{told}")
            # Threads share a few calls in another way each time: this run's numbers may be the next one's.
            point = next((one for one in done.points if str(one) == str(point)), point)
        return Outcome(False, None)

    def _finding(self, done: Done, fault: str) -> str | None:
        """What is wrong after a fault."""
        found = self._snapshot(self._folder)
        if "Traceback" in done.err:
            return "a traceback"
        if fault != KILL and (told := self._told_wrongly(done, fault, found)):
            return told
        if found in (self.before, self.after):
            return None
        return self._in_between(found, may_leave=fault == KILL or done.failed[0].call in REMOVALS)

    def _told_wrongly(self, done: Done, fault: str, found: Snapshot) -> str | None:
        """What is wrong with the exit status or what was printed, after an error."""
        if done.status not in (0, 1):
            return f"exit status {done.status}"
        if done.status == 1:
            told = [line for line in done.err.splitlines() if _tells(line, fault, self._folder, done.failed[0])]
            if len(told) != 1:
                return f"{len(told)} lines name a file and the reason"
        elif found != self.after:
            if self._path.goes_on and done.out != self.undisturbed.out:
                return "another output"
            if not self._path.goes_on and done.failed[0].call not in REMOVALS:
                return f"exit status 0, but {differences(found, self.after)}"
        return self._path.objection(self._folder, done)

    def _in_between(self, found: Snapshot, may_leave: bool) -> str | None:
        """What is wrong with a folder that is neither as before nor as after; ``may_leave`` files that are hidden."""
        if not may_leave and (left := sorted(found.keys() - _visible(found).keys() - self.before.keys())):
            return f"left: {', '.join(left)}"
        if _visible(found) not in (_visible(self.before), _visible(self.after)):
            may_be = may_leave or self._path.resumes or self._path.goes_on
            if not (may_be and self._path.is_kept(self._folder, self._after)):
                return f"before: {differences(found, self.before)}; after: {differences(found, self.after)}"
        command = self._path.command(self._folder, again=True)
        again = run(command, self._environment, self._folder, self._path.typed(self._folder))
        if again.status != 0:
            return f"the next run fails: {again.err}"
        then = self._snapshot(self._folder)
        if then != self.after and not self._path.is_as_good(self._folder, self._after):
            return f"after the next run {differences(then, self.after)}"
        return None

    def _snapshot(self, folder: Path) -> Snapshot:
        """Every file and folder, with permissions and content."""
        return {
            str(path.relative_to(folder)): f"{path.lstat().st_mode:o} "
            + (hashlib.sha256(self._path.content(path)).hexdigest() if path.is_file() else "")
            for path in sorted(folder.rglob("*"))
        }

    def _command(self) -> tuple[Sequence[str], dict[str, str], Path]:
        return self._path.command(self._folder), self._environment, self._folder

    def _renew_folder(self, source: Path | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if source is None:
            self._folder.mkdir()
            (self._folder / "home" / ".cache").mkdir(parents=True)
        else:
            shutil.copytree(source, self._folder, symlinks=True)


def differences(found: Snapshot, expected: Snapshot) -> str:
    """In words."""
    changes = {
        "more": found.keys() - expected.keys(),
        "missing": expected.keys() - found.keys(),
        "different": {name for name in found.keys() & expected.keys() if found[name] != expected[name]},
    }
    return ", ".join(f"{what} {' '.join(sorted(names))}" for what, names in changes.items() if names) or "the same"


def _visible(found: Snapshot) -> Snapshot:
    """Without what is hidden, or in a hidden folder; the user's cache folder is no such."""
    return {
        path: what
        for path, what in found.items()
        if not any(part.startswith(".") and part != ".cache" for part in Path(path).parts)
    }


def _tells(line: str, fault: str, folder: Path, failed: Point) -> bool:
    """Whether a line on stderr names a file or folder and the reason, which onnxruntime keeps to itself."""
    reasons = [os.strerror(getattr(errno, fault)), *(["is the disk full?"] if "/saved/" in failed.file else [])]
    return str(folder) in line and any(reason in line for reason in reasons)
