"""Sampling tokens: the documented order of filters, against plain formulas and transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUESTION
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygptv.runtime import PUBLISHED_DEMO, ArgumentError, Sampling, TinyGPTV
from tinygptv.runtime.language.generate import most_probable
from tinygptv.runtime.language.sampling import GREEDY, sampler
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

WORDS = 12


def some_logits(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(WORDS) * 3).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, float("inf"), float("nan"))),
        *(("top_p", value) for value in (0, -1, 1.01, float("nan"))),
        ("top_k", -1),
        *(("repetition_penalty", value) for value in (0, -2, float("inf"))),
        ("seed", -1),
    ],
)
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is {value}; expected"):
        Sampling(**{name: value})


def test_greedy_is_the_default() -> None:
    assert sampler(Sampling()) is most_probable
    assert Sampling() == GREEDY
    assert most_probable(np.array([1, 5, 5, 2], np.float32)) == 1  # the first of equals


def test_the_published_demo() -> None:
    assert (PUBLISHED_DEMO.temperature, PUBLISHED_DEMO.top_p, PUBLISHED_DEMO.repetition_penalty) == (1.0, 0.9, 1.05)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, WORDS + 2),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 1.05, 3.0]),
)
def test_what_can_be_drawn_is_what_transformers_leaves(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    """After a first token was sampled: never a token that it rules out, and often each that it makes probable."""
    sample = sampler(Sampling(temperature, top_p, top_k, penalty, seed))
    first = sample(some_logits(seed))
    scores = torch.from_numpy(some_logits(seed + 1)).double()[None]
    scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[first]]), scores)
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(min(top_k, WORDS))(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    wanted = scores.softmax(-1)[0].numpy()
    drawn = np.zeros(WORDS)
    for draw in range(400):
        again = sampler(Sampling(temperature, top_p, top_k, penalty, draw))
        again._sampled = [first]  # type: ignore[attr-defined]
        drawn[again(some_logits(seed + 1))] += 1 / 400
    assert not drawn[wanted == 0].any()
    assert np.abs(drawn - wanted).max() < 0.15  # six standard deviations of a half at 400 draws


def test_penalty_without_temperature_is_greedy_over_what_was_not_sampled() -> None:
    sample = sampler(Sampling(repetition_penalty=100.0))
    logits = np.array([3.0, 2.0, 1.0, -1.0], np.float32)
    assert [sample(logits) for _ in range(3)] == [0, 1, 2]
    assert logits.tolist() == [3.0, 2.0, 1.0, -1.0]  # the caller's array is its own


def test_a_seed_gives_the_same_answer_and_another_another(speaking_model: TinyGPTV, photo: Path) -> None:
    def text(seed: int | None) -> tuple[int, ...]:
        return speaking_model.ask(
            photo, QUESTION, max_new_tokens=16, sampling=Sampling(temperature=1.5, seed=seed)
        ).token_ids

    assert text(1) == text(1)
    assert len({text(1), text(2), text(3)}) > 1
    assert len({text(None) for _ in range(4)}) > 1
    assert text(1) != speaking_model.ask(photo, QUESTION, max_new_tokens=16).token_ids


def test_a_low_temperature_is_greedy(speaking_model: TinyGPTV, photo: Path) -> None:
    for temperature in (1e-6, 1e-320):
        cold = speaking_model.ask(photo, QUESTION, max_new_tokens=16, sampling=Sampling(temperature=temperature))
        assert cold.token_ids == speaking_model.ask(photo, QUESTION, max_new_tokens=16).token_ids
