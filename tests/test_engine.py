"""How prompts are put together: what is left out, what is looked up, and what is no part of an answer's text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION, bundle_with
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinygptv.runtime.language.embeddings import TokenEmbeddings
from tinygptv.runtime.language.prompt import Turn

from tinygptv import AnswerOptions, ArgumentError, ContextOverflowError, ImageError, TinyGPTV

CONTEXT = 256
TAGGED = "[vqa] what is it?"
SAID = [(QUESTION, "it is red"), ("and why is that?", "so")]


@pytest.fixture
def fresh(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """A model that nobody asked before."""
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


# What is left out


@settings(deadline=None, max_examples=60)
@given(
    turns=st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 30), st.none() | st.lists(st.integers(0, 300), max_size=30)),
        max_size=12,
    ),
    image_count=st.integers(0, 2),
    max_new_tokens=st.none() | st.integers(1, CONTEXT),
)
def test_as_few_turns_are_left_out_as_need_be(
    speaking_model: TinyGPTV,
    turns: list[tuple[int, int, list[int] | None]],
    image_count: int,
    max_new_tokens: int | None,
) -> None:
    engine = speaking_model._engine
    said = [Turn("what? " * asked, "red " * told, None if ids is None else tuple(ids)) for asked, told, ids in turns]
    conversation = [*said, Turn(QUESTION)]
    wanted = max_new_tokens or 300

    def length(first: int) -> int:
        return sum(map(len, engine.segments(conversation[first:], image_count, None))) + 8 * image_count

    fitting = [first for first in range(len(conversation)) if length(first) + wanted <= CONTEXT]
    options = AnswerOptions(max_new_tokens=max_new_tokens)
    if not fitting and max_new_tokens is not None:
        with pytest.raises(ContextOverflowError):
            engine.prepare(conversation, image_count, options)
        return
    first = min(fitting, default=len(said))
    prepared = engine.prepare(conversation, image_count, options)
    assert prepared.segments == engine.segments(conversation[first:], image_count, None)
    assert prepared.writer.max_new_tokens == (wanted if fitting else CONTEXT - length(first))
    answer = prepared.writer.finish()[1]
    assert (answer.truncated_turns, answer.prompt_tokens) == (first, length(first))


# What is looked up


def test_only_new_positions_are_looked_up(fresh: TinyGPTV, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[int] = []
    rows = TokenEmbeddings.rows

    def counting(table: TokenEmbeddings, token_ids: list[int]) -> np.ndarray:
        looked_up.append(len(token_ids))
        return rows(table, token_ids)

    monkeypatch.setattr(TokenEmbeddings, "rows", counting)
    image = fresh.encode_image(photo)
    chat = fresh.chat(image)
    for number, question in enumerate((QUESTION, TAGGED, QUESTION)):
        looked_up.clear()
        answer = chat.ask(question, max_new_tokens=8)
        new = answer.prompt_tokens - answer.cached_tokens - (0 if number else len(image.embeds))
        assert sum(looked_up) == new + len(answer.token_ids) - 1


# What is no part of an answer's text


@pytest.fixture
def prefixed(golden_bundle: Callable[[int, str], Path], fresh: TinyGPTV, photo: Path, tmp_path: Path) -> TinyGPTV:
    """A model whose answers begin, as its template says, with what the golden answer begins with."""
    template = fresh.manifest.template()
    beginning = fresh.ask(photo, QUESTION, max_new_tokens=24).text[:3]
    template = replace(template, before_answer=beginning, after_answer="<|endoftext|>")
    changes = {"templates": (template,), "default_template": template.name}
    return TinyGPTV.load(bundle_with(golden_bundle(3, "fp32"), tmp_path / "prefixed", **changes))


def test_what_comes_before_an_answer_is_not_in_its_text(fresh: TinyGPTV, prefixed: TinyGPTV, photo: Path) -> None:
    whole = fresh.ask(photo, QUESTION, max_new_tokens=24)
    beginning = prefixed.manifest.template().before_answer
    assert whole.text.startswith(beginning)
    stream = prefixed.stream(photo, QUESTION, max_new_tokens=24)
    pieces = list(stream)
    assert beginning + "".join(pieces) == whole.text
    assert all(pieces) and stream.answer.text == "".join(pieces)
    assert stream.answer.token_ids == whole.token_ids
    assert prefixed.ask_many([(photo, QUESTION)], max_new_tokens=24)[0].text == stream.answer.text


def test_what_comes_after_an_answer_is_in_the_next_prompt(prefixed: TinyGPTV, photo: Path) -> None:
    """Behind the tokens that the model wrote, or the text that it would have begun."""
    image = prefixed.encode_image(photo)
    engine = prefixed._engine
    chat = prefixed.chat(image)
    first = chat.ask(QUESTION, max_new_tokens=8)
    second = chat.ask(TAGGED, max_new_tokens=8)
    after = engine.tokenizer.encode(f"<|endoftext|>###Human: {TAGGED}###Assistant: ").ids
    assert second.prompt_tokens == first.prompt_tokens + len(first.token_ids) + len(after)
    assert second.cached_tokens == first.prompt_tokens + len(first.token_ids) - 1
    resumed = prefixed.ask(image, TAGGED, turns=[(QUESTION, first.text)], max_new_tokens=8)
    text = f"{engine.manifest.template().before_answer}{first.text}"
    asked = engine.segments([Turn(QUESTION)], 1, None)
    told = engine.tokenizer.encode(
        f"</Img> {QUESTION}###Assistant: {text}<|endoftext|>###Human: {TAGGED}###Assistant: "
    )
    assert resumed.prompt_tokens == len(asked[0]) + len(image.embeds) + len(told.ids)


def test_tokens_of_a_text_that_a_stop_string_ended(prefixed: TinyGPTV, photo: Path) -> None:
    whole = prefixed.ask(photo, QUESTION, max_new_tokens=12)
    ends = [len(prefixed._engine.tokenizer.decode(whole.token_ids[:count])) for count in range(13)]
    beginning = prefixed.manifest.template().before_answer
    found = 0
    for length in range(1, len(whole.text)):
        stop = whole.text[length:]
        answer = prefixed.ask(photo, QUESTION, max_new_tokens=12, stop=[stop])
        ids = prefixed._engine.text_token_ids(answer, None)
        if answer.text != whole.text[:length]:
            continue  # the stop string comes earlier, too
        if len(beginning) + length in ends:
            assert ids == whole.token_ids[: ends.index(len(beginning) + length)]
            found += 1
        else:
            assert ids is None or beginning + answer.text == prefixed._engine.tokenizer.decode(ids)
    assert found > 1


# What was said before


def test_turns_are_a_chat_that_goes_on(fresh: TinyGPTV, photo: Path) -> None:
    image = fresh.encode_image(photo)
    for pictures in (image, [image, Image.new("RGB", (9, 9), "red")], None):
        wanted = fresh.chat(pictures, turns=SAID).ask(TAGGED, max_new_tokens=8)
        found = fresh.ask(pictures, TAGGED, turns=SAID, max_new_tokens=8)
        assert (found.token_ids, found.prompt_tokens) == (wanted.token_ids, wanted.prompt_tokens)
        assert found.token_ids != fresh.ask(pictures, TAGGED, max_new_tokens=8).token_ids

    async def read() -> str:
        return "".join([piece async for piece in fresh.astream(image, TAGGED, turns=SAID, max_new_tokens=8)])

    assert asyncio.run(read()) == fresh.stream(image, TAGGED, turns=SAID, max_new_tokens=8).answer.text


def test_a_conversation_computes_what_is_new_in_it(fresh: TinyGPTV, photo: Path) -> None:
    turns: list[tuple[str, str]] = []
    lengths = [0]
    for question in (QUESTION, TAGGED, "and why is that?", QUESTION):
        answer = fresh.ask(photo, question, turns=turns, max_new_tokens=4)
        if len(turns) > 1:
            assert answer.cached_tokens >= lengths[-1] - 2, "the last prompt, but for where another text follows"
        lengths.append(answer.prompt_tokens)
        turns.append((question, "it is red"))


def test_another_conversation_leaves_the_image(fresh: TinyGPTV, photo: Path) -> None:
    image = fresh.encode_image(photo)
    fresh.ask(image, TAGGED, turns=SAID, max_new_tokens=2)
    other = fresh.ask(None, TAGGED, turns=SAID, max_new_tokens=2)
    assert other.cached_tokens == 0
    again = fresh.ask(image, TAGGED, turns=[(QUESTION, "blue")], max_new_tokens=2)
    assert len(image.embeds) < again.cached_tokens < again.prompt_tokens


def test_what_is_wrong_with_turns_is_said_before_the_picture_is_opened(fresh: TinyGPTV) -> None:
    none = "no such file.png"
    for call in (fresh.ask, fresh.stream, fresh.astream):
        with pytest.raises(ArgumentError, match="question 1 is ' '"):
            call(none, QUESTION, turns=[(" ", "red")])
        with pytest.raises(TypeError, match="answer 1 is of type int"):
            call(none, QUESTION, turns=[("how many?", 3)])
        with pytest.raises(ContextOverflowError):
            call(none, "why? " * CONTEXT, turns=SAID)
    with pytest.raises(ImageError):
        fresh.ask(none, QUESTION, turns=SAID)
