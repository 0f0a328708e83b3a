"""Sampling the next token from logits: greedy or random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .generate import most_probable

LogitsProcessor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]
"""What changes one answer's logits before each token is sampled.

Called with the ids of the answer's tokens so far and a copy of the logits, float32 [vocabulary], which it may change;
returns those that the next token is sampled from, where minus infinity rules a token out. If only end-of-text tokens
are left, the answer ends.
"""


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


def sampler(
    sampling: Sampling,
    processor: LogitsProcessor | None = None,
    record: Callable[[int, NDArray[np.float32]], object] | None = None,
) -> Callable[[NDArray[np.float32]], int]:
    """A function that samples the tokens of one answer, one after the other, from logits, float32 [vocabulary].

    Args:
        sampling: The sampling settings.
        processor: Changes the logits before sampling.
        record: Called with each sampled token and the logits that the model returned.
    """
    sample: Callable[[NDArray[np.float32]], int] = most_probable if sampling == GREEDY else _Sampler(sampling)
    return sample if processor is None and record is None else _Hooks(sample, processor, record)


class _Hooks:
    """Optional processing before and after a token is sampled."""

    def __init__(
        self,
        sample: Callable[[NDArray[np.float32]], int],
        processor: LogitsProcessor | None,
        record: Callable[[int, NDArray[np.float32]], object] | None,
    ) -> None:
        self._sample = sample
        self._processor = processor
        self._record = record
        self._sampled: list[int] = []

    def __call__(self, logits: NDArray[np.float32]) -> int:
        scores = logits
        if self._processor is not None:
            scores = self._processor(tuple(self._sampled), logits.copy())
            if scores.shape != logits.shape or not np.isfinite(scores.max()):
                raise ArgumentError(
                    f"logits_processor gave logits of shape {scores.shape}, the largest of them {scores.max()}; "
                    f"expected {logits.shape} and at least one token that is not ruled out"
                )
        token = self._sample(scores)
        self._sampled.append(token)
        if self._record is not None:
            self._record(token, logits)
        return token


class _Sampler:
    """Applies penalty, temperature, top_k and top_p in this order, like transformers."""

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
        """Sample from scores whose largest is 0: dividing them by a very small temperature then overflows only to
        minus infinity, which is never sampled.
        """
        order = np.argsort(-scores, kind="stable")[: self._sampling.top_k or None]
        with np.errstate(over="ignore"):
            probabilities = np.exp(scores[order] / self._sampling.temperature)
        probabilities /= probabilities.sum()
        # The token that passes top_p is still one of them.
        count = 1 + int(np.searchsorted(probabilities.cumsum(), self._sampling.top_p))
        kept = probabilities[:count]
        return int(self._random.choice(order[:count], p=kept / kept.sum()))
