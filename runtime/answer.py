"""An answer while it is being written, and once it is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .detokenize import Detokenizer

FinishReason = Literal["stop", "length"]


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
    """Vision encoder and projector."""


@dataclass(frozen=True)
class Timings:
    """Where the time of one answer went, in seconds."""

    preprocess: float
    """Reading and resizing the picture; this and the next are 0 where an :class:`EncodedImage` was given."""
    image_encode: float
    prefill: float
    """Feeding the whole prompt, until the first token is known."""
    time_to_first_token: float
    """The three before together: what a user waits for."""
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
    """``stop`` (end of text or a stop string) or ``length`` (max_new_tokens)."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    timings: Timings


class AnswerStream(Iterator[str]):
    """Yields an answer's text as it comes; afterwards :attr:`answer` is the whole of it."""

    def __init__(
        self,
        ids: Iterator[int],
        detokenizer: Detokenizer,
        encoded: EncodedImage | None,
        prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        """
        Args:
            ids: Token ids as they are decoded; the first ``next`` feeds the prompt.
            detokenizer: A fresh one.
            encoded: The image, where this very call encoded it; its time is then part of this answer's.
            prompt_tokens: Positions of the prompt.
            max_new_tokens: How many ids may come.
        """
        self._ids = ids
        self._detokenizer = detokenizer
        self._encoded = encoded
        self._prompt_tokens = prompt_tokens
        self._max_new_tokens = max_new_tokens
        self._asked = 0.0
        self._token_ids: list[int] = []
        self._first = self._last = 0.0
        self._text: list[str] = []
        self._answer: Answer | None = None

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        while self._answer is None:
            piece = self._step()
            if piece:
                self._text.append(piece)
                return piece
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer; what has not been generated yet is generated now."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def _step(self) -> str:
        self._asked = self._asked or time.perf_counter()
        token = None if self._detokenizer.stopped else next(self._ids, None)
        now = time.perf_counter()
        if not self._first:
            self._first = now
        if token is not None:
            self._last = now
            self._token_ids.append(token)
            return self._detokenizer.push(token)
        rest = self._detokenizer.finish()
        self._ids = iter(())  # the KV cache goes with it
        self._finish(rest)
        return rest

    def _finish(self, rest: str) -> None:
        stopped = self._detokenizer.stopped or len(self._token_ids) < self._max_new_tokens
        decode = max(self._last - self._first, 0.0)
        later = len(self._token_ids) - 1
        preprocess = self._encoded.preprocess_seconds if self._encoded else 0.0
        image_encode = self._encoded.encode_seconds if self._encoded else 0.0
        prefill = self._first - self._asked
        self._answer = Answer(
            text="".join(self._text) + rest,
            token_ids=tuple(self._token_ids),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=self._prompt_tokens,
            timings=Timings(
                preprocess=preprocess,
                image_encode=image_encode,
                prefill=prefill,
                time_to_first_token=preprocess + image_encode + prefill,
                decode=decode,
                decode_tokens_per_second=later / decode if later > 0 and decode > 0 else 0.0,
            ),
        )
