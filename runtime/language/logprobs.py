"""How probable a model held the tokens of its answer to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and the natural logarithm of its probability.

    The probability is the model's own: of the logits before temperature, penalties and ``logits_processor``.
    """

    token_id: int
    text: bytes
    """UTF-8; it may be a part of a character. Empty for special tokens."""
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    """The most probable tokens at this position, best first, as many as ``top_logprobs`` says."""


def logprobs_of(logits: NDArray[np.float32], token_id: int, count: int) -> list[tuple[int, float]]:
    """Log-probabilities of a token, and after it of the most probable ones.

    Args:
        logits: float32 [vocabulary].
        token_id: Of the token that was sampled.
        count: How many of the most probable ones.

    Returns:
        (token id, log-probability) pairs: that token, then ``count`` from the most probable on.
    """
    largest = float(logits.max())
    scale = largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    count = min(count, len(logits))
    top = np.argpartition(logits, len(logits) - count)[len(logits) - count :] if count else np.empty(0, np.intp)
    ids = [token_id, *top[np.lexsort((top, -logits[top]))].tolist()]
    return [(each, float(logits[each]) - scale) for each in ids]
