"""Batches of pictures, each packed into a single row, which Ray neither cuts nor joins as it does with rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

COLUMN = "batch"


def pack(rows: pyarrow.Table) -> pyarrow.Table:
    """One row with the list of the given rows."""
    import pyarrow

    structs = rows.combine_chunks().to_struct_array().combine_chunks()
    return pyarrow.table({COLUMN: pyarrow.LargeListArray.from_arrays([0, len(rows)], structs)})


def unpack(batches: pyarrow.Table) -> pyarrow.Table:
    """The rows of all given batches."""
    import pyarrow

    return pyarrow.Table.from_struct_array(batches.column(COLUMN).combine_chunks().flatten())
