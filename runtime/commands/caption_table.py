"""Captions as a Parquet table, which is always written completely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captioning import arrow_types
from ..errors import ArgumentError
from ..system.files import write_atomically
from .caption_record import COLUMNS, Caption, from_document

if TYPE_CHECKING:
    import pyarrow

_ROWS = 65536
"""Rows of a row group; this many are Python objects at a time."""


def read_table(path: Path) -> list[Caption]:
    """Read all captions of a file.

    Raises:
        ArgumentError: The file contains anything but captions.
        OSError: The file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            if table.schema_arrow.remove_metadata() != _schema():
                raise ValueError("another schema")
            batches = table.iter_batches(batch_size=_ROWS)
            return [from_document(row) for batch in batches for row in batch.to_pylist()]
    except (pyarrow.ArrowException, ValueError) as error:
        raise ArgumentError(
            f"{path} holds no captions that this command wrote; expected its earlier output, or a new file"
        ) from error


def write_table(path: Path, captions: Sequence[Caption]) -> None:
    """Write all captions; the old file is kept until the new one is complete.

    Raises:
        OSError: The file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    def groups() -> Iterator[Any]:
        for start in range(0, len(captions), _ROWS):
            rows = [asdict(caption) for caption in captions[start : start + _ROWS]]
            yield pyarrow.RecordBatch.from_pylist(rows, schema=_schema())

    def write(file: Any) -> None:
        with parquet.ParquetWriter(file, _schema()) as table:
            for group in groups():
                table.write_batch(group)

    write_atomically(path, write)


def _schema() -> pyarrow.Schema:
    import pyarrow

    types = {"size": pyarrow.int64(), "mtime": pyarrow.float64(), "regions": arrow_types()["regions"]}
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS])
