"""Lists pictures from all sources: files, rows of Parquet tables, members of WebDataset shards."""

from __future__ import annotations

import glob
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ArgumentError, reason_of
from ..folder import SUFFIXES, Unreadable, pictures_in
from .output import SETTINGS
from .places import absolute, is_local, persistently, place_of

Kind = Literal["files", "table", "shard"]

PICTURES_A_UNIT = 256
"""Number of pictures read by one task, which yields them as it reads; row groups of tables stay whole."""
NOT_UNICODE = "its name is not Unicode, which Parquet cannot hold: rename it"
TABLES = (".parquet", ".pq")
SHARDS = (".tar",)


@dataclass(frozen=True)
class Container:
    """A file with many pictures, after scanning."""

    uri: str
    kind: Kind
    groups: tuple[int, ...] = ()
    """For a table: the number of rows of each row group."""
    members: tuple[tuple[str, int, int], ...] = ()
    """For a shard: the name, offset and size in bytes of each picture."""
    error: str | None = None
    """Why the rest of the file cannot be read."""

    @property
    def count(self) -> int:
        """Number of pictures."""
        return sum(self.groups) + len(self.members)


@dataclass(frozen=True)
class Unit:
    """The pictures that one task reads."""

    kind: Kind
    uri: str
    """URI of the container; empty for files."""
    numbers: list[int]
    """Numbers of the pictures within the run."""
    items: list[Any]
    """For files: the URI of each. For a shard: name, offset and size. Empty for a table."""
    rows: list[int]
    """Row of each picture in its container; empty for files."""
    groups: dict[int, range]
    """For a table: the indices of its row groups, and the rows of each."""


@dataclass
class Found:
    """All sources that were found."""

    files: list[str]
    containers: list[str]
    """URIs of the tables and shards to scan."""
    unreadable: list[tuple[str, str]]
    """Names that cannot be accessed, and why."""


def find(sources: Sequence[str], *, is_table: bool) -> Found:
    """List the sources that a user named.

    Args:
        sources: Files, folders and globs (``*``, ``?``, ``[]``, ``**``), as paths or URIs. In a folder, hidden names
            (``.``, ``_``) are skipped; its pictures are used, or if there are none its shards, or if there are none
            of these either its tables. Captions of this program, in folders below it or found by a glob, are skipped.
        is_table: Whether folders contain tables.

    Raises:
        ArgumentError: A source does not exist, cannot be read, or has no pictures.
    """
    found = Found([], [], [])
    for source in sources:
        uri = absolute(source)
        before = _count(found)
        try:
            for name in _expand(uri):
                _add(name, found, is_table)
        except OSError as error:
            raise ArgumentError(f"{source} cannot be read: {reason_of(error)}") from error
        if _count(found) == before:
            raise ArgumentError(
                f"{source} has no pictures; expected files such as .jpg, .png or .webp, .parquet tables, or .tar shards"
            )
    twice = len(found.files) - len(set(found.files)) + len(found.containers) - len(set(found.containers))
    if twice:
        raise ArgumentError(f"{twice} files are in more than one SOURCE; name each once")
    return found


def _count(found: Found) -> int:
    return len(found.files) + len(found.containers) + len(found.unreadable)


def _expand(uri: str) -> Iterator[str]:
    """Files and folders that match a glob."""
    if not glob.has_magic(uri) or (is_local(uri) and os.path.exists(uri)):
        yield uri
        return
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileType

    file_system, path = place_of(uri)
    head = "" if is_local(uri) else uri[: len(uri) - len(path)]
    names = sorted(ArrowFSWrapper(file_system).glob(path))
    folder_of = {
        name: posixpath.dirname(name) if _ends(name, TABLES) else name
        for name in names
        if not _ends(name, (*SUFFIXES, *SHARDS))
    }
    folders = sorted(set(folder_of.values()))
    settings = file_system.get_file_info([f"{folder}/{SETTINGS}" for folder in folders])
    outputs = {folder for folder, info in zip(folders, settings, strict=True) if info.type != FileType.NotFound}
    for name in names:
        if not _is_hidden(name[len(os.path.commonpath([name, path])) :]) and folder_of.get(name) not in outputs:
            yield head + name


def _add(uri: str, found: Found, is_table: bool) -> None:
    from pyarrow.fs import FileType

    file_system, path = place_of(uri)
    (info,) = file_system.get_file_info([path])
    if info.type == FileType.NotFound:
        raise ArgumentError(f"{uri} does not exist; expected a folder, a file, a glob, or a URI such as s3://")
    if info.type != FileType.Directory:
        if _ends(uri, (*TABLES, *SHARDS)):
            found.containers.append(uri)
        elif _ends(uri, SUFFIXES):
            found.files.append(uri)
        else:
            raise ArgumentError(
                f"{uri} is no picture, .parquet table or .tar shard, by its ending"
                + (": unpack shards that are compressed" if uri.endswith((".tar.gz", ".tgz", ".tar.zst")) else "")
            )
        return
    kept = _count(found)
    if not is_table and is_local(uri):
        _add_folder(uri, found)
        if _count(found) > kept:
            return
    names = _names(uri)
    if not is_table:
        found.files.extend(uri.rstrip("/") + name for name in names if _ends(name, SUFFIXES))
    for endings in [TABLES] if is_table else [SHARDS, TABLES]:
        if _count(found) == kept:
            found.containers.extend(uri.rstrip("/") + name for name in names if _ends(name, endings))


