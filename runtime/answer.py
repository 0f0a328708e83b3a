"""An answer while it is being written, and once it is whole."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .cancel import Cancellation
from .errors import CancellationError
from .language.detokenize import Detokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class EncodedImage:
    """An image the model has seen: encode once, ask many times."""

    embeds: NDArray[np.float32]
    """What the decoder reads, float32 [queries, hidden]."""
    width: int
    """Of the original picture, upright, in pixels."""
    height: int
    preprocess_seconds: float
    """Reading, decoding and resizing the picture."""
    encode_seconds: float
    """Vision encoder."""
    project_seconds: float
    """Projector. All three are what was spent: for an image that was known, next to nothing."""

    @cached_property
    def key(self) -> str:
        """The same for the same embeddings, whatever file they came from."""
        return hashlib.sha256(self.embeds.tobytes()).hexdigest()


@dataclass(frozen=True)
class Timings:
    """Where the time of one answer went, in seconds."""

    preprocess: float
    """Reading and resizing the picture; this and the next two are 0 where an :class:`EncodedImage` was given."""
    image_encode: float
    projector: float
    prefill: float
    """Feeding the whole prompt, until the first token is known."""
    time_to_first_token: float
    """The four before together: what a user waits for."""
    decode: float
    """From the first token to the last."""
    decode_tokens_per_second: float
    """Tokens after the first, over the time they took; 0 where there is no second token."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    """As generated: they may spell out a stop string that ``text`` is cut at."""
    finish_reason: FinishReason
    """``stop`` (end of text or a stop string), ``length`` (max_new_tokens) or ``cancelled``."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    cached_tokens: int
    """How many of them had been computed before, for another turn or another question about the same images."""
    truncated_turns: int
    """Turns of a chat, from the oldest on, that no longer fit in the context: the model did not see them."""
    timings: Timings


class AnswerWriter:
    """Puts one answer together from its tokens as they come."""

    def __init__(
        self, detokenizer: Detokenizer, prompt_tokens: int, max_new_tokens: int, truncated_turns: int = 0
    ) -> None:
        """
        Args:
            detokenizer: A fresh one.
            prompt_tokens: Positions of the prompt.
            max_new_tokens: How many tokens may come.
            truncated_turns: Turns that were left out of the prompt.
        """
        self._detokenizer = detokenizer
        self._prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self._truncated_turns = truncated_turns
        self.cached_tokens = 0
        """Positions of the prompt that need not be fed; whoever feeds it says so."""
        self._encoded: Sequence[EncodedImage] = ()
        self._asked = self._first = self._last = 0.0
        self._token_ids: list[int] = []
        self._text: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether no more tokens are wanted: a stop string was met, or ``max_new_tokens`` have come."""
        return self._detokenizer.stopped or len(self._token_ids) == self.max_new_tokens

    def begin(self, encoded: Sequence[EncodedImage]) -> None:
        """Start the clock: the prompt is about to be fed.

        Args:
            encoded: The images that were encoded for this very answer; their time is part of the answer's.
        """
        self._encoded = encoded
        self._asked = time.perf_counter()

    def push(self, token_id: int) -> str:
        """Take a token; returns the text that can be shown by now, which may be empty."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._token_ids.append(token_id)
        piece = self._detokenizer.push(token_id)
        self._text.append(piece)
        return piece

    def finish(self, cancelled: bool = False) -> tuple[str, Answer]:
        """The text held back until now, and the whole answer."""
        # An answer may be over before its first token, or before its prompt was fed.
        first = self._first or time.perf_counter()
        self._asked = self._asked or first
        rest = self._detokenizer.finish()
        stopped = self._detokenizer.stopped or len(self._token_ids) < self.max_new_tokens
        decode = self._last - first if self._token_ids else 0.0
        later = len(self._token_ids) - 1
        preprocess = sum(image.preprocess_seconds for image in self._encoded)
        image_encode = sum(image.encode_seconds for image in self._encoded)
        projector = sum(image.project_seconds for image in self._encoded)
        prefill = first - self._asked
        return rest, Answer(
            text="".join(self._text) + rest,
            token_ids=tuple(self._token_ids),
            finish_reason="cancelled" if cancelled else "stop" if stopped else "length",
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.cached_tokens,
            truncated_turns=self._truncated_turns,
            timings=Timings(
                preprocess=preprocess,
                image_encode=image_encode,
                projector=projector,
                prefill=prefill,
                time_to_first_token=preprocess + image_encode + projector + prefill,
                decode=decode,
                decode_tokens_per_second=later / decode if later > 0 and decode > 0 else 0.0,
            ),
        )


class AnswerStream(Iterator[str]):
    """Yields an answer's text as it comes; afterwards :attr:`answer` is the whole of it."""

    def __init__(
        self,
        ids: Iterator[int],
        writer: AnswerWriter,
        encoded: Sequence[EncodedImage],
        cancellation: Cancellation,
        whole: Callable[[Answer], object] = lambda answer: None,
    ) -> None:
        """
        Args:
            ids: Token ids as they are decoded; the first ``next`` feeds the prompt.
            writer: A fresh one.
            encoded: The images that this very call encoded.
            cancellation: What ``ids`` are cancelled by.
            whole: Told the answer as soon as it is whole, and before it is given to anybody else.
        """
        self._ids = ids
        self._writer = writer
        self._encoded = encoded
        self._cancellation = cancellation
        self._whole = whole
        self._begun = False
        self._answer: Answer | None = None

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        if not self._begun:
            self._begun = True
            self._writer.begin(self._encoded)
        while self._answer is None:
            piece = self._step()
            if piece:
                return piece
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer; what has not been generated yet is generated now."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """End the answer where it is, from any thread: its ``finish_reason`` is then ``cancelled``."""
        self._cancellation.cancel()

    def _step(self) -> str:
        cancelled = False
        try:
            self._cancellation.check()
            token = None if self._writer.complete else next(self._ids, None)
        except CancellationError:
            token, cancelled = None, not self._writer.complete
        if token is not None:
            return self._writer.push(token)
        self._ids = iter(())  # the KV cache goes with it
        rest, self._answer = self._writer.finish(cancelled)
        self._whole(self._answer)
        return rest
