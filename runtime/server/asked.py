"""What every API's request comes to, and what its answers are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..answer import Answer
from ..bundle.manifest import Manifest
from ..language.logprobs import TokenLogprob
from ..options import AnswerOptions
from ..pointing import regions_of
from ..vision.encoded import EncodedImage
from .refusal import RefusedError


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent."""

    data: bytes
    """The file."""
    where: str
    """The field that it came in."""


@dataclass(frozen=True)
class Conversation:
    """What the model is shown."""

    field: str
    """The request's field that it came in."""
    images: tuple[Picture, ...]
    """In order: all of them come before the first question, as the model was trained."""
    turns: tuple[tuple[str, str], ...]
    """Earlier (question, answer) pairs, oldest first; an empty question is one that nobody asked."""
    question: str
    system: str | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of the model."""

    conversation: Conversation
    options: AnswerOptions
    count: int = 1
    """How many answers are wanted."""

    def options_of(self, index: int) -> AnswerOptions:
        """Those of one of the answers: each has a seed of its own, where there is one."""
        sampling = self.options.sampling
        if sampling.seed is None:
            return self.options
        return replace(self.options, sampling=replace(sampling, seed=sampling.seed + index))


@dataclass(frozen=True)
class Piece:
    """Text of an answer as it is generated, never empty."""

    index: int
    """Which of the answers."""
    text: str
    logprobs: tuple[TokenLogprob, ...]
    """Of the tokens that it took since the last piece, if they were asked for."""


@dataclass(frozen=True)
class Answered:
    """A complete answer."""

    index: int
    answer: Answer
    images: tuple[EncodedImage, ...]
    """Those of the conversation."""
    logprobs: tuple[TokenLogprob, ...]
    """Of the text's tokens: none of a stop string's."""


class Reply(Protocol):
    """How one API words the answers to one request: all at once, or as bytes of a stream."""

    @property
    def asked(self) -> Asked:
        """What the request comes to."""

    @property
    def streamed(self) -> bool:
        """Whether the answers are wanted as they are written."""

    @property
    def media_type(self) -> str:
        """Of the stream."""

    def whole(self, results: Sequence[Answered]) -> dict[str, object]:
        """The document of answers that were waited for."""

    def opening(self) -> Iterable[bytes]:
        """What a stream begins with."""

    def piece(self, piece: Piece) -> Iterable[bytes]:
        """One more piece of text."""

    def answered(self, result: Answered) -> Iterable[bytes]:
        """How one answer ended."""

    def closing(self, results: Sequence[Answered]) -> Iterable[bytes]:
        """What a stream ends with."""

    def refused(self, refusal: RefusedError) -> Iterable[bytes]:
        """What goes wrong when it is too late for a status."""


def boxes_of(manifest: Manifest, result: Answered) -> list[dict[str, object]]:
    """What an answer points at: ``{"phrase": str or null, "boxes": [[left, top, right, bottom], ...]}`` each.

    In pixels of the upright picture. An answer about several pictures does not say which it points into: none then.
    """
    if len(result.images) != 1:
        return []
    (image,) = result.images
    regions = regions_of(manifest, result.answer.text, image.width, image.height)
    return [{"phrase": region.phrase, "boxes": [list(box) for box in region.boxes]} for region in regions]


def logprob_documents(logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """Tokens and their log-probabilities, as all APIs have them."""
    return [_entry(each) | {"top_logprobs": [_entry(other) for other in each.top]} for each in logprobs]


def _entry(token: TokenLogprob) -> dict[str, object]:
    return {"token": token.text.decode("utf-8", "replace"), "logprob": token.logprob, "bytes": list(token.text)}
