"""Hashes, locks, and files and folders that are complete or not there, whoever is killed and however full the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from tinygptv.runtime.system import files
from tinygptv.runtime.system.files import (
    check_writable,
    locked,
    publish_file,
    publish_folder,
    sha256_of,
    staging_folder,
    write_atomically,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals, limits, links or permissions")
HEAD = """
import os, signal, sys, time
from pathlib import Path
from tinygptv.runtime.system.files import locked, publish_folder, write_atomically
place = Path(sys.argv[1])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process that runs a script after :data:`HEAD`."""
    command = [sys.executable, "-c", HEAD + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes], status: int = 0) -> bytes:
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err.decode()
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Hashes


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (9 << 20) + 5])
def test_hashes(size: int, tmp_path: Path) -> None:
    path, content = tmp_path / "file", os.urandom(size)
    path.write_bytes(content)
    read: list[int] = []
    assert sha256_of(path, progress=read.append) == hashlib.sha256(content).hexdigest()
    assert sum(read) == size
    for part in (0, 1, size // 2, size, size + 1):
        assert sha256_of(path, part) == hashlib.sha256(content[:part]).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "nowhere")


# Files


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None

        def write(file: object, content: bytes = content, before: bytes | None = before) -> None:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before

        write_atomically(path, write)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_what_was_there_stays_if_writing_fails(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")

    def fail(file: object) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a.txt"]


def test_errors_of_writing_name_the_file(tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, write in (("a.txt", full), ("nowhere/a.txt", lambda file: file.write(b""))):
        with pytest.raises(OSError, match=r"a\.txt") as caught:
            write_atomically(tmp_path / place, write)
        assert caught.value.filename == str(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    write_atomically(place, lambda file: file.write(bytes(1000)))
except OSError as error:
    print(error)
"""
    assert os.strerror(errno.EFBIG).encode() in finish(start(script, path))
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a.txt"]


@posix
def test_a_long_name(tmp_path: Path) -> None:
    """As long as systems allow; so nothing longer can be needed on the way to it."""
    write_atomically(tmp_path / ("n" * 255), lambda file: file.write(b"a text"))
    assert [(len(path.name), path.read_bytes()) for path in tmp_path.iterdir()] == [(255, b"a text")]


@posix
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "texts" / "b.txt")
    write_atomically(tmp_path / "a.txt", lambda file: file.write(b"a text"))
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "texts" / "b.txt").read_bytes() == b"a text"
    assert names(tmp_path / "texts") == ["b.txt"]


@posix
def test_permissions_stay(tmp_path: Path) -> None:
    path, new = tmp_path / "a.txt", tmp_path / "new.txt"
    path.touch()
    path.chmod(0o604)
    write_atomically(path, lambda file: file.write(b"a text"))
    assert path.stat().st_mode & 0o777 == 0o604
    write_atomically(new, lambda file: file.write(b"a text"))
    mask = os.umask(0)
    os.umask(mask)
    assert new.stat().st_mode & 0o777 == 0o666 & ~mask
    publish_file(path, new)
    assert (new.stat().st_mode & 0o777, names(tmp_path)) == (0o666 & ~mask, ["new.txt"])


WRITE = "write_atomically(place, lambda file: file.write(b'a text'))"


@posix
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """By whoever writes to the same folder next; but no files of others."""
    finish(start("write_atomically(place, die)", tmp_path / "a.txt"), -signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    others = [".tinygptv.txt", f"{left.name}.txt", "0.part"]
    for name in others:
        (tmp_path / name).touch()
    finish(start(WRITE, tmp_path / "b.txt"))
    assert names(tmp_path) == sorted([*others, "b.txt"])


@posix
def test_what_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    def write_more(file: object) -> None:
        file.write(b"a")
        finish(start(WRITE, tmp_path / "b.txt"))
        assert len(names(tmp_path)) == 2
        file.write(b" text")

    write_atomically(tmp_path / "a.txt", write_more)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(["a.txt", "b.txt"], b"a text")


def test_a_file_that_cannot_be_removed_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, failures = Path.unlink, [OSError(errno.EIO, "Input/output error")]

    def fails_once(path: Path, missing_ok: bool = False) -> None:
        if failures:
            raise failures.pop()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", fails_once)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        check_writable(tmp_path)
    assert names(tmp_path) == []
    check_writable(tmp_path)
    assert names(tmp_path) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a partial file is abandoned once it is an hour old."""

    def no_locks(file: object, *, wait: bool = True) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(files, "_lock", no_locks)
    left = [tmp_path / f".tinygptv.{digit * 16}.part" for digit in "01"]
    for path, seconds in zip(left, (0, 2 * files._ABANDONED_SECONDS), strict=True):
        path.touch()
        os.utime(path, (time.time() - seconds,) * 2)
    write_atomically(tmp_path / "a.txt", lambda file: file.write(b"a text"))
    assert names(tmp_path) == [left[0].name, "a.txt"]


@posix
def test_a_file_that_is_removed_before_it_has_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may take it for an abandoned one: another is made."""
    lock, taken = files._lock, []

    def too_late(file: object, *, wait: bool = True) -> None:
        if not taken:
            taken.append(file.name)
            os.unlink(file.name)
        lock(file, wait=wait)

    monkeypatch.setattr(files, "_lock", too_late)
    write_atomically(tmp_path / "a.txt", lambda file: file.write(b"a text"))
    assert len(taken) == 1 and names(tmp_path) == ["a.txt"]


@posix
def test_never_another_writer_s_file(tmp_path: Path) -> None:
    """Processes that write and tidy up the same folder at once."""
    script = """
from tinygptv.runtime.system import files
for _ in range(200):
    files._remove_abandoned.cache_clear()
    write_atomically(place, lambda file: file.write(b'a text'))
"""
    for process in [start(script, tmp_path / f"{number}.txt") for number in range(3)]:
        finish(process)
    assert names(tmp_path) == ["0.txt", "1.txt", "2.txt"]


# Folders


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("left", [False, True], ids=["", "after a kill"])
def test_a_staging_folder_is_empty_and_goes(left: bool, tmp_path: Path) -> None:
    staging = tmp_path / ".a.partial"
    if left:
        folder_with(staging, "half")
    with staging_folder(staging) as folder:
        assert list(folder.iterdir()) == []
        (folder / "more").mkdir()
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), staging_folder(staging) as folder:
        (folder / "nowhere" / "file").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_staged_folder_is_published(there: bool, tmp_path: Path) -> None:
    target = tmp_path / "a"
    if there:
        folder_with(target, "old")
    with staging_folder(tmp_path / ".a.partial") as folder:
        (folder / "file").write_text("new")
        publish_folder(folder, target)
    assert names(tmp_path) == ["a"]
    assert (target / "file").read_text() == "new"


