"""The decoder graph with its KV cache: takes embeddings of new positions, returns logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..bundle.contract import Contract
from ..bundle.sessions import check_finite, run_options
from ..cancel import Cancellation
from ..errors import ArgumentError
from .kv_cache import CacheArray, KVCache

if TYPE_CHECKING:
    import onnxruntime

ALL_LOGITS = 0
"""``num_logits_to_keep`` for the logits of every new position."""
PIECE = 256
"""Maximum positions of a prompt that are computed at once: intermediate activations take memory for each of them,
and fit in the processor's cache if they are few."""


def check_embeds(inputs_embeds: NDArray[np.float32], contract: Contract) -> None:
    """Raise ArgumentError unless the shape is [1, sequence, hidden], with at least one position."""
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[0] != 1 or inputs_embeds.shape[2] != contract.hidden_size:
        raise ArgumentError(f"inputs_embeds is {inputs_embeds.shape}; expected (1, sequence, {contract.hidden_size})")
    if not inputs_embeds.shape[1]:
        raise ArgumentError("inputs_embeds has no positions; expected at least one")


class Decoder:
    """The language model's graph; immutable, safe for concurrent use."""

    def __init__(self, session: onnxruntime.InferenceSession, contract: Contract) -> None:
        self.session = session
        self.contract = contract

    def start(self, cache: KVCache | None = None) -> DecoderState:
        """Begin a sequence that continues the one in ``cache``, or a new, empty one."""
        return DecoderState(self, self.new_cache() if cache is None else cache)

    def new_cache(self) -> KVCache:
        """Create an empty cache of one row."""
        return KVCache(self.contract)


class DecoderState:
    """One sequence being decoded. Not for concurrent use.

    Inputs and outputs are bound once: a step of one token overwrites the small inputs in place and runs. They are bound
    again only for a prompt, whose length differs, and after the cache has grown.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._session = decoder.session
        self._contract = decoder.contract
        self.cache = cache
        self._binding = decoder.session.io_binding()
        if cache.capacity:
            bind_cache(self._binding, cache.buffers)
        self._inputs: dict[str, NDArray[np.generic]] = {
            "seqlens_k": np.zeros(1, np.int32),
            "total_sequence_length": np.zeros((), np.int32),
        }
        for name, array in self._inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._bound = (0, 0)
        self._logits = np.zeros((0, 0), np.float32)

    def run(
        self,
        inputs_embeds: NDArray[np.float32],
        num_logits_to_keep: int = 1,
        cancellation: Cancellation | None = None,
    ) -> NDArray[np.float32]:
        """Run new positions after the cached ones, in chunks if only the last position's logits are wanted.

        Args:
            inputs_embeds: float32 [1, sequence, hidden].
            num_logits_to_keep: Number of last positions whose logits are returned; :data:`ALL_LOGITS` for all.
            cancellation: Ends the run from another thread; the sequence is then unchanged.

        Returns:
            Logits, float32 [kept, vocabulary], valid until the next call.

        Raises:
            BundleError: The logits are not finite; the sequence is then unchanged.
            CancellationError: The run was cancelled.
            ArgumentError: The shape is wrong, or the context has no room for so many positions.
        """
        check_embeds(inputs_embeds, self._contract)
        sequence = inputs_embeds.shape[1]
        if self.cache.reserve(sequence):
            bind_cache(self._binding, self.cache.buffers)
        kept = min(num_logits_to_keep, sequence) or sequence
        count = -(-sequence // PIECE) if kept == 1 else 1
        cancellation = cancellation or Cancellation()
        past = self.cache.length
        try:
            # Of about the same length: in int8, a position by itself is rounded differently than among several.
            for piece in np.array_split(inputs_embeds, count, axis=1):
                self._run_piece(piece, kept, cancellation)
            check_finite(self._logits, "logits")
        except BaseException:
            self.cache.rewind(past)
            raise
        return self._logits

    def _run_piece(self, inputs_embeds: NDArray[np.float32], kept: int, cancellation: Cancellation) -> None:
        sequence = inputs_embeds.shape[1]
        if self._bound != (sequence, kept):
            self._bind_step(sequence, kept)
        past, total = self.cache.length, self.cache.length + sequence
        self._inputs["inputs_embeds"][...] = inputs_embeds
        self._inputs["position_ids"][...] = np.arange(past, total)
        self._inputs["seqlens_k"][...] = total - 1
        self._inputs["total_sequence_length"][...] = total
        options = run_options()
        with cancellation.stopping(options):
            self._session.run_with_iobinding(self._binding, options)
        self.cache.length = total

    def _bind_step(self, sequence: int, kept: int) -> None:
        shaped: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": np.empty((1, sequence, self._contract.hidden_size), np.float32),
            "position_ids": np.empty((1, sequence), np.int64),
            "num_logits_to_keep": np.array(kept, np.int64),
        }
        for name, array in shaped.items():
            self._binding.bind_cpu_input(name, array)
        self._inputs |= shaped
        logits = np.empty((1, kept, self._contract.vocab_size), np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._logits = logits[0]
        self._bound = (sequence, kept)


def bind_cache(binding: onnxruntime.IOBinding, buffers: Sequence[CacheArray]) -> None:
    """Bind past and present of every layer to the same memory; ``buffers`` alternate between keys and values."""
    for i, buffer in enumerate(buffers):
        name = f"{i // 2}.{'value' if i % 2 else 'key'}"
        place = ("cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        binding.bind_input(f"past_key_values.{name}", *place)
        binding.bind_output(f"present.{name}", *place)
