"""Cancelling: from another thread, at every stage, and what is left afterwards; and answers for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import QUESTION
from onnx import TensorProto, helper
from PIL import Image
from tinygptv.runtime import Cancellation, CancellationError, ImageError, TinyGPTV, TinyGPTVError
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.bundle.sessions import open_session, run_options
from tinygptv.runtime.language.decoder import DecoderState

LONG = 200
BODY_INPUTS = (("count", TensorProto.INT64, []), ("go_on", TensorProto.BOOL, []), ("kept", TensorProto.FLOAT, [1]))
TAGGED = "[vqa] what is it?"


@pytest.fixture
def fresh(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


def cancel_soon(cancellation: Cancellation) -> threading.Thread:
    thread = threading.Thread(target=cancellation.cancel)
    thread.start()
    return thread


def test_between_two_tokens(fresh: TinyGPTV, photo: Path) -> None:
    whole = fresh.ask(photo, QUESTION, max_new_tokens=LONG)
    stream = fresh.stream(photo, QUESTION, max_new_tokens=LONG)
    pieces = [next(stream), next(stream)]
    cancel_soon(stream._cancellation).join()
    pieces += list(stream)
    answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(pieces)
    assert 0 < len(answer.token_ids) < len(whole.token_ids)
    assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert fresh.ask(photo, QUESTION, max_new_tokens=LONG).token_ids == whole.token_ids


def test_before_it_began(fresh: TinyGPTV, photo: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    answer = fresh.ask(photo, QUESTION, cancellation=cancellation)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "cancelled")
    with pytest.raises(CancellationError):
        fresh.encode_image(photo, cancellation=cancellation)
    with pytest.raises(ImageError):  # what is wrong is said all the same
        fresh.ask("no such file.png", QUESTION, cancellation=cancellation)


def test_an_answer_that_is_whole_stays_so(fresh: TinyGPTV, photo: Path) -> None:
    stream = fresh.stream(photo, QUESTION, max_new_tokens=4)
    answer = stream.answer
    stream.cancel()
    assert stream.answer is answer and answer.finish_reason == "length"


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
def test_during_a_run_of_each_graph(fresh: TinyGPTV, photo: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run itself is ended: each is made to cancel itself from another thread as soon as it is under way."""
    whole = fresh.ask(photo, QUESTION, max_new_tokens=8)
    fresh._engine.prefixes._idle.clear()
    cancellation = Cancellation()
    stopping = Cancellation.stopping
    runs = {"encode": 0, "prefill": 0, "decode": 1}[stage]
    seen: list[bool] = []

    def during(self: Cancellation, options):
        context = stopping(self, options)

        class Context:
            def __enter__(self) -> None:
                context.__enter__()
                seen.append(True)
                if len(seen) == runs + 1:
                    cancel_soon(cancellation).join()
                    assert options.terminate

            def __exit__(self, *error: object) -> bool | None:
                assert len(seen) <= runs or error[0] is not None, "onnxruntime went on to the end"
                return context.__exit__(*error)

        return Context()

    monkeypatch.setattr(Cancellation, "stopping", during)
    if stage == "encode":
        answer = fresh.ask(Image.new("RGB", (5, 5), "red"), QUESTION, cancellation=cancellation)
    else:
        answer = fresh.ask(photo, QUESTION, max_new_tokens=8, cancellation=cancellation)
    assert answer.finish_reason == "cancelled"
    assert len(answer.token_ids) == (1 if stage == "decode" else 0)
    monkeypatch.undo()
    assert fresh.ask(photo, QUESTION, max_new_tokens=8).token_ids == whole.token_ids


def test_other_errors_of_a_run_pass() -> None:
    with pytest.raises(ZeroDivisionError), Cancellation().stopping(run_options()):
        raise ZeroDivisionError


def test_a_chat_goes_on_after_a_cancelled_answer(fresh: TinyGPTV, photo: Path) -> None:
    chat = fresh.chat(photo)
    first = chat.ask(QUESTION, max_new_tokens=6)
    stream = chat.stream(TAGGED, max_new_tokens=100)
    next(stream)
    chat.cancel()
    cut = stream.answer
    assert cut.finish_reason == "cancelled"
    assert chat.turns == ((QUESTION, first.text), (TAGGED, cut.text))
    third = chat.ask(QUESTION, max_new_tokens=6)
    assert third.finish_reason == "length" and third.cached_tokens > first.prompt_tokens
    assert len(chat.turns) == 3


def test_an_answer_cancelled_before_its_first_token_is_no_turn(fresh: TinyGPTV, photo: Path) -> None:
    chat = fresh.chat(photo)
    cancellation = Cancellation()
    cancellation.cancel()
    assert chat.ask(QUESTION, cancellation=cancellation).finish_reason == "cancelled"
    assert chat.turns == ()
    assert chat.ask(QUESTION, max_new_tokens=4).finish_reason == "length"