def test_the_old_folder_is_back_if_the_new_one_cannot_be_renamed(tmp_path: Path) -> None:
    target = folder_with(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError):
        publish_folder(tmp_path / "nowhere", target)
    assert names(tmp_path) == ["a"]
    assert (target / "file").read_text() == "old"


@posix
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_folder_is_published_loses_none(renames: int, tmp_path: Path) -> None:
    """What lies about then is gone once another is published."""
    target = folder_with(tmp_path / "a", "old")
    new = folder_with(tmp_path / ".a.partial", "new")
    script = """
rename, left = os.rename, int(sys.argv[3])
def dying(*arguments):
    global left
    if not left:
        die()
    left -= 1
    rename(*arguments)
os.rename = dying
if left == 2:
    import shutil
    shutil.rmtree = lambda path, **named: die() if os.path.exists(path) else None
publish_folder(Path(sys.argv[2]), place)
"""
    finish(start(script, target, new, renames), -signal.SIGKILL)
    found = {path.name: (path / "file").read_text() for path in tmp_path.iterdir()}
    assert "old" in found.values() and "new" in found.values()
    assert found.get("a") == ("old", None, "new")[renames]
    with staging_folder(new):
        (new / "file").write_text("newer")
        publish_folder(new, target)
    assert names(tmp_path) == ["a"]
    assert (target / "file").read_text() == "newer"


# Locks


HOLDING = """
with locked(place):
    print("locked", flush=True)
    sys.stdin.read()
"""


def holding(path: Path) -> subprocess.Popen[bytes]:
    """A process that has a lock until its input ends."""
    command = [sys.executable, "-c", HEAD + HOLDING, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline().strip() == b"locked"
    return process


def test_another_process_is_refused_or_waits(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    process = holding(path)
    with pytest.raises(RuntimeError, match="by another"), locked(path, RuntimeError("by another")):
        pytest.fail("not reached")
    waiting = start("with locked(place): print('mine')", path)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    finish(process)
    assert finish(waiting).strip() == b"mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(RuntimeError, match="taken"), locked(path, RuntimeError("taken")):
        pytest.fail("not reached")
    with locked(path, RuntimeError("taken")):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


@posix
def test_what_a_killed_lock_tried_is_removed(tmp_path: Path) -> None:
    """To lock in a folder, a file is made and removed first; a kill can come between."""
    left = tmp_path / f".tinygptv.{'0a' * 8}.part"
    left.touch()
    with locked(tmp_path / "any.lock"):
        assert not left.exists()


def test_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holding(path)
    process.kill()
    process.communicate()
    assert path.exists()
    with locked(path, RuntimeError("taken")):
        pass
    assert list(tmp_path.iterdir()) == []


@posix
def test_the_folder_may_go_at_any_time(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    vandal = start(
        """
while True:
    try:
        place.rmdir()
    except OSError:
        pass
    time.sleep(0.0005)
""",
        folder,
    )
    try:
        script = """
for _ in range(300):
    with locked(place):
        pass
"""
        for process in [start(script, folder / "lock") for _ in range(3)]:
            finish(process)
    finally:
        vandal.kill()
        vandal.communicate()
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(FileExistsError, match="folder"), locked(tmp_path / "folder" / "lock"):
        pytest.fail("not reached")


def test_never_two_at_once(tmp_path: Path) -> None:
    """Each adds to a number that is read, and written back later."""
    number, script = (
        tmp_path / "number",
        """
number = Path(sys.argv[2])
for _ in range(15):
    with locked(place):
        found = int(number.read_text())
        time.sleep(0.002)
        number.write_text(str(found + 1))
""",
    )
    number.write_text("0")
    for process in [start(script, tmp_path / "lock", number) for _ in range(4)]:
        finish(process)
    assert number.read_text() == "60"
    assert names(tmp_path) == ["number"]


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock"):
        pytest.fail("not reached")


def test_a_folder_that_refuses_is_not_taken_for_a_held_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows filelock 3 takes it for that, and waits for ever: it must not be asked at all."""
    folder = tmp_path / "folder"

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def wait(lock: filelock.FileLock) -> None:
        pytest.fail("it would wait for ever")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(filelock.FileLock, "acquire", wait)
    for refusal in (None, RuntimeError("taken")):
        with pytest.raises(PermissionError, match=r"Permission denied: '.*folder'"), locked(folder / "lock", refusal):
            pytest.fail("not reached")
    assert list(folder.iterdir()) == []
