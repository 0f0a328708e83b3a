"""The queue for one model and many clients: first come, first served, one answer at a time, in a separate thread."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

from ..cancel import Cancellation
from ..errors import CancellationError, ImageError
from ..language.logprobs import TokenLogprob
from ..model import Pictures, TinyGPTV
from .asked import Answered, Asked, Conversation, Piece
from .refusal import RefusedError, stopping

Event = Piece | Answered | None
"""An event of a job; None marks the end, after all answers are complete."""


class Job:
    """A place in the queue, from before a request is read until its answer is complete; for the event loop only."""

    def __init__(self, queue: AnswerQueue) -> None:
        """Called by :meth:`AnswerQueue.admit` only."""
        self._queue = queue
        self._cancellation = Cancellation()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._future: Future[None] | None = None

    @property
    def started(self) -> bool:
        """Whether the job was started, so that it waits for the model or is running."""
        return self._future is not None

    def start(self, asked: Asked) -> None:
        """Queue the job for the model; jobs run in the order in which they were started."""
        if self._cancellation.requested:
            self._queue._end(self, CancellationError("cancelled"))
        else:
            self._future = self._queue._submit(self, asked, self._cancellation)

    def cancel(self) -> None:
        """Cancel the job, waiting or running, within one operator of ONNX Runtime; next comes CancellationError."""
        self._cancellation.cancel()
        if self._future is not None and self._future.cancel():
            self._queue._end(self, CancellationError("cancelled"))

    async def next(self) -> Event:
        """Wait for the next event: for each answer its pieces and then the complete answer; at the end, None.

        Raises:
            CancellationError: The job was cancelled.
            RefusedError: An image cannot be read.
            TinyGPTVError: Any other error of the model about the request.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def leave(self) -> None:
        """Give up the place; cancels the job if its answers are not complete."""
        self.cancel()
        if not self.started:
            self._queue._forget(self)

    def _put(self, event: Event | Exception) -> None:
        self._events.put_nowait(event)


class AnswerQueue:
    """Queue of requests to one model. All methods run on the event loop; only the answers are generated in a thread."""

    def __init__(self, model: TinyGPTV, waiting: int) -> None:
        """
        Args:
            model: The loaded model.
            waiting: Maximum number of waiting requests, besides the running one.
        """
        self._model = model
        self._waiting = waiting
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tinygptv-answers")
        self._jobs: set[Job] = set()
        self.closing = asyncio.Event()
        """Set once no more requests are admitted."""
        self.answered = 0
        """Number of complete answers so far."""
        self.cancelled = 0
        """Number of answers that were cancelled while running or waiting."""

    @property
    def receiving(self) -> int:
        """Number of requests that have a place and are still being read."""
        return len(self._jobs) - self.pending

    @property
    def pending(self) -> int:
        """Number of requests that are waiting or running."""
        return sum(job.started for job in self._jobs)

    def admit(self) -> Job:
        """Reserve a place for one request.

        Raises:
            RefusedError: See :meth:`check_room`.
        """
        self.check_room()
        job = Job(self)
        self._jobs.add(job)
        return job

    def check_room(self) -> None:
        """Check that one more request would be admitted.

        Raises:
            RefusedError: All places are taken, or the server is being stopped.
        """
        if self.closing.is_set():
            raise stopping()
        if len(self._jobs) > self._waiting:
            message = (
                f"{len(self._jobs)} requests are waiting or being answered, as many as this server takes; try later"
            )
            raise RefusedError(503, message, code="busy", retry=True)

    def cancel_all(self) -> None:
        """Stop admitting requests, and cancel all answers."""
        self.closing.set()
        for job in tuple(self._jobs):
            job.cancel()

    async def close(self) -> None:
        """Like :meth:`cancel_all`, then wait until the model's thread is idle."""
        self.cancel_all()
        await asyncio.to_thread(self._thread.shutdown)

    def _submit(self, job: Job, asked: Asked, cancellation: Cancellation) -> Future[None]:
        tell = asyncio.get_running_loop().call_soon_threadsafe

        def work() -> None:
            try:
                with closing(self._answers(asked, cancellation)) as events:
                    for event in events:
                        tell(job._put, event)
                tell(self._end, job, None)
            except Exception as error:
                tell(self._end, job, error)

        return self._thread.submit(work)

    def _end(self, job: Job, event: Exception | None) -> None:
        """Send a job's last event; only the first call has an effect."""
        if job not in self._jobs:
            return
        self._forget(job)
        self.answered += event is None
        self.cancelled += isinstance(event, CancellationError)
        job._put(event)

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)

    def _answers(self, asked: Asked, cancellation: Cancellation) -> Generator[Piece | Answered, None, None]:
        """Generate the answers to one request, in the model's thread; each depends on the request alone."""
        said = asked.conversation
        images: Pictures = [picture.data for picture in said.images]
        first: list[Piece | Answered] = []
        for index in range(asked.count):
            if index and asked.options.sampling.temperature == 0:
                yield from (replace(event, index=index) for event in first)  # greedy: the same each time
                continue
            for event in self._answer(asked, index, images, cancellation):
                yield event
                if isinstance(event, Answered):
                    images = event.images
                if not index and asked.count > 1:
                    first.append(event)

    def _answer(
        self, asked: Asked, index: int, images: Pictures, cancellation: Cancellation
    ) -> Generator[Piece | Answered, None, None]:
        """Generate one of the answers."""
        said = asked.conversation
        options = replace(asked.options_of(index), system=said.system, clamp=True)
        logprobs: tuple[TokenLogprob, ...] = ()
        try:
            with self._model.stream(
                images, said.question, turns=said.turns, options=options, cancellation=cancellation
            ) as stream:
                for text in stream:
                    so_far = stream.logprobs
                    yield Piece(index, text, so_far[len(logprobs) :])
                    logprobs = so_far
                answer = stream.answer
        except ImageError as error:
            raise self._unreadable(said, error) from error
        if answer.finish_reason == "cancelled":
            raise CancellationError("cancelled")
        yield Answered(index, answer, stream.images, logprobs)

    def _unreadable(self, said: Conversation, error: ImageError) -> RefusedError:
        """The refusal that names the image that cannot be read."""
        for picture in said.images:
            try:
                self._model.encode_image(picture.data)
            except ImageError as found:
                message = f"{picture.where}: {found}"
                return RefusedError(400, message, param=picture.where, code="invalid_image")
        return RefusedError(400, str(error), param=said.field, code="invalid_image")
