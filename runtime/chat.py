"""Several questions about the same images, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from .answer import Answer, AnswerStream, EncodedImage
from .astream import AsyncAnswerStream
from .cancel import Cancellation
from .engine import Engine, Request, Turn
from .language.prefix_cache import Fed, Position
from .language.sampling import GREEDY, Sampling


class Chat:
    """A conversation: each answer is written knowing those before it.

    A turn computes only what is new in it, since the keys and values of all turns stay in memory (0.33 MB a token at
    the published sizes). When the context is full, whole turns are left out, the oldest first, and the answer's
    ``truncated_turns`` says how many; the images stay. Not for two threads at once, but for :meth:`cancel`.

    Made by :meth:`.TinyGPTV.chat`.
    """

    def __init__(
        self,
        engine: Engine,
        images: Sequence[EncodedImage],
        template: str | None,
        turns: Sequence[Turn] = (),
    ) -> None:
        self._engine = engine
        self.images = tuple(images)
        """What the chat is about; none for a chat about text alone."""
        self._template = template
        self._turns = list(turns)
        self._memory = _ChatMemory(engine)
        self._stream: AnswerStream | None = None
        self._cancellation = Cancellation()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(question, answer) pairs so far, oldest first; of an answer that was cancelled, what there was of it."""
        return tuple((turn.question, turn.answer or "") for turn in self._turns)

    def reset(self) -> None:
        """Begin anew with the same images; they stay known, and the memory that the turns took is given back."""
        self._end()
        self._turns.clear()
        self._memory.forget_turns()

    def cancel(self) -> None:
        """End the answer that is being written, from any thread; the chat goes on with what there was of it."""
        self._cancellation.cancel()

    def stream(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        cancellation: Cancellation | None = None,
    ) -> AnswerStream:
        """Ask, and get the answer's text as it comes.

        An answer that was not read to its end is cancelled by the next question.

        Args:
            question: May begin with a task tag such as ``[vqa]``.
            max_new_tokens: At most so many tokens; 300 if None, for which older turns make room.
            sampling: How tokens are chosen; greedily if not given.
            stop: Texts that end the answer and are not part of it.
            cancellation: Ends the answer from another thread, as :meth:`cancel` does.

        Raises:
            ContextOverflowError: Images, question and answer do not fit in the context, even alone.
            ArgumentError: The question is empty, or another argument out of range.
        """
        self._end()
        request = Request(max_new_tokens, self._template, sampling, stop)
        prepared = self._engine.prepare([*self._turns, Turn(question)], len(self.images), request)
        self._cancellation = cancellation or Cancellation()

        def whole(answer: Answer) -> None:
            self._stream = None
            if answer.token_ids or answer.finish_reason != "cancelled":
                self._turns.append(Turn(question, answer.text, self._engine.spelling(answer)))

        self._stream = self._engine.answer(prepared, self.images, (), self._cancellation, self._memory, whole)
        return self._stream

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        cancellation: Cancellation | None = None,
    ) -> Answer:
        """Ask, and wait for the whole answer; arguments and errors as for :meth:`stream`."""
        return self.stream(
            question, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, cancellation=cancellation
        ).answer

    def astream(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> AsyncAnswerStream:
        """The same for asyncio programs: ``async for piece in chat.astream(...)``; arguments as for :meth:`stream`."""
        return AsyncAnswerStream(
            lambda cancellation: self.stream(
                question, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, cancellation=cancellation
            )
        )

    def _end(self) -> None:
        """Cancel an answer that nobody reads any more."""
        if self._stream is not None:
            self._stream.cancel()
            _ = self._stream.answer


class _ChatMemory:
    """A chat keeps its cache for itself, all of it; the first comes from what other questions left."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._fed: Fed | None = None
        self._shared = 0
        """Positions that every question about the same images begins with."""

    def take(self, wanted: Sequence[Position]) -> Fed | None:
        fed, self._fed = self._fed, None
        return fed or self._engine.prefixes.take(wanted)

    def put(self, fed: Fed, shared: int) -> None:
        self._fed, self._shared = fed, shared

    def forget_turns(self) -> None:
        """Keep what any first question begins with."""
        if self._fed:
            self._fed.keep(self._shared)
