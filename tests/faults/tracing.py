"""Commands under strace: which system calls change files in a folder, and one of those calls failing."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KILL = "kill"
FAULTS = ("ENOSPC", "EIO", "EINTR", KILL)
REMOVALS = ("unlink", "unlinkat", "rmdir")
CALLS = (
    *("openat", "open", "creat", "write", "pwrite64", "writev", "pwritev", "copy_file_range", "sendfile", "splice"),
    *("ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync_file_range", "msync"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", *REMOVALS),
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "utimensat", "fsetxattr", "setxattr"),
)
"""Those that change files; opening counts where it makes a file or opens it for writing."""
SECONDS = 120
"""After which a command hangs."""

_ENTRY = re.compile(r"(\d+) +(\w+)\((.*)")
_OWN_NAME = re.compile(r"[0-9a-f]{16}(?=\.part)|#\d+$")
_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
_FILE = re.compile(r'[<"](/[^>"]*)[>"]')


@dataclass(frozen=True)
class Point:
    """One call that changes a file."""

    call: str
    number: int
    """Among the calls of this name in its thread, from 1: what strace's ``when=`` counts."""
    file: str
    """The last one that the call names."""
    occurrence: int = 1
    """Among the calls of this name on this file, from 1."""

    def __str__(self) -> str:
        return f"{self.call} {self.occurrence} of {self.file}"


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    """The exit status, or minus the signal that ended it."""
    out: str
    err: str
    points: tuple[Point, ...] = ()
    """Calls that changed files in the folder, in order."""
    failed: tuple[Point, ...] = ()
    """Those that the fault met."""


@functools.cache
def missing() -> str | None:
    """Why nothing can be traced here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fsync", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = tried.stderr.strip().splitlines()
    return f"strace cannot trace here: {lines[-1] if lines else tried.returncode}" if tried.returncode else None


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path, typed: str = "") -> Done:
    """A command without tracing."""
    done = subprocess.run(
        command, cwd=folder, env=environment, input=typed, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    return Done(done.returncode, done.stdout, done.stderr)


def traced(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    typed: str = "",
    fault: tuple[Point, str] | None = None,
) -> Done:
    """A command under strace.

    Args:
        command: With its arguments.
        environment: All of its variables.
        folder: Where it runs; calls that change files within it are noted.
        log: Where strace writes what it sees.
        typed: What the command reads from stdin.
        fault: The call that fails, and how: an error's name, or :data:`KILL` to kill the command as it begins the call.
    """
    # strace 6.1 injects no signals where a filter in the kernel picks the calls.
    filtered = [] if fault and fault[1] == KILL else ["--seccomp-bpf"]
    strace = ["strace", "-f", *filtered, "-y", "-s", "0", "-o", str(log), "-e", "signal=none"]
    strace += ["-e", "trace=" + ",".join(f"?{call}" for call in CALLS)]
    if fault is not None:
        point, how = fault
        strace += ["-e", f"inject={point.call}:{'signal=KILL' if how == KILL else f'error={how}'}:when={point.number}"]
    done = run([*strace, *command], environment, folder, typed)
    points = tuple(_points(log, folder))
    failed = tuple(one for one in points if fault and (one.call, one.number) == (point.call, point.number))
    return Done(done.status, done.out, done.err, points, failed)


def _points(log: Path, folder: Path) -> Iterator[Point]:
    """What changes files in the folder, in order."""
    counts: Counter[tuple[str, str]] = Counter()
    occurrences: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if not (entry := _ENTRY.match(line)):
            continue
        thread, call, arguments = entry.groups()
        counts[thread, call] += 1
        if call.startswith("open") and not _WRITING.search(arguments):
            continue
        files = [Path(file) for file in _FILE.findall(arguments)]
        if files := [file for file in files if file.is_relative_to(folder)]:
            file = str(files[-1].relative_to(folder))
            if call in REMOVALS and '"' in arguments:  # the name within a folder that is open
                file = str(files[-1].relative_to(folder) / arguments.split('"')[1])
            file = _OWN_NAME.sub("*", file)
            occurrences[call, file] += 1
            yield Point(call, counts[thread, call], file, occurrences[call, file])


def was_killed(done: Done) -> bool:
    """Whether SIGKILL ended it."""
    return done.status == -signal.SIGKILL