def _names(uri: str) -> list[str]:
    """Files in a folder and its subfolders, sorted: the path of each within the folder."""
    from pyarrow.fs import FileSelector, FileType

    if is_local(uri):
        top = uri.rstrip("/\\")
        below = [os.path.join(folder, name)[len(top) :] for folder, _, names in os.walk(top) for name in names]
    else:
        file_system, path = place_of(uri)
        found = file_system.get_file_info(FileSelector(path, recursive=True))
        below = [info.path[len(path) :] for info in found if info.type == FileType.File]
    # An output that was named itself is meant.
    outputs = {os.path.dirname(name) for name in below if os.path.basename(name) == SETTINGS != name[1:]}
    return [name for name in sorted(below) if not _is_hidden(name) and os.path.dirname(name) not in outputs]


def _add_folder(uri: str, found: Found) -> None:
    """Add the pictures of a local folder, found as by ``tinygptv caption``."""
    for picture in pictures_in([Path(uri)]):
        name = os.path.join(uri, *picture.file.split("/"))
        if isinstance(picture, Unreadable):
            found.unreadable.append((_unicode(name), picture.error))
        elif _unicode(name) != name:
            found.unreadable.append((_unicode(name), NOT_UNICODE))
        else:
            found.files.append(name)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return os.path.splitext(name)[1].lower() in endings


def _is_hidden(below: str) -> bool:
    return any(part.startswith((".", "_")) for part in below.replace(os.sep, "/").split("/"))


def _unicode(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def look_through(uri: str) -> Container:
    """Count a table's rows or locate a shard's pictures, without reading the pictures.

    Args:
        uri: URI of a ``.parquet`` or ``.tar`` file.

    Returns:
        The container, as far as the file can be read.
    """
    if _ends(uri, SHARDS):
        return _look_through_shard(uri)
    import pyarrow
    from pyarrow import parquet

    def read() -> Container:
        file_system, path = place_of(uri)
        with file_system.open_input_file(path) as file, parquet.ParquetFile(file) as table:
            found = table.metadata
            groups = tuple(found.row_group(group).num_rows for group in range(found.num_row_groups))
            return Container(uri, "table", groups=groups)

    try:
        return persistently(read, local=is_local(uri))
    except (OSError, pyarrow.ArrowException) as error:
        return Container(uri, "table", error=f"the table cannot be read: {reason_of(error)}")


def _look_through_shard(uri: str) -> Container:
    def read() -> Container:
        members: list[tuple[str, int, int]] = []
        file_system, path = place_of(uri)
        with file_system.open_input_file(path) as file:
            size, error = file.size(), None
            try:
                with tarfile.open(fileobj=file, mode="r:") as shard:
                    for member in shard:
                        if not member.isreg() or not _ends(member.name, SUFFIXES):
                            continue
                        if member.sparse is not None:
                            raise tarfile.ReadError(f"{member.name} is a sparse file")
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError(f"it ends within {member.name}")
                        members.append((_unicode(member.name), member.offset_data, member.size))
            except tarfile.TarError as failure:
                error = f"the shard cannot be read beyond {len(members)} pictures: {failure}"
        return Container(uri, "shard", (), tuple(members), error)

    try:
        return persistently(read, local=is_local(uri))
    except OSError as error:
        return Container(uri, "shard", error=f"the shard cannot be read: {reason_of(error)}")


def units_of(container: Container, first: int, done: Iterable[int]) -> Iterator[Unit]:
    """The units of a container that are still to be read.

    Args:
        container: A scanned container.
        first: The number of its first picture in this run.
        done: Rows that are already done.
    """
    skipped = set(done)
    if container.kind == "shard":
        rows = [row for row in range(len(container.members)) if row not in skipped]
        for start in range(0, len(rows), PICTURES_A_UNIT):
            some = rows[start : start + PICTURES_A_UNIT]
            numbers = [first + row for row in some]
            yield Unit("shard", container.uri, numbers, [container.members[row] for row in some], some, {})
        return
    start = 0
    unit = Unit("table", container.uri, [], [], [], {})
    for group, count in enumerate(container.groups):
        if some := [row for row in range(start, start + count) if row not in skipped]:
            unit.groups[group] = range(start, start + count)
            unit.rows.extend(some)
            unit.numbers.extend(first + row for row in some)
            if len(unit.rows) >= PICTURES_A_UNIT:
                yield unit
                unit = Unit("table", container.uri, [], [], [], {})
        start += count
    if unit.rows:
        yield unit


def units_of_files(files: Sequence[tuple[int, str]]) -> Iterator[Unit]:
    """The units for files.

    Args:
        files: The number of each file in this run, and its URI.
    """
    for start in range(0, len(files), PICTURES_A_UNIT):
        some = files[start : start + PICTURES_A_UNIT]
        yield Unit("files", "", [number for number, _ in some], [uri for _, uri in some], [], {})
