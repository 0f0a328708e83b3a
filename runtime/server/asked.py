"""The common form of requests and answers of all APIs."""

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
    """A picture as the client sent it."""

    data: bytes
    """Content of the picture file."""
    where: str
    """The request's field that contained it."""


@dataclass(frozen=True)
class Conversation:
    """The input of the model."""

    field: str
    """The request's field that contained it."""
    images: tuple[Picture, ...]
    """Images in order: all of them come before the first question, as in the model's training."""
    turns: tuple[tuple[str, str], ...]
    """Earlier (question, answer) pairs, oldest first; the question is empty for an answer without one."""
    question: str
    system: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request for answers."""

    conversation: Conversation
    options: AnswerOptions
    count: int = 1
    """Number of answers."""

    def options_of(self, index: int) -> AnswerOptions:
        """The options of one answer; if there is a seed, each answer gets a different one."""
        sampling = self.options.sampling
        if sampling.seed is None:
            return self.options
        return replace(self.options, sampling=replace(sampling, seed=sampling.seed + index))


@dataclass(frozen=True)
class Piece:
    """A piece of an answer's text as it is generated, never empty."""

    index: int
    """Index of the answer."""
    text: str
    logprobs: tuple[TokenLogprob, ...]
    """Log-probabilities of the tokens since the last piece, if requested."""


@dataclass(frozen=True)
class Answered:
    """A complete answer."""

    index: int
    answer: Answer
    images: tuple[EncodedImage, ...]
    """The images of the conversation."""
    logprobs: tuple[TokenLogprob, ...]
    """Log-probabilities of the text's tokens, without those of a stop string."""


class Reply(Protocol):
    """The response of one API to a request: one document, or a stream of bytes."""

    @property
    def asked(self) -> Asked:
        """The request in the common form."""

    @property
    def streamed(self) -> bool:
        """Whether the client wants a stream."""

    @property
    def media_type(self) -> str:
        """Media type of the stream."""

    def whole(self, results: Sequence[Answered]) -> dict[str, object]:
        """The document with all complete answers."""

    def opening(self) -> Iterable[bytes]:
        """The beginning of a stream."""

    def piece(self, piece: Piece) -> Iterable[bytes]:
        """The bytes for one piece of text."""

    def answered(self, result: Answered) -> Iterable[bytes]:
        """The bytes that end one answer."""

    def closing(self, results: Sequence[Answered]) -> Iterable[bytes]:
        """The end of a stream."""

    def refused(self, refusal: RefusedError) -> Iterable[bytes]:
        """The bytes that report an error after the status was sent."""


def boxes_of(manifest: Manifest, result: Answered) -> list[dict[str, object]]:
    """The regions in an answer: ``{"phrase": str or null, "boxes": [[left, top, right, bottom], ...]}`` each.

    In pixels of the upright picture. Empty for several pictures, as the answer does not say which one it refers to.
    """
    if len(result.images) != 1:
        return []
    (image,) = result.images
    regions = regions_of(manifest, result.answer.text, image.width, image.height)
    return [{"phrase": region.phrase, "boxes": [list(box) for box in region.boxes]} for region in regions]


def logprob_documents(logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """Tokens and their log-probabilities, in the form common to all APIs."""
    return [_entry(each) | {"top_logprobs": [_entry(other) for other in each.top]} for each in logprobs]


def _entry(token: TokenLogprob) -> dict[str, object]:
    return {"token": token.text.decode("utf-8", "replace"), "logprob": token.logprob, "bytes": list(token.text)}
