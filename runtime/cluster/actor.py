"""The model in a Ray actor: captions pictures batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..captioning import Captioned, arrow_types, caption_each
from ..errors import ArgumentError, ImageError, reason_of
from ..options import AnswerOptions
from ..vision.image import ImageSource
from .batches import pack, unpack
from .node import Cores, Model, load
from .places import is_local, read_bytes

if TYPE_CHECKING:
    import pyarrow

CaptionEach = Callable[[Iterable[ImageSource]], Iterator[tuple[int, Captioned]]]
""":func:`.caption_each` for one model and question."""
ERROR = "error"
"""Column with errors: rows that already have one are passed through."""


@dataclass(frozen=True)
class Asking:
    """The question about every picture, with its options."""

    question: str | None
    batch_size: int
    options: AnswerOptions


def model_in_actor(model: Model, asking: Asking) -> CaptionEach:
    """Load the model on cores reserved for this actor."""
    cores = Cores(model.threads)
    cores.use()
    loaded = load(model)

    def caption(images: Iterable[ImageSource]) -> Iterator[tuple[int, Captioned]]:
        cores.use()
        return caption_each(loaded, images, asking.question, batch_size=asking.batch_size, options=asking.options)

    return caption


class Captioner:
    """The class for ``Dataset.map_batches``: created in each actor, and called with a batch of rows."""

    def __init__(self, make: Callable[[], CaptionEach], column: str, keep: bool) -> None:
        """
        Args:
            make: Loads the model.
            column: Column with the pictures.
            keep: Whether to keep the pictures in the rows.
        """
        from ray.util.metrics import Counter

        self._caption = make()
        self._column, self._keep = column, keep
        self._counters = {
            "captioned": Counter("tinygptv_captioned", "Pictures that have a caption."),
            "failed": Counter("tinygptv_failed", "Pictures that cannot be read."),
        }

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """The same rows in the same order, with captions."""
        values = rows.column(self._column).to_pylist()
        known = rows.column(ERROR).to_pylist() if ERROR in rows.column_names else [None] * len(values)
        found: dict[int, Captioned] = {}
        pictures: dict[int, ImageSource] = {}
        for place, (value, error) in enumerate(zip(values, known, strict=True)):
            try:
                if error is not None:
                    raise ImageError(error)
                pictures[place] = picture_of(value)
            except ImageError as failure:
                found[place] = Captioned(None, None, (), str(failure))
        places = list(pictures)
        for number, record in self._caption(pictures.values()):
            found[places[number]] = record
        failed = sum(record.error is not None for record in found.values())
        for name, count in (("captioned", len(found) - failed), ("failed", failed)):
            if count:  # which Ray does not take for a step
                self._counters[name].inc(count)
        return self._with(rows, [found[place] for place in range(len(values))])

    def _with(self, rows: pyarrow.Table, records: list[Captioned]) -> pyarrow.Table:
        import pyarrow

        types, documents = arrow_types(), [asdict(record) for record in records]
        dropped = types.keys() | (set() if self._keep else {self._column})
        kept = rows.select([name for name in rows.column_names if name not in dropped])
        for name, kind in types.items():
            kept = kept.append_column(name, pyarrow.array([document[name] for document in documents], kind))
        return kept


class BatchCaptioner(Captioner):
    """The same for packed batches."""

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """One packed batch, with captions."""
        return pack(super().__call__(unpack(rows)))


def picture_of(value: object) -> ImageSource:
    """The picture in a row: bytes, a path or URI, uint8 [height, width, channels], or a dict of bytes and path.

    Raises:
        ImageError: The value has another type, or cannot be read.
    """
    match value:
        case bytes():
            return value
        case str() if is_local(value):
            return value
        case str():
            try:
                return read_bytes(value)
            except (OSError, ArgumentError) as error:
                raise ImageError(f"it cannot be read: {reason_of(error)}") from error
        case np.ndarray():
            try:
                return Image.fromarray(value)
            except (TypeError, ValueError) as error:
                raise ImageError(f"samples {value.dtype} {list(value.shape)} are no picture") from error
        case {"bytes": bytes(data)}:
            return data
        case {"path": str(path)}:
            return picture_of(path)
        case None:
            raise ImageError("the row has no picture")
    raise ImageError(f"the column holds {type(value).__name__}; expected bytes or a path")
