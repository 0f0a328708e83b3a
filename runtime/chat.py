"""Several questions about the same images, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from .answer import Answer, AnswerStream
from .astream import AsyncAnswerStream
from .cancel import Cancellation
from .engine import Engine
from .errors import ArgumentError
from .language.prefix_cache import CachedSequence, Position, PrefixCache
from .language.prompt import Turn
from .options import AnswerKeywords, AnswerOptions, merged
from .vision.encoded import EncodedImage


class Chat:
    """A conversation: the model sees the earlier turns when it answers.

    A turn computes only what is new in it, since the keys and values of all turns stay in memory (0.33 MB a token at
    the published sizes). When the context is full, whole turns are left out, the oldest first, and the answer's
    ``truncated_turns`` says how many; the images stay. Use it in one thread at a time; only :meth:`cancel` may be
    called from any thread.

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
        self.images: tuple[EncodedImage, ...] = tuple(images)
        """The images of the chat; empty for a chat without images."""
        self._template = engine.manifest.template(template).name
        self._turns = list(turns)
        self._cache = _ChatCache(engine.prefixes)
        self._stream: AnswerStream | None = None
        self._cancellation = Cancellation()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(question, answer) pairs so far, oldest first; a cancelled answer has the text that was written."""
        return tuple((turn.question, turn.answer or "") for turn in self._turns)

    def reset(self) -> None:
        """Start again with the same images: they stay cached, and the memory of the turns is freed."""
        self._end()
        self._turns.clear()
        self._cache.forget_turns()

    def cancel(self) -> None:
        """End the answer that is being written, from any thread; the chat keeps the text so far."""
        self._cancellation.cancel()

    def stream(
        self,
        question: str,
        *,
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> AnswerStream:
        """Ask, and get the answer's text as it is generated.

        An answer that was not read to its end is closed by the next question.

        Args:
            question: May begin with a task tag such as ``[vqa]``.
            options: Options of the answer; the template is the chat's.
            cancellation: Ends the answer from another thread, as :meth:`cancel` does.
            keywords: Fields of :class:`AnswerOptions`, such as ``max_new_tokens=40``; they replace those of
                ``options``.

        Raises:
            ContextOverflowError: Images, question and answer do not fit in the context, even alone.
            ArgumentError: The question is empty, an option is out of range, or its template is not the chat's.
            TypeError: A keyword is not a field of :class:`AnswerOptions`, or an argument is of another type.
        """
        options = self._merged(options, keywords)
        self._end()
        prepared = self._engine.prepare([*self._turns, Turn(question)], len(self.images), options)
        self._cancellation = cancellation or Cancellation()

        def keep(answer: Answer) -> None:
            self._stream = None
            if answer.token_ids or answer.finish_reason != "cancelled":
                token_ids = self._engine.text_token_ids(answer, self._template)
                self._turns.append(Turn(question, answer.text, token_ids))

        self._stream = self._engine.answer(prepared, self.images, (), self._cancellation, self._cache, keep)
        return self._stream

    def ask(
        self,
        question: str,
        *,
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> Answer:
        """Ask, and wait for the complete answer; arguments and errors as for :meth:`stream`."""
        return self.stream(question, options=merged(options, keywords), cancellation=cancellation).answer

    def astream(
        self, question: str, *, options: AnswerOptions | None = None, **keywords: Unpack[AnswerKeywords]
    ) -> AsyncAnswerStream:
        """The same for asyncio programs: ``async for piece in chat.astream(...)``; arguments as for :meth:`stream`.

        The call raises errors about the options; the first piece raises all others of :meth:`stream`.
        """
        chosen = self._merged(options, keywords)
        return AsyncAnswerStream(lambda cancellation: self.stream(question, options=chosen, cancellation=cancellation))

    def _merged(self, options: AnswerOptions | None, keywords: AnswerKeywords) -> AnswerOptions:
        chosen = merged(options, keywords)
        if chosen.template not in (None, self._template):
            raise ArgumentError(
                f"template is {chosen.template!r}; this chat's is {self._template!r}: leave it out or begin another"
            )
        return merged(chosen, {"template": self._template})

    def _end(self) -> None:
        """Close an answer that is no longer read."""
        if self._stream is not None:
            self._stream.close()


class _ChatCache:
    """Keeps a chat's complete sequence; the first one comes from the cache shared with other questions."""

    def __init__(self, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes
        self._sequence: CachedSequence | None = None

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        sequence, self._sequence = self._sequence, None
        return sequence or self._prefixes.take(wanted)

    def put(self, sequence: CachedSequence) -> None:
        self._sequence = sequence

    def forget_turns(self) -> None:
        """Discard all but the positions that every first question shares."""
        if self._sequence:
            self._sequence.shrink()
