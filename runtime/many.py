"""Many questions at once, each answer given as soon as it is whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .answer import Answer, EncodedImage
from .cancel import Cancellation
from .engine import Engine, Prepared
from .language.batch import greedy_batch
from .language.embeddings import assemble
from .vision.image import ImageSource

IMAGES_AHEAD = 32
"""Encoded one after the other with little memory, where each change between images and text takes seconds."""


@dataclass
class _Question:
    """One row of the batch."""

    engine: Engine
    number: int
    image: ImageSource | EncodedImage
    prepared: Prepared
    cancellation: Cancellation
    encoded: EncodedImage | None = None

    def encode(self) -> EncodedImage:
        """The image, encoded now if it was not."""
        self.encoded = self.encoded or self.engine.encode_image(self.image, self.cancellation)
        return self.encoded

    def inputs_embeds(self) -> NDArray[np.float32]:
        image = self.encode()
        self.prepared.writer.begin([image] if image is not self.image else [])
        return assemble(self.engine.table, self.prepared.segments, [image.embeds])

    def push(self, token_id: int) -> bool:
        self.prepared.writer.push(token_id)
        return not self.prepared.writer.complete


def answer_each(
    engine: Engine,
    asked: Iterable[tuple[ImageSource | EncodedImage, Prepared]],
    batch_size: int,
    cancellation: Cancellation,
) -> Iterator[tuple[int, Answer]]:
    """Answer questions in step.

    Args:
        engine: The model's.
        asked: Images and prompts, taken as there is room for them.
        batch_size: Answers written in step, at least 1.
        cancellation: Ends it from another thread.

    Yields:
        A question's number, from 0, and its answer, as soon as that is whole.

    Raises:
        ImageError: An image cannot be read.
        CancellationError: It was cancelled.
    """
    questions = (
        _Question(engine, number, image, prepared, cancellation) for number, (image, prepared) in enumerate(asked)
    )
    if not engine.graphs.low_memory:
        yield from _in_step(engine, questions, batch_size, cancellation)
        return
    # Graphs don't share the memory: a number of images first, then the text about them.
    while some := list(islice(questions, IMAGES_AHEAD)):
        for question in some:
            question.encode()
        yield from _in_step(engine, some, batch_size, cancellation)


def _in_step(
    engine: Engine, questions: Iterable[_Question], batch_size: int, cancellation: Cancellation
) -> Iterator[tuple[int, Answer]]:
    ends = engine.manifest.eos_token_ids
    for whole in greedy_batch(engine.graphs.decoder(), questions, engine.table.rows, ends, batch_size, cancellation):
        yield whole.number, whole.prepared.writer.finish()[1]
