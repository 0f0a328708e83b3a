"""Captions of many pictures, or the answers to one question about each: from pictures to records, and nothing else."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

from .answer import Answer, FinishReason
from .boxes import Region
from .cancel import Cancellation
from .errors import ImageError
from .model import DEFAULT_BATCH_SIZE, Picture, TinyGPTV
from .options import AnswerOptions
from .vision.encoded import EncodedImage


@dataclass(frozen=True)
class Captioned:
    """The result for one picture: a text, or an error."""

    text: str | None
    """The answer, without white space at its ends; None where the picture cannot be read."""
    finish_reason: FinishReason | None
    regions: tuple[Region, ...]
    """The phrases and boxes of the text, as :attr:`.Answer.regions`."""
    error: str | None
    """What is wrong with the picture; None where there is a text."""


def arrow_types() -> dict[str, Any]:
    """The columns of :class:`Captioned` in a table, and pyarrow's types for them."""
    import pyarrow

    boxes = pyarrow.list_(pyarrow.list_(pyarrow.int64()))
    region = pyarrow.struct([("phrase", pyarrow.string()), ("boxes", boxes)])
    kinds = {"regions": pyarrow.list_(region)}
    return {field.name: kinds.get(field.name, pyarrow.string()) for field in fields(Captioned)}


def caption_each(
    model: TinyGPTV,
    images: Iterable[Picture],
    question: str | None = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    options: AnswerOptions | None = None,
    cancellation: Cancellation | None = None,
) -> Generator[tuple[int, Captioned], None, None]:
    """Ask one question about each of many pictures, batched.

    Args:
        model: A loaded one; threads may share it.
        images: As many as there are; each is read when there is room for it in the batch.
        question: What to ask; the bundle's own question for a caption if None.
        batch_size: Answers decoded at a time, at least 1.
        options: Options of each answer.
        cancellation: Ends it from another thread, within one operator.

    Returns:
        A generator of (the picture's number, from 0; its record), each as soon as it is complete, in any order. A
        picture that cannot be read does not affect the others. Call its ``close()`` to leave earlier.

    Raises:
        ArgumentError: The question is empty, or an option is out of range.
        ContextOverflowError: Picture, question and answer do not fit in the context.
        CancellationError: It was cancelled; by the generator, as is ContextOverflowError.
    """
    wanted = model.manifest.caption_question if question is None else question
    readable: list[int] = []
    """Indices of the readable pictures, in the order of their questions."""
    failed: list[tuple[int, Captioned]] = []

    def asked() -> Iterator[tuple[EncodedImage, str]]:
        for number, image in enumerate(images):
            try:
                encoded = model.encode_image(image, cancellation=cancellation)
            except ImageError as error:
                failed.append((number, Captioned(None, None, (), str(error))))
            else:
                readable.append(number)
                yield encoded, wanted

    answers = model.ask_each(asked(), batch_size=batch_size, options=options, cancellation=cancellation)
    return _records(answers, readable, failed)


def _records(
    answers: Generator[tuple[int, Answer], None, None], readable: list[int], failed: list[tuple[int, Captioned]]
) -> Generator[tuple[int, Captioned], None, None]:
    with closing(answers):
        for place, answer in answers:
            while failed:
                yield failed.pop(0)
            yield readable[place], Captioned(answer.text.strip(), answer.finish_reason, answer.regions, None)
    yield from failed
