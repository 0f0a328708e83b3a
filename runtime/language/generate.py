"""The decoding loop: from logits to token ids, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator

import numpy as np
from numpy.typing import NDArray

from ..cancel import Cancellation
from ..errors import ArgumentError, ContextOverflowError
from .decoder import DecoderState

Float32Array = NDArray[np.float32]


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raise TypeError unless ``max_new_tokens`` is an int, and ArgumentError if it is less than 1."""
    if not isinstance(max_new_tokens, int):
        raise TypeError(f"max_new_tokens is a {type(max_new_tokens).__name__}; expected an int")
    if max_new_tokens < 1:
        raise ArgumentError(f"max_new_tokens is {max_new_tokens}; expected at least 1")


def check_room(prompt: int, max_new_tokens: int, context: int) -> None:
    """Raise unless a prompt and its answer fit in the context.

    Raises:
        TypeError: ``max_new_tokens`` is not an int.
        ArgumentError: It is less than 1.
        ContextOverflowError: They do not fit; names all three lengths.
    """
    check_max_new_tokens(max_new_tokens)
    if prompt >= context:
        raise ContextOverflowError(
            f"the prompt has {prompt} tokens (images included); the model's context is {context}, which leaves no room "
            "for an answer: shorten the question or show fewer images"
        )
    if prompt + max_new_tokens > context:
        raise ContextOverflowError(
            f"the prompt has {prompt} tokens (images included) and {max_new_tokens} new ones may follow, together "
            f"{prompt + max_new_tokens}; the model's context is {context}: shorten the question, show fewer images or "
            "lower max_new_tokens"
        )


def most_probable(logits: Float32Array) -> int:
    """Greedy choice: index of the largest of the logits, float32 [vocabulary]; the first of equal ones."""
    return int(logits.argmax())


def decode(
    state: DecoderState,
    inputs_embeds: Float32Array,
    embed: Callable[[int], Float32Array],
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    sample: Callable[[Float32Array], int] = most_probable,
    cancellation: Cancellation | None = None,
) -> Generator[int, None, None]:
    """Yield the next token until end of text or ``max_new_tokens``.

    Prefill is one run of the decoder, then each token is one. A token is yielded before the decoder runs on it, so a
    caller who stops early (at a stop string) pays for nothing more; such a caller closes the generator.

    Args:
        state: An empty sequence, or one to continue.
        inputs_embeds: float32 [1, sequence, hidden].
        embed: Token id to its embedding, float32 [1, hidden].
        max_new_tokens: At most so many tokens.
        eos_token_ids: Tokens that end the text; they are not yielded.
        sample: The next token from logits, float32 [vocabulary].
        cancellation: Ends it from another thread.

    Raises:
        CancellationError: It was cancelled.
    """
    logits = state.run(inputs_embeds, cancellation=cancellation)
    for remaining in range(max_new_tokens - 1, -1, -1):
        token = sample(logits[-1])
        if token in eos_token_ids:
            return
        yield token
        if remaining:
            logits = state.run(embed(token)[np.newaxis], cancellation=cancellation)
