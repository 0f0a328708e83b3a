"""A KV cache is given back when its answer ends, however it ends: without the garbage collector's help, and while
somebody still holds what was computing it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION
from tinygptv.runtime.language.batch import DecoderBatch
from tinygptv.runtime.language.decoder import DecoderState

from tinygptv import AnswerStream, Cancellation, EncodedImage, TinyGPTV

LONG = 100
TAGGED = "[vqa] what is it?"
HELD: list[object] = []
"""Generators and streams that stay referenced."""


class BrokenError(RuntimeError):
    """What the decoder is made to raise."""


@pytest.fixture(autouse=True)
def no_help() -> Iterator[None]:
    gc.disable()
    yield
    HELD.clear()
    gc.enable()


@pytest.fixture
def fresh(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


@pytest.fixture
def image(fresh: TinyGPTV, photo: Path) -> EncodedImage:
    return fresh.encode_image(photo)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the decoder fail from its run of this number on, the first being 1."""

    def break_at(number: int) -> None:
        runs = 0
        run = DecoderState.run

        def failing(state: DecoderState, *arguments: object, **named: object) -> np.ndarray:
            nonlocal runs
            runs += 1
            if runs >= number:
                raise BrokenError
            return run(state, *arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(DecoderState, "run", failing)

    return break_at


def held(stream: AnswerStream) -> AnswerStream:
    HELD.extend((stream, stream._ids))
    return stream


def assert_given_back(model: TinyGPTV, image: EncodedImage) -> None:
    """The next question finds all of the image's positions; nobody else has a cache of it."""
    assert all(inspect.getgeneratorstate(one) == "GEN_CLOSED" for one in HELD if inspect.isgenerator(one))
    assert len(model._engine.prefixes._idle) == 1
    assert model.ask(image, TAGGED, max_new_tokens=1).cached_tokens > len(image.embeds)


def read(stream: AnswerStream) -> None:
    assert list(stream)


def meet_a_stop_string(stream: AnswerStream) -> None:
    while not stream._writer.complete:
        next(stream)
    stream.close()
    assert stream.answer.finish_reason in ("stop", "length")


def cancel(stream: AnswerStream) -> None:
    next(stream)
    stream.cancel()
    assert list(stream) == []
    assert stream.answer.finish_reason == "cancelled"


def close(stream: AnswerStream) -> None:
    piece = next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.answer.text.startswith(piece)
    assert stream.answer.finish_reason == "cancelled"
    stream.close()  # once more is no error


def leave(stream: AnswerStream) -> None:
    with contextlib.suppress(ZeroDivisionError), stream as entered:
        assert entered is stream
        next(stream)
        raise ZeroDivisionError
    assert stream.answer.finish_reason == "cancelled"


ENDS = [read, meet_a_stop_string, cancel, close, leave]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_however_an_answer_ends(end: Callable[[AnswerStream], None], fresh: TinyGPTV, image: EncodedImage) -> None:
    end(held(fresh.stream(image, QUESTION, max_new_tokens=LONG)))
    assert_given_back(fresh, image)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_however_an_answer_of_a_chat_ends(
    end: Callable[[AnswerStream], None], fresh: TinyGPTV, image: EncodedImage
) -> None:
    """A chat keeps its own."""
    chat = fresh.chat(image)
    stream = held(chat.stream(QUESTION, max_new_tokens=LONG))
    end(stream)
    assert chat.turns == ((QUESTION, stream.answer.text),)
    assert chat.ask(TAGGED, max_new_tokens=1).cached_tokens > stream.answer.prompt_tokens - 1
    assert all(inspect.getgeneratorstate(one) == "GEN_CLOSED" for one in HELD if inspect.isgenerator(one))


@pytest.mark.parametrize("runs", [1, 4])
def test_when_the_decoder_fails(
    runs: int,
    fresh: TinyGPTV,
    image: EncodedImage,
    breaking: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = fresh.ask(image, TAGGED, max_new_tokens=6)
    breaking(runs)
    stream = held(fresh.stream(image, QUESTION, max_new_tokens=LONG))
    with pytest.raises(BrokenError):
        list(stream)
    monkeypatch.undo()
    assert list(stream) == [], "it has ended"
    assert (stream.answer.finish_reason, len(stream.answer.token_ids)) == ("cancelled", runs - 1)
    assert_given_back(fresh, image)
    assert fresh.ask(image, TAGGED, max_new_tokens=6).token_ids == wanted.token_ids


def test_a_chat_goes_on_after_a_failure(
    fresh: TinyGPTV, image: EncodedImage, breaking: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = fresh.chat(image)
    first = chat.ask(QUESTION, max_new_tokens=4)
    breaking(1)
    with pytest.raises(BrokenError):
        chat.ask(TAGGED, max_new_tokens=4)
    monkeypatch.undo()
    assert chat.turns == ((QUESTION, first.text),), "of the answer that failed there was nothing"
    assert chat.ask(TAGGED, max_new_tokens=4).cached_tokens == first.prompt_tokens + 3


def test_an_answer_that_was_not_begun_takes_nothing(fresh: TinyGPTV, image: EncodedImage) -> None:
    fresh.ask(image, QUESTION, max_new_tokens=1)
    unread = held(fresh.stream(image, QUESTION))
    assert fresh.ask(image, TAGGED, max_new_tokens=1).cached_tokens > len(image.embeds)
    unread.close()
    assert (unread.answer.text, unread.answer.finish_reason) == ("", "cancelled")
    assert_given_back(fresh, image)


def test_closing_one_answer_cancels_no_other(fresh: TinyGPTV, image: EncodedImage) -> None:
    shared = Cancellation()
    with fresh.stream(image, QUESTION, max_new_tokens=4, cancellation=shared) as stream:
        next(stream)
    assert not shared.requested
    assert fresh.ask(image, QUESTION, max_new_tokens=4, cancellation=shared).finish_reason == "length"


def test_the_next_question_of_a_chat_and_reset_close(fresh: TinyGPTV, image: EncodedImage) -> None:
    chat = fresh.chat(image)
    unread = held(chat.stream(QUESTION, max_new_tokens=LONG))
    next(unread)
    after = held(chat.stream(TAGGED, max_new_tokens=LONG))
    assert unread.answer.finish_reason == "cancelled"
    next(after)
    chat.reset()
    assert after.answer.finish_reason == "cancelled"
    assert chat.ask(QUESTION, max_new_tokens=1).cached_tokens > len(image.embeds)


def test_an_async_reader_who_leaves(fresh: TinyGPTV, image: EncodedImage) -> None:
    async def leave_early() -> None:
        async with contextlib.aclosing(fresh.astream(image, QUESTION, max_new_tokens=LONG)) as stream:
            await anext(stream)
            assert stream._stream is not None
            held(stream._stream)
        assert_given_back(fresh, image)

    asyncio.run(leave_early())


def test_an_async_reader_whose_task_is_cancelled(fresh: TinyGPTV, image: EncodedImage) -> None:
    async def cancelled_early() -> None:
        stream = fresh.astream(image, QUESTION, max_new_tokens=LONG)
        reading = asyncio.Event()

        async def reader() -> None:
            async for _ in stream:
                reading.set()

        task = asyncio.create_task(reader())
        await reading.wait()
        assert stream._stream is not None
        held(stream._stream)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled_early())  # which waits for the threads
    assert_given_back(fresh, image)


def test_an_async_answer_that_was_not_begun(fresh: TinyGPTV) -> None:
    async def never_read() -> str:
        stream = fresh.astream(None, QUESTION)
        await stream.aclose()
        async for _ in stream:
            raise AssertionError("it was closed")
        return stream.answer.finish_reason

    assert asyncio.run(never_read()) == "cancelled"


def test_closing_generators_frees_their_memory(
    fresh: TinyGPTV, image: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``generate_ids`` and ``ask_each``, which share no caches."""
    alive: list[weakref.ref[object]] = []
    for kind in (DecoderState, DecoderBatch):
        made = kind.__init__

        def noting(self: object, *arguments: object, made: Callable[..., None] = made) -> None:
            made(self, *arguments)
            alive.append(weakref.ref(self))

        monkeypatch.setattr(kind, "__init__", noting)
    ids = fresh.generate_ids(fresh.embed_prompt(image, QUESTION), LONG)
    answers = fresh.ask_each([(image, QUESTION), (image, TAGGED)] * 3, max_new_tokens=5, batch_size=2)
    HELD.extend((ids, answers))
    next(ids), next(answers)
    assert any(one() is not None for one in alive)
    ids.close()
    answers.close()
    assert all(one() is None for one in alive)
