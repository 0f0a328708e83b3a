"""Batched answers to many questions, each yielded as soon as it is complete."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .answer import Answer
from .cancel import Cancellation
from .engine import Engine, Prepared
from .language.batch import decode_batch
from .language.embeddings import assemble
from .vision.encoded import EncodedImage
from .vision.image import ImageSource

IMAGES_AHEAD = 32
"""Images encoded in one go with little memory, where each change between images and text takes seconds."""


class _Question:
    """One row of the batch; its sampling does not depend on the other rows."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        image: ImageSource | EncodedImage,
        prepared: Prepared,
        cancellation: Cancellation,
    ) -> None:
        self._engine = engine
        self.number = number
        self._image = image
        self.prepared = prepared
        self._cancellation = cancellation
        self._encoded: EncodedImage | None = None
        self._sample = prepared.sampler()

    def encode(self) -> EncodedImage:
        """The image, encoded now if necessary."""
        self._encoded = self._encoded or self._engine.encode_image(self._image, self._cancellation)
        return self._encoded

    def inputs_embeds(self) -> NDArray[np.float32]:
        image = self.encode()
        self.prepared.writer.begin([image], [image] if image is not self._image else [])
        return assemble(self._engine.table, self.prepared.segments, [image.embeds])

    def sample(self, logits: NDArray[np.float32]) -> int:
        return self._sample(logits)

    def push(self, token_id: int) -> bool:
        self.prepared.writer.push(token_id)
        return not self.prepared.writer.complete


def answer_each(
    engine: Engine,
    asked: Iterable[tuple[ImageSource | EncodedImage, Prepared]],
    batch_size: int,
    cancellation: Cancellation,
) -> Generator[tuple[int, Answer], None, None]:
    """Answer questions in batches.

    Args:
        engine: The model's engine.
        asked: Images and prompts, taken as rows become free.
        batch_size: Maximum number of answers in the batch, at least 1.
        cancellation: Ends it from another thread.

    Yields:
        A question's index, from 0, and its answer, as soon as that is complete.

    Raises:
        ImageError: An image cannot be read.
        CancellationError: It was cancelled.
    """
    questions = (
        _Question(engine, number, image, prepared, cancellation) for number, (image, prepared) in enumerate(asked)
    )
    if not engine.sessions.low_memory:
        yield from _batched(engine, questions, batch_size, cancellation)
        return
    # Graphs don't share the memory: a number of images first, then the text about them.
    while some := list(islice(questions, IMAGES_AHEAD)):
        for question in some:
            question.encode()
        yield from _batched(engine, some, batch_size, cancellation)


def _batched(
    engine: Engine, questions: Iterable[_Question], batch_size: int, cancellation: Cancellation
) -> Generator[tuple[int, Answer], None, None]:
    ends = engine.manifest.eos_token_ids
    with engine.telling():
        decoder = engine.sessions.decoder(cancellation)
        rows = decode_batch(decoder, questions, engine.table.rows, ends, batch_size, cancellation)
        with closing(rows):
            for row in rows:
                yield row.number, row.prepared.writer.finish()[1]
