"""Log-probabilities of an answer's tokens."""

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
    """The token's text in UTF-8, perhaps a part of a character. Empty for special tokens."""
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    """The most probable tokens at this position, best first, as many as ``top_logprobs`` says."""


def logprobs_of(logits: NDArray[np.float32], token_id: int, count: int) -> list[tuple[int, float]]:
    """Log-probabilities of the sampled token and of the most probable ones.

    Args:
        logits: float32 [vocabulary].
        token_id: The sampled token.
        count: Number of most probable tokens to return.

    Returns:
        (token id, log-probability) pairs: the sampled token, then the ``count`` most probable ones, best first.
    """
    largest = float(logits.max())
    scale = largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    count = min(count, len(logits))
    top = np.argpartition(logits, len(logits) - count)[len(logits) - count :] if count else np.empty(0, np.intp)
    ids = [token_id, *top[np.lexsort((top, -logits[top]))].tolist()]
    return [(each, float(logits[each]) - scale) for each in ids]
