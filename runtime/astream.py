"""Answers for asyncio programs: computed in a thread, read with ``async for``."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable

from .answer import Answer, AnswerStream
from .cancel import Cancellation
from .errors import TinyGPTVError


class AsyncAnswerStream(AsyncIterator[str]):
    """Yields an answer's text as it is generated; :attr:`answer` is then the complete answer.

    The event loop is never blocked. If the task that reads it is cancelled, so is the answer.
    """

    def __init__(self, start: Callable[[Cancellation], AnswerStream]) -> None:
        """
        Args:
            start: Begins the answer, which may take seconds for an image; called in a thread.
        """
        self._start = start
        self._cancellation = Cancellation()
        self._lock = threading.Lock()
        """Held while a thread uses the stream: a cancelled task leaves its thread running."""
        self._stream: AnswerStream | None = None
        self._answer: Answer | None = None

    async def __anext__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            TinyGPTVError: As the method that made it says, when the first piece is asked for.
        """
        import asyncio  # for those who use it only

        if self._answer is not None:
            raise StopAsyncIteration
        try:
            piece = await asyncio.to_thread(self._next)
        except asyncio.CancelledError:
            self.cancel()
            asyncio.get_running_loop().run_in_executor(None, self._close)  # no reader is left to wait for it
            raise
        if piece:
            return piece
        assert self._stream is not None
        self._answer = self._stream.answer
        raise StopAsyncIteration

    @property
    def answer(self) -> Answer:
        """The complete answer.

        Raises:
            TinyGPTVError: It was not read to its end.
        """
        if self._answer is None:
            raise TinyGPTVError("the answer is not complete yet; read the stream to its end first")
        return self._answer

    def cancel(self) -> None:
        """End the answer where it is, from any thread: its ``finish_reason`` is then ``cancelled``."""
        self._cancellation.cancel()

    async def aclose(self) -> None:
        """End the answer, as ``contextlib.aclosing`` does for a reader who leaves early, and give its KV cache back."""
        import asyncio

        self.cancel()
        await asyncio.to_thread(self._close)

    def _next(self) -> str:
        with self._lock:
            if self._stream is None:
                self._stream = self._start(self._cancellation)
            return next(self._stream, "")

    def _close(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.close()
