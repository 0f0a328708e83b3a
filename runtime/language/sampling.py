"""Sampling the next token from logits: the most probable one, or one drawn at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .generate import most_probable


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled; greedily by default, which gives the same answer each time.

    Raises:
        ArgumentError: A value is out of range.
    """

    temperature: float = 0.0
    """Divides the logits; 0 decodes greedily."""
    top_p: float = 1.0
    """Sample from the most probable tokens of this total probability, as few as possible; above 0, 1 is all."""
    top_k: int = 0
    """Sample from this many most probable tokens; 0 is all of them."""
    repetition_penalty: float = 1.0
    """Makes tokens of this answer less probable (above 1) or more (below), as in CTRL (Keskar et al. 2019)."""
    seed: int | None = None
    """At least 0. Each answer has its own random numbers, which begin with this seed, so the same question gets the
    same answer. None: other random numbers each time."""

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more, or None"),
        ):
            if not fits:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected {expected}")


GREEDY = Sampling()
PUBLISHED_DEMO = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.05)
"""The settings of the demo that was released with the model."""


def sampler(sampling: Sampling) -> Callable[[NDArray[np.float32]], int]:
    """A function that samples the tokens of one answer, one after the other, from logits, float32 [vocabulary]."""
    return most_probable if sampling == GREEDY else _Sampler(sampling)


class _Sampler:
    """Penalty, temperature, top_k and top_p in this order, as transformers does."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._sampled: list[int] = []

    def __call__(self, logits: NDArray[np.float32]) -> int:
        sampling = self._sampling
        scores = logits.astype(np.float64)
        sampled = scores[self._sampled]
        scores[self._sampled] = np.where(
            sampled > 0, sampled / sampling.repetition_penalty, sampled * sampling.repetition_penalty
        )
        token = int(scores.argmax()) if sampling.temperature == 0 else self._draw(scores - scores.max())
        self._sampled.append(token)
        return token

    def _draw(self, scores: NDArray[np.float64]) -> int:
        """From scores of which the largest is 0: dividing by however small a temperature then overflows to no more
        than minus infinity, which is never drawn.
        """
        order = np.argsort(-scores, kind="stable")[: self._sampling.top_k or None]
        with np.errstate(over="ignore"):
            probabilities = np.exp(scores[order] / self._sampling.temperature)
        probabilities /= probabilities.sum()
        # The token that passes top_p is still one of them.
        count = 1 + int(np.searchsorted(probabilities.cumsum(), self._sampling.top_p))
        kept = probabilities[:count]
        return int(self._random.choice(order[:count], p=kept / kept.sum()))
