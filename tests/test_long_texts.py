"""Texts and conversations far beyond the context: what cannot fit is not tokenised."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinygptv.runtime import ContextOverflowError, TinyGPTV
from tinygptv.runtime.language import prompt as prompt_module
from tinygptv.runtime.language.prompt import Prompt, Turn
from tinygptv.runtime.options import AnswerOptions


@pytest.fixture(scope="module")
def model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(golden_bundle(4, "fp32")) as model:
        yield model


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each text that is tokenised."""
    lengths: list[int] = []
    original = prompt_module.encode_segments

    def counting(tokenizer: object, text: str) -> list[list[int]]:
        lengths.append(len(text))
        return original(tokenizer, text)  # type: ignore[arg-type]

    monkeypatch.setattr(prompt_module, "encode_segments", counting)
    return lengths


@pytest.mark.parametrize("character", ["x", " ", "é", "語"])
def test_a_question_that_cannot_fit_is_not_tokenised(
    character: str, model: TinyGPTV, photo: Path, tokenised: list[int]
) -> None:
    question = "what? " + character * 30_000_000
    chat = model.chat(photo)
    for ask in (
        lambda: model.ask(photo, question),
        lambda: model.ask(photo, question, turns=[("a", "b")] * 5),
        lambda: chat.ask(question),
        lambda: list(model.ask_each([(photo, question)])),
    ):
        with pytest.raises(ContextOverflowError, match=r"the question has 30,000,006 characters, and cannot fit"):
            ask()
    assert sum(tokenised) < 10_000


def test_a_long_earlier_text_is_left_out(model: TinyGPTV, tokenised: list[int]) -> None:
    turns = [("what?", "red " * 10_000_000), ("why " * 10_000_000, "so"), ("how?", "thus")]
    prepared = model._engine.prepare(
        [*(Turn(*turn) for turn in turns), Turn("so?")], 0, AnswerOptions(max_new_tokens=20)
    )
    assert prepared.writer._truncated_turns == 2
    assert sum(tokenised) < 10_000


def naive(model: TinyGPTV, turns: list[Turn], limit: int) -> int:
    """The first turn of a prompt that fits, found by trying all of them."""
    prompt = Prompt(model.manifest.template(None), model._engine.tokenizer, turns, 0)
    context = model.manifest.contract.context
    return next(n for n in range(len(turns)) if sum(map(len, prompt.segments(n))) + limit <= context)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(0, 300), st.booleans()), max_size=40))
def test_as_many_turns_are_left_out_as_need_be(lengths: list[tuple[int, int, bool]], model: TinyGPTV) -> None:
    turns = [
        Turn("what " * asked, "red " * answered, tuple(range(60, 60 + answered % 90)) if with_ids else None)
        for asked, answered, with_ids in lengths
    ]
    turns.append(Turn("so?"))
    prepared = model._engine.prepare(turns, 0, AnswerOptions(max_new_tokens=20))
    assert prepared.writer._truncated_turns == naive(model, turns, 20)


def test_a_conversation_of_any_length_is_soon_read(model: TinyGPTV, tokenised: list[int]) -> None:
    """What is tokenised does not grow with it."""
    totals = []
    for count in (300, 100_000):
        turns = [Turn(f"what is number {number}?", "a red circle") for number in range(count)]
        tokenised.clear()
        started = time.process_time()
        model._engine.prepare([*turns, Turn("so?")], 0, AnswerOptions())
        totals.append(sum(tokenised))
        assert time.process_time() - started < 20, "it was a minute, and quadratic"
    assert totals[1] < 2 * totals[0]
