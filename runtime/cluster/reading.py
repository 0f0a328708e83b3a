"""Tasks that read pictures for the model's actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, reason_of
from .places import is_local, persistently, place_of, read_bytes
from .sources import Unit

if TYPE_CHECKING:
    import pyarrow

USUAL_COLUMNS = ("image", "jpg", "png", "bytes", "path", "file", "url")
"""Default columns with pictures in tables; the first existing one is used."""
_BATCH_BYTES = 64_000_000
"""Size at which a batch of large pictures ends, however few they are."""
_ROWS = 16
"""Number of a table's rows that are decompressed at a time."""


def schema() -> pyarrow.Schema:
    """Schema of the tables from :func:`read`; either ``image`` or ``error`` is null."""
    import pyarrow

    text = pyarrow.string()
    return pyarrow.schema(
        [
            ("number", pyarrow.int64()),
            ("source", text),
            ("row", pyarrow.int64()),
            ("name", text),
            ("image", pyarrow.large_binary()),
            ("error", text),
        ]
    )


def read(unit: Unit, column: str | None, at_once: int) -> Iterator[pyarrow.Table]:
    """Read pictures.

    Args:
        unit: The pictures to read.
        column: For a table, the column with its pictures.
        at_once: Number of pictures in each batch, except for the last one and for those of very large pictures.

    Yields:
        Batches in the form of :func:`schema`. A picture that cannot be read has an error, without effect on others.
    """
    import pyarrow

    ways = {"files": _files, "shard": _members, "table": _rows}
    found: Iterable[tuple[Any, ...]] = ways[unit.kind](unit, column)
    columns, rows, size = schema(), [], 0
    for row in found:
        rows.append(dict(zip(columns.names, row, strict=True)))
        size += len(rows[-1]["image"] or b"")
        if len(rows) == at_once or size >= _BATCH_BYTES:
            yield pyarrow.Table.from_pylist(rows, columns)
            rows, size = [], 0
    if rows:
        yield pyarrow.Table.from_pylist(rows, columns)


def _files(unit: Unit, _: str | None) -> Iterator[tuple[Any, ...]]:
    for number, uri in zip(unit.numbers, unit.items, strict=True):
        yield number, uri, None, None, *_tried(partial(read_bytes, uri))


def _tried(work: Callable[[], bytes]) -> tuple[bytes | None, str | None]:
    try:
        return work(), None
    except (OSError, ArgumentError) as error:
        return None, f"it cannot be read: {reason_of(error)}"


def _members(unit: Unit, _: str | None) -> Iterator[tuple[Any, ...]]:
    for number, row, (name, start, size) in zip(unit.numbers, unit.rows, unit.items, strict=True):
        part = partial(_part, unit.uri, start, size)
        yield number, unit.uri, row, name, *_tried(partial(persistently, part, local=is_local(unit.uri)))


def _part(uri: str, start: int, size: int) -> bytes:
    file_system, path = place_of(uri)
    with file_system.open_input_file(path) as file:
        data: bytes = file.read_at(size, start)
    if len(data) != size:
        raise OSError("it ends too early")
    return data


def _rows(unit: Unit, column: str | None) -> Iterator[tuple[Any, ...]]:
    import pyarrow

    number_of = dict(zip(unit.rows, unit.numbers, strict=True))
    for group, rows in unit.groups.items():
        wanted = {row: number_of[row] for row in rows if row in number_of}
        try:
            for row, value in zip(rows, _group(unit.uri, group, column), strict=False):
                if row in wanted:
                    yield wanted.pop(row), unit.uri, row, *_value(value.as_py(), unit.uri)
            if wanted:
                raise ValueError("it has fewer rows than when it was scanned")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            for row, number in wanted.items():
                yield number, unit.uri, row, None, None, f"the table cannot be read: {reason_of(error)}"


def _group(uri: str, group: int, column: str | None) -> Iterator[pyarrow.Scalar]:
    """Values of the column with the pictures in a row group."""
    from pyarrow import parquet

    file_system, path = place_of(uri)
    with file_system.open_input_file(path) as file, parquet.ParquetFile(file) as table:
        chosen = column_of(table.schema_arrow.names, column)
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[chosen]):
            yield from batch.column(0)


def column_of(names: list[str], column: str | None) -> str:
    """The column with the pictures.

    Raises:
        ValueError: The table has no such column, or none of the default ones.
    """
    found = [name for name in ([column] if column else USUAL_COLUMNS) if name in names]
    if not found:
        looked = column or f"of the usual names ({', '.join(USUAL_COLUMNS)})"
        raise ValueError(f"no column {looked}; it has {', '.join(names)}: choose with --column")
    return found[0]


def _value(value: object, uri: str) -> tuple[str | None, bytes | None, str | None]:
    """Name, bytes and error for a column's value: bytes, a path, or both, as in Hugging Face's datasets."""
    match value:
        case bytes(data):
            return None, data, None
        case str(path):
            return path, *_tried(partial(read_bytes, _beside(path, uri)))
        case {"bytes": bytes(data), "path": str() | None as path, **_more}:
            return path, data, None
        case {"path": str(path), **_more}:
            return path, *_tried(partial(read_bytes, _beside(path, uri)))
        case None:
            return None, None, "the row has no picture"
    return None, None, f"the column holds {type(value).__name__}; expected bytes or a path"


def _beside(path: str, uri: str) -> str:
    """Resolve a path in a table; relative paths are relative to the table's folder."""
    if not is_local(path) or os.path.isabs(path):
        return path
    if is_local(uri):
        return os.path.join(os.path.dirname(uri), path)
    return f"{uri.rsplit('/', 1)[0]}/{path}"