def test_the_next_question_ends_an_answer_that_nobody_reads(fresh: TinyGPTV, photo: Path) -> None:
    chat = fresh.chat(photo)
    unread = chat.stream(QUESTION, max_new_tokens=LONG)
    piece = next(unread)
    chat.ask(TAGGED, max_new_tokens=4)
    assert unread.answer.finish_reason == "cancelled"
    assert [question for question, _ in chat.turns] == [QUESTION, TAGGED]
    assert chat.turns[0][1].startswith(piece)


def test_from_another_thread_within_a_step(fresh: TinyGPTV, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the answer would be: after cancelling, no further step is begun."""
    stream = fresh.stream(photo, QUESTION, max_new_tokens=LONG)
    next(stream)
    steps_after = []
    run = DecoderState.run

    def noting(state: DecoderState, *arguments, **named):
        if stream._cancellation.requested:
            steps_after.append(True)
        return run(state, *arguments, **named)

    monkeypatch.setattr(DecoderState, "run", noting)
    reader = threading.Thread(target=lambda: stream.answer)
    reader.start()
    time.sleep(0.01)
    stream.cancel()
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert stream.answer.finish_reason in ("cancelled", "length", "stop")
    assert len(steps_after) <= 1


# asyncio


def test_async_pieces_are_the_answer(fresh: TinyGPTV, photo: Path) -> None:
    wanted = fresh.ask(photo, QUESTION, max_new_tokens=20)

    async def read() -> tuple[list[str], str, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        clock = asyncio.create_task(tick())
        stream = fresh.astream(photo, QUESTION, max_new_tokens=20)
        with pytest.raises(TinyGPTVError, match="not complete yet"):
            _ = stream.answer
        pieces = [piece async for piece in stream]
        clock.cancel()
        assert [piece async for piece in stream] == []
        return pieces, stream.answer.text, ticks

    pieces, text, ticks = asyncio.run(read())
    assert "".join(pieces) == text == wanted.text
    assert ticks > len(pieces)  # the loop went on meanwhile


def test_async_errors_come_with_the_first_piece(fresh: TinyGPTV) -> None:
    async def read() -> None:
        async for _ in fresh.astream("no such file.png", QUESTION):
            pass

    with pytest.raises(ImageError):
        asyncio.run(read())


def test_a_reader_who_leaves_early(fresh: TinyGPTV, photo: Path) -> None:
    async def read() -> str:
        async with contextlib.aclosing(fresh.astream(photo, QUESTION, max_new_tokens=LONG)) as stream:
            first = await anext(stream)
        async for _ in stream:
            raise AssertionError("it was closed")
        return first if stream.answer.finish_reason == "cancelled" else ""

    assert asyncio.run(read())


def test_cancelling_the_task_cancels_the_answer(fresh: TinyGPTV, photo: Path) -> None:
    async def read() -> bool:
        chat = await asyncio.to_thread(fresh.chat, photo)
        stream = chat.astream(QUESTION, max_new_tokens=LONG)
        first = asyncio.Event()

        async def reader() -> None:
            async for _ in stream:
                first.set()

        task = asyncio.create_task(reader())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream._cancellation.requested

    assert asyncio.run(read())
    assert fresh.ask(photo, QUESTION, max_new_tokens=4).finish_reason == "length"


def test_sessions_obey_termination(golden_bundle: Callable[[int, str], Path]) -> None:
    """What all of this rests on: a run whose options say so ends with an error."""
    folder = golden_bundle(3, "fp32")
    session = open_session(folder, read_manifest(folder).graphs["vision_encoder"], threads=1)
    shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
    options = run_options()
    options.terminate = True
    with pytest.raises(Exception, match="terminate"):
        session.run(None, {"pixel_values": np.zeros(shape, np.float32)}, options)


def test_runs_that_are_ended_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime would write a line about an error where one ends within a loop, as large vision encoders have."""
    count, go_on, kept = (helper.make_tensor_value_info(*one) for one in BODY_INPUTS)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Add", ["kept", "kept"], ["sum"])],
        "body",
        [count, go_on, kept],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "start"], ["end"], body=body)],
        "forever",
        [
            helper.make_tensor_value_info("times", TensorProto.INT64, []),
            helper.make_tensor_value_info("start", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("end", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    options, cancellation = run_options(), Cancellation()
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    with pytest.raises(CancellationError), cancellation.stopping(options):
        session.run(None, {"times": np.array(2**60), "start": np.ones(1, np.float32)}, options)
    timer.join()
    assert capfd.readouterr().err == ""
