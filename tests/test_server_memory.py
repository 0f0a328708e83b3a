"""What conversations by ``tinygptv serve`` compute, and that nobody's answer depends on what others asked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tinygptv.runtime import Answer, TinyGPTV
from tinygptv.runtime.language.prompt import Turn
from tinygptv.runtime.server.asked import Answered
from tinygptv.runtime.server.openai_chat import read_chat
from tinygptv.runtime.server.queue import AnswerQueue
from tinygptv.runtime.server.schema import Schemas

QUESTIONS = ("what?", "[vqa] what is it?", "and why?", "is it red?")
TOKENS = 8
Turns = list[tuple[str, str]]


@pytest.fixture(scope="module")
def model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """Its random weights write what no text is tokenised to."""
    with TinyGPTV.load(golden_bundle(3, "int8")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def other(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """The same, asked by nobody else."""
    with TinyGPTV.load(golden_bundle(3, "int8")) as loaded:
        yield loaded


def picture(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "png")
    return file.getvalue()


PICTURES = (picture("red"), picture("blue"), None)


def asked(queue: AnswerQueue, image: bytes | None, turns: Turns, question: str) -> Answer:
    """The answer to a request that holds a whole conversation, as they all do."""
    said = [part for turn in (*turns, (question, "")) for part in turn][:-1]
    messages: list[dict[str, object]] = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)
    ]
    if image is not None:
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        shown = {"type": "image_url", "image_url": {"url": url}}
        messages[0]["content"] = [shown, {"type": "text", "text": said[0]}]
    body = json.dumps({"messages": messages, "max_tokens": TOKENS}).encode()

    async def answer() -> Answer:
        job = queue.admit()
        manifest = queue._model.manifest
        job.start(read_chat(body, manifest, Schemas(queue._model.tokenizer, manifest)).asked)
        answers = []
        while (event := await job.next()) is not None:
            answers += [event.answer] if isinstance(event, Answered) else []
        (only,) = answers
        return only

    return asyncio.run(answer())


@pytest.fixture
def queue(model: TinyGPTV) -> Iterator[AnswerQueue]:
    made = AnswerQueue(model, 1)
    yield made
    asyncio.run(made.close())


def conversation(queue: AnswerQueue, image: bytes | None) -> list[tuple[Turns, str, Answer]]:
    """Questions one after the other: what was said before each, itself, its answer."""
    turns: Turns = []
    requests = []
    for question in QUESTIONS:
        answer = asked(queue, image, turns, question)
        requests.append((list(turns), question, answer))
        turns.append((question, answer.text))
    return requests


@pytest.mark.parametrize("image", PICTURES)
def test_a_conversation_feeds_what_is_new_and_the_last_answer(
    queue: AnswerQueue, image: bytes | None, fed: list[int]
) -> None:
    lengths = []
    for number, (_, _, answer) in enumerate(conversation(queue, image)):
        lengths.append(answer.prompt_tokens)
        if number >= 2:  # the first question is no conversation yet
            new = lengths[-1] - lengths[-2]
            # One more: the blank before an answer is a token of its own until there is an answer.
            assert answer.prompt_tokens - answer.cached_tokens <= new + 1
    starts = [count for count in fed if count > 1]
    assert len(starts) == len(QUESTIONS)
    assert starts[2] <= lengths[2] - lengths[1] + 1
    assert starts[3] <= lengths[3] - lengths[2] + 1


def test_the_same_request_gets_the_same_answer(queue: AnswerQueue, other: TinyGPTV) -> None:
    """Whatever was asked in between, and as it is by who resumes the conversation from its text."""
    requests = [(image, *request) for image in PICTURES for request in conversation(queue, image)]
    assert len({answer.text for *_, answer in requests}) > len(QUESTIONS)
    for step in (1, 5, 7, 11):  # 12 requests, in orders that tear conversations apart, or repeat one at once
        for number in range(len(requests)):
            image, turns, question, answer = requests[number * step % len(requests)]
            for _ in range(2):
                again = asked(queue, image, turns, question)
                assert (again.text, again.token_ids) == (answer.text, answer.token_ids)
    for image, turns, question, answer in requests:
        resumed = other.chat(image, turns=turns).ask(question, max_new_tokens=TOKENS)
        assert (resumed.text, resumed.prompt_tokens) == (answer.text, answer.prompt_tokens)


def test_an_image_stays_known_while_others_are_asked_about(queue: AnswerQueue, model: TinyGPTV) -> None:
    """What a conversation leaves, another about the same picture begins with."""
    red, blue = (conversation(queue, image)[-1] for image in PICTURES[:2] if image)
    before, _ = model._engine.segments([Turn(QUESTIONS[0])], 1, None)
    through = len(before) + model.manifest.contract.image_tokens
    for image, (turns, question, _) in ((PICTURES[0], red), (PICTURES[1], blue), (PICTURES[0], red)):
        again = asked(queue, image, turns, question)
        assert again.cached_tokens >= through


def test_no_position_of_a_prompt_is_fed_alone(queue: AnswerQueue, fed: list[int]) -> None:
    """In int8 its products would be rounded as those of no other."""
    turns, question, answer = conversation(queue, PICTURES[0])[-1]
    fed.clear()
    again = asked(queue, PICTURES[0], turns, question)
    assert fed[0] == 2
    assert again.cached_tokens == answer.prompt_tokens - 2
    assert again.text == answer.text


def test_nothing_of_an_answer_is_kept(queue: AnswerQueue, model: TinyGPTV) -> None:
    """Its tokens were computed alone, too."""
    *_, answer = conversation(queue, PICTURES[0])[-1]
    kept = model._engine.conversations._last
    assert len(answer.token_ids) > 1
    assert kept is not None and kept.cache.length == len(kept.positions) == answer.prompt_tokens
