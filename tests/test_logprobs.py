"""What an answer's options change in the decode loop: log-probabilities, processed logits, and what goes before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from tinygptv.runtime.language.logprobs import logprobs_of

from tinygptv import ArgumentError, ContextOverflowError, LogitsProcessor, Sampling, TinyGPTV

Logits = NDArray[np.float32]


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-80, 80, width=32)), st.integers(0, 20))
def test_logprobs_are_the_log_softmax(logits: Logits, count: int) -> None:
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
    token = len(logits) // 2
    sampled, *top = logprobs_of(logits, token, count)
    assert sampled == (token, pytest.approx(exact[token], abs=1e-4))
    assert [number for number, _ in top] == np.argsort(-logits, kind="stable")[:count].tolist() or len(
        set(logits.tolist())
    ) < len(logits)
    assert len(top) == min(count, len(logits))
    assert [value for _, value in top] == pytest.approx(np.sort(exact)[::-1][:count], abs=1e-4)


def test_an_answers_logprobs(speaking_model: TinyGPTV, photo: Path) -> None:
    """Of the model's own logits, whatever the sampling; the same one by one and in a batch."""
    seen: list[Logits] = []

    def watching() -> LogitsProcessor:
        def watch(ids: Sequence[int], logits: Logits) -> Logits:
            assert len(ids) == len(seen)
            seen.append(logits.copy())
            return logits

        return watch

    sampling = Sampling(temperature=2, repetition_penalty=1.5, seed=4)
    image = speaking_model.encode_image(photo)
    with speaking_model.stream(
        image, QUESTION, max_new_tokens=9, sampling=sampling, top_logprobs=3, logits_processor=watching
    ) as stream:
        next(stream)
        assert len(stream.logprobs) >= 1
        answer = stream.answer
    assert [token.token_id for token in answer.logprobs] == list(answer.token_ids)
    assert b"".join(token.text for token in answer.logprobs).decode("utf-8", "replace").startswith(answer.text[:3])
    for token, logits in zip(answer.logprobs, seen, strict=True):
        exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
        assert token.logprob == pytest.approx(exact[token.token_id], abs=1e-4)
        assert [other.token_id for other in token.top] == np.argsort(-logits)[:3].tolist()
    (batched,) = speaking_model.ask_many([(image, QUESTION)], max_new_tokens=9, sampling=sampling, top_logprobs=3)
    assert batched.token_ids == answer.token_ids
    assert [token.logprob for token in batched.logprobs] == pytest.approx(
        [token.logprob for token in answer.logprobs], abs=1e-3
    )
    assert speaking_model.ask(image, QUESTION, max_new_tokens=9, sampling=sampling).logprobs == ()


def test_a_processor_rules_tokens_out(speaking_model: TinyGPTV, photo: Path) -> None:
    plain = speaking_model.ask(photo, QUESTION, max_new_tokens=6).token_ids

    def without(banned: int) -> Callable[[], LogitsProcessor]:
        def process(ids: Sequence[int], logits: Logits) -> Logits:
            logits[banned] = -np.inf
            return logits

        return lambda: process

    for options in ({}, {"sampling": Sampling(temperature=3, seed=1)}):
        other = speaking_model.ask(photo, QUESTION, max_new_tokens=30, logits_processor=without(plain[0]), **options)
        assert plain[0] not in other.token_ids and other.token_ids
    assert speaking_model.ask(photo, QUESTION, max_new_tokens=6).token_ids == plain


def test_a_processor_that_leaves_nothing(speaking_model: TinyGPTV) -> None:
    with pytest.raises(ArgumentError, match="at least one token that is not ruled out"):
        speaking_model.ask(None, QUESTION, logits_processor=lambda: lambda ids, logits: logits - np.inf)
    with pytest.raises(ArgumentError, match=r"logits of shape \(3,\)"):
        speaking_model.ask(None, QUESTION, logits_processor=lambda: lambda ids, logits: logits[:3])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"top_logprobs": 21}, ArgumentError),
        ({"top_logprobs": -1}, ArgumentError),
        ({"top_logprobs": True}, TypeError),
        ({"logits_processor": 3}, TypeError),
        ({"clamp": 1}, TypeError),
        ({"system": 3}, TypeError),
        ({"system": "<ImageHere>"}, ArgumentError),
    ],
)
def test_wrong_options(speaking_model: TinyGPTV, wrong: dict[str, object], kind: type[Exception]) -> None:
    (name,) = wrong
    with pytest.raises(kind, match=name):
        speaking_model.ask(None, QUESTION, **wrong)  # type: ignore[arg-type]


def test_clamped_to_the_room_there_is(speaking_model: TinyGPTV) -> None:
    """The golden model never ends its text by itself, and has a context of 256."""
    with pytest.raises(ContextOverflowError, match="lower max_new_tokens"):
        speaking_model.ask(None, QUESTION, max_new_tokens=4096)
    answer = speaking_model.ask(None, QUESTION, max_new_tokens=4096, clamp=True)
    assert answer.prompt_tokens + len(answer.token_ids) == 256 or answer.finish_reason == "stop"
    assert speaking_model.ask(None, QUESTION, max_new_tokens=3, clamp=True).finish_reason == "length"
    for more in ({}, {"max_new_tokens": 4096, "clamp": True}):
        with pytest.raises(ContextOverflowError, match="context is 256, which leaves no room for an answer"):
            speaking_model.ask(None, "what " * 250, **more)


def test_a_limit_that_is_clamped_leaves_turns_in() -> None:
    """The demo's context is 512: 300 of them are kept free, not 4096."""
    with TinyGPTV.load() as model:
        turns = [("is it red?", "no")] * 9
        kept = model.ask(None, "a circle?", turns=turns, max_new_tokens=4096, clamp=True)
        assert (kept.truncated_turns, kept.text) == (0, model.ask(None, "a circle?", turns=turns).text)
