"""An answer while it is being written, and once it is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from .boxes import Region, parse_boxes
from .cancel import Cancellation
from .errors import CancellationError
from .language.detokenize import Detokenizer
from .language.logprobs import TokenLogprob, logprobs_of
from .vision.encoded import EncodedImage

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Where the time of one answer went, in seconds."""

    preprocess: float
    """Reading and resizing the picture; this and the next two are 0 where an :class:`EncodedImage` was given."""
    image_encode: float
    projector: float
    prefill: float
    """Running the decoder on the prompt, until the first token is sampled."""
    time_to_first_token: float
    """The sum of the four before: what a user waits for."""
    decode: float
    """From the first token to the last."""
    decode_tokens_per_second: float
    """Tokens after the first, over the time they took; 0 where there is no second token."""


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    text: str
    token_ids: tuple[int, ...]
    """All generated ids, those of a stop string included; ``text`` ends before it."""
    finish_reason: FinishReason
    """``stop`` (end of text or a stop string), ``length`` (max_new_tokens) or ``cancelled``."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    cached_tokens: int
    """Positions of the prompt that were cached, from another turn or another question about the same images."""
    truncated_turns: int
    """Turns of a conversation, from the oldest on, that no longer fit in the context: the model did not see them."""
    timings: Timings
    regions: tuple[Region, ...] = ()
    """The phrases and boxes of the text, in pixels of the picture. Empty if the model does not know boxes, if the
    answer has none, or if it is not about exactly one picture."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``token_ids``, if ``top_logprobs`` was given."""


class AnswerWriter:
    """Builds one answer from its tokens as they are generated."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt_tokens: int,
        max_new_tokens: int,
        truncated_turns: int = 0,
        boxes: bool = False,
    ) -> None:
        """
        Args:
            detokenizer: A new detokenizer.
            prompt_tokens: Number of positions of the prompt.
            max_new_tokens: Maximum number of tokens.
            truncated_turns: Number of turns left out of the prompt.
            boxes: Whether the text may contain boxes.
        """
        self._detokenizer = detokenizer
        self._prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self._truncated_turns = truncated_turns
        self.cached_tokens = 0
        """Number of the prompt's positions that were cached; set by the caller that runs the decoder."""
        self._boxes = boxes
        self._images: Sequence[EncodedImage] = ()
        self._encoded: Sequence[EncodedImage] = ()
        self._asked = self._first = self._last = 0.0
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether the answer needs no more tokens: a stop string was found, or ``max_new_tokens`` were generated."""
        return self._detokenizer.stopped or len(self._token_ids) == self.max_new_tokens

    def begin(self, images: Sequence[EncodedImage], encoded: Sequence[EncodedImage]) -> None:
        """Start the timing, immediately before prefill.

        Args:
            images: The images of the question.
            encoded: Those that were encoded for this answer; the time for that is included in the answer's.
        """
        self._images, self._encoded = images, encoded
        self._asked = time.perf_counter()

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now final, which may be empty."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._token_ids.append(token_id)
        piece = self._detokenizer.push(token_id)
        self._text.append(piece)
        return piece

    def record(self, token_id: int, logits: NDArray[np.float32], count: int) -> None:
        """Record the log-probability of a sampled token, which is pushed next unless it ends the text.

        Args:
            token_id: The sampled token.
            logits: The model's logits, float32 [vocabulary].
            count: Number of most probable tokens to record with it.
        """
        text = self._detokenizer.token_bytes
        sampled, *top = (TokenLogprob(each, text(each), value) for each, value in logprobs_of(logits, token_id, count))
        self._logprobs.append(replace(sampled, top=tuple(top)))

    @property
    def logprobs(self) -> Sequence[TokenLogprob]:
        """Log-probabilities of the tokens so far, as in :attr:`Answer.logprobs`."""
        return self._logprobs[: len(self._token_ids)]

    def finish(self, cancelled: bool = False) -> tuple[str, Answer]:
        """Finish the answer; returns the remaining text and the complete answer."""
        # An answer may be over before its first token, or before prefill.
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
        text = "".join(self._text) + rest
        return rest, Answer(
            text=text,
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
            regions=self._regions(text),
            logprobs=tuple(self.logprobs),
        )

    def _regions(self, text: str) -> tuple[Region, ...]:
        if not self._boxes or len(self._images) != 1:
            return ()
        (image,) = self._images
        return parse_boxes(text, image.width, image.height, image.view)


class AnswerStream(Iterator[str]):
    """Yields an answer's text as it is generated; :attr:`answer` is then the complete answer. Read it to its end,
    :meth:`close` it, or use it as a context manager: then its KV cache is free for the next question. Use it in one
    thread at a time; only :meth:`cancel` may be called from any thread.

    Example:
        >>> with model.stream(image, "What is this?") as stream:
        ...     for piece in stream:
        ...         print(piece, end="", flush=True)
    """

    def __init__(
        self,
        ids: Generator[int, None, None],
        writer: AnswerWriter,
        images: Sequence[EncodedImage],
        encoded: Sequence[EncodedImage],
        cancellation: Cancellation,
        callback: Callable[[Answer], object] = lambda answer: None,
    ) -> None:
        """
        Args:
            ids: Token ids as they are decoded; the first ``next`` runs the prefill.
            writer: A new writer.
            images: The images of the question.
            encoded: Those that were encoded by this call.
            cancellation: The cancellation that ``ids`` check.
            callback: Called with the complete answer before anything else receives it.
        """
        self._ids = ids
        self._writer = writer
        self.images: tuple[EncodedImage, ...] = tuple(images)
        """The images of the question; empty if it was cancelled before all of them were encoded."""
        self._encoded = encoded
        self._cancellation = cancellation
        self._callback = callback
        self._begun = False
        self._answer: Answer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        if not self._begun:
            self._begun = True
            self._writer.begin(self.images, self._encoded)
        while self._answer is None:
            piece = self._step()
            if piece:
                return piece
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The complete answer; what has not been generated yet is generated now."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens so far, if ``top_logprobs`` was given; the text of the last ones may not have been
        yielded yet.
        """
        return tuple(self._writer.logprobs)

    def cancel(self) -> None:
        """End the answer where it is, from any thread: its ``finish_reason`` is then ``cancelled``."""
        self._cancellation.cancel()

    def close(self) -> None:
        """End the answer where it is, unless it is complete, and free its KV cache. Call it in the thread that reads.

        Its ``finish_reason`` is then ``cancelled``. An error that reading raises does the same.
        """
        if self._answer is None:
            self._finish(interrupted=True)

    def _step(self) -> str:
        try:
            self._cancellation.check()
            token = None if self._writer.complete else next(self._ids, None)
            return self._finish() if token is None else self._writer.push(token)
        except CancellationError:
            return self._finish(interrupted=True)
        except BaseException:
            self.close()
            raise

    def _finish(self, interrupted: bool = False) -> str:
        self._ids.close()
        rest, self._answer = self._writer.finish(cancelled=interrupted and not self._writer.complete)
        self._callback(self._answer)
        return rest
