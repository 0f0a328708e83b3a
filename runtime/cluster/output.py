"""The captions of a run as a folder of Parquet files, each complete or absent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..captioning import arrow_types
from ..errors import ArgumentError
from ..system.files import locked, write_atomically
from .places import absolute, is_local, place_of

if TYPE_CHECKING:
    import pyarrow

SETTINGS = "_tinygptv.json"
"""File with the settings of the run; readers of Parquet ignore names that begin with ``_``."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0
"""Minimum and maximum seconds between writes; within these, a hundredth of the run so far, so that a kill loses no
more than that, and a run of weeks does not leave a million files."""
MOST_ROWS = 100_000
"""Maximum number of rows of a file."""


def schema() -> pyarrow.Schema:
    """Schema of every file: the row's origin (``source``, ``row``, ``name``), question, model and answer."""
    import pyarrow

    text = pyarrow.string()
    names = {"source": text, "row": pyarrow.int64(), "name": text, "model": text, "bundle": text, "question": text}
    return pyarrow.schema({**names, **arrow_types()})


class Output:
    """The existing rows of a run, and the new ones."""

    def __init__(self, uri: str, settings: Mapping[str, str]) -> None:
        """
        Args:
            uri: URI of the folder; created if it does not exist.
            settings: Values that are the same for all rows; each is a column.

        Raises:
            ArgumentError: The folder contains other files, or rows with other settings.
            OSError: The folder cannot be read or created.
        """
        self._uri, self._settings = uri, dict(settings)
        self._file_system, self._path = place_of(uri)
        self._rows: list[pyarrow.Table] = []
        self._started = self._written = time.monotonic()
        self._parts = self._begin()

    def _begin(self) -> list[str]:
        """The existing files of the output."""
        from pyarrow.fs import FileSelector

        if is_local(self._uri):  # object stores have no folders
            Path(self._path).mkdir(parents=True, exist_ok=True)
        parts, others = [], set()
        for info in self._file_system.get_file_info(FileSelector(self._path, allow_not_found=True)):
            if info.base_name.startswith(("_part-", f"_{SETTINGS}")):  # of a run that was killed
                self._file_system.delete_file(info.path)
            elif info.base_name.startswith("part-") and info.extension == "parquet":
                parts.append(info.base_name)
            elif not info.base_name.startswith("."):
                others.add(info.base_name)
        if SETTINGS in others and parts:
            self._check()
        elif parts or others - {SETTINGS}:
            raise ArgumentError(
                f"{self._uri} holds files of something else; expected the OUTPUT of an earlier run, or a new folder"
            )
        else:
            self._write(SETTINGS, json.dumps(self._settings, indent=2).encode() + b"\n")
        return sorted(parts)

    def _check(self) -> None:
        path = f"{self._path}/{SETTINGS}"
        try:
            with self._file_system.open_input_file(path) as file:
                found = json.loads(file.read())
            theirs = {name: found[name] for name in self._settings}
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"{self._uri}/{SETTINGS} is damaged; choose another OUTPUT") from error
        for name, ours in self._settings.items():
            if theirs[name] != ours:
                raise ArgumentError(
                    f"{self._uri} has captions of another {name}: {theirs[name]!r}, not {ours!r}; choose another OUTPUT"
                )

    def done(self, *, retry_failed: bool) -> pyarrow.Table:
        """Columns ``source`` and ``row`` of the existing rows.

        Args:
            retry_failed: Whether to remove rows with an error, so that they are tried again.

        Raises:
            ArgumentError: A file is damaged.
            OSError: It cannot be read.
        """
        import pyarrow
        from pyarrow import parquet

        columns, found = ["source", "row"], []
        for name in self._parts:
            try:
                with self._file_system.open_input_file(f"{self._path}/{name}") as file:
                    table = parquet.read_table(file, schema=schema(), columns=None if retry_failed else columns)
            except pyarrow.ArrowInvalid as error:
                where = f"{self._uri}/{name}"
                raise ArgumentError(f"{where} is damaged; remove it: its captions are made again") from error
            if retry_failed and table.column("error").null_count < len(table):
                table = table.filter(pyarrow.compute.is_null(table.column("error")))
                self._write(name, _bytes_of(table))
            found.append(table.select(columns))
        return pyarrow.concat_tables(found) if found else schema().empty_table().select(columns)

    def add(self, rows: pyarrow.Table) -> None:
        """Add rows with the columns of :func:`schema` except for the settings; written soon, or by :meth:`flush`.

        Raises:
            OSError: The rows cannot be written.
        """
        import pyarrow

        columns = []
        for field in schema():
            if (value := self._settings.get(field.name)) is not None:
                columns.append(pyarrow.repeat(pyarrow.scalar(value, field.type), len(rows)))
            elif field.name in rows.column_names:
                columns.append(rows.column(field.name).cast(field.type))
            else:  # of what could not even be asked about
                columns.append(pyarrow.nulls(len(rows), field.type))
        self._rows.append(pyarrow.table(columns, schema=schema()))
        now = time.monotonic()
        pause = min(max(FIRST_PAUSE, (now - self._started) / 100), LONGEST_PAUSE)
        if now - self._written > pause or sum(map(len, self._rows)) >= MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write all pending rows; once this returns, killing any process cannot lose them.

        Raises:
            OSError: The rows cannot be written.
        """
        import pyarrow

        if self._rows:
            name = f"part-{int(time.time() * 1000):013d}-{os.urandom(4).hex()}.parquet"
            self._write(name, _bytes_of(pyarrow.concat_tables(self._rows)))
            self._rows = []
        self._written = time.monotonic()

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._path}/{name}"
        if is_local(self._uri):
            write_atomically(Path(path), lambda file: file.write(data))
            return
        made = f"{self._path}/_{name}"
        with self._file_system.open_output_stream(made) as file:
            file.write(data)
        self._file_system.move(made, path)


def _bytes_of(table: pyarrow.Table) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


@contextmanager
def open_output(name: str, settings: Mapping[str, str]) -> Iterator[Output]:
    """Open the folder, and lock it against other runs if it is local; pending rows are written at the end.

    Raises:
        ArgumentError: See :class:`Output`; or another run is writing to it.
        OSError: It cannot be read or written.
    """
    uri = absolute(name)
    refusal = ArgumentError(f"another run is writing to {name}; wait for it, or choose another OUTPUT")
    with locked(Path(uri, ".lock"), refusal) if is_local(uri) else nullcontext():
        output = Output(uri, settings)
        try:
            yield output
        finally:
            output.flush()
