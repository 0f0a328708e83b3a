"""Batched decoding: each step reads the weights, which limit its speed, once for all sequences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.sessions import check_finite, run_options
from ..cancel import Cancellation
from .decoder import Decoder, DecoderState, bind_cache
from .kv_cache import KVCache

Float32Array = NDArray[np.float32]


class DecoderBatch:
    """Up to ``rows`` sequences of any lengths, each one position longer after a step. Not for concurrent use.

    Prefill is not batched (one prompt keeps the cores busy by itself); a sequence is added as a row after it.
    """

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self._session = decoder.session
        self._vocab_size = decoder.contract.vocab_size
        self._cache = KVCache(decoder.contract, rows)
        self._lengths = np.zeros(rows, np.int64)
        self._binding = decoder.session.io_binding()
        self._count = 0
        self._bound = 0

    def __len__(self) -> int:
        """Number of rows in use, which are always the first ones."""
        return self._count

    def add(self, state: DecoderState) -> None:
        """Add a sequence as the last row; its cache is copied."""
        row, length = self._count, state.cache.length
        self._count += 1
        self._lengths[row] = length
        if length > self._cache.length:
            self._reserve(length - self._cache.length)
            self._cache.length = length
        for ours, theirs in zip(self._cache.buffers, state.cache.buffers, strict=True):
            ours[row, :, :length] = theirs[0, :, :length]

    def remove(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self._count - 1
        if row != last:
            length = self._lengths[row] = self._lengths[last]
            for buffer in self._cache.buffers:
                buffer[row, :, :length] = buffer[last, :, :length]
        self._count = last
        self._cache.length = int(self._lengths[:last].max(initial=0))

    def run(self, inputs_embeds: Float32Array, cancellation: Cancellation | None = None) -> Float32Array:
        """Run the decoder on one new position of each row.

        Args:
            inputs_embeds: float32 [rows in use, hidden].
            cancellation: Ends the run from another thread; the rows then stay as they were.

        Returns:
            Logits, float32 [rows in use, vocabulary].

        Raises:
            BundleError: The logits are not finite; the rows are then unchanged.
            CancellationError: The run was cancelled.
        """
        self._reserve(1)
        count, lengths = self._count, self._lengths[: self._count]
        if self._bound != count:
            bind_cache(self._binding, [buffer[:count] for buffer in self._cache.buffers])
            self._bound = count
        logits = np.empty((count, 1, self._vocab_size), np.float32)
        inputs: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": np.ascontiguousarray(inputs_embeds[:, np.newaxis]),
            "position_ids": lengths[:, np.newaxis].copy(),
            "seqlens_k": lengths.astype(np.int32),
            "total_sequence_length": np.array(lengths.max() + 1, np.int32),
            "num_logits_to_keep": np.array(1, np.int64),
        }
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        options = run_options()
        with (cancellation or Cancellation()).stopping(options):
            self._session.run_with_iobinding(self._binding, options)
        check_finite(logits, "logits")
        lengths += 1
        self._cache.length += 1
        return logits[:, 0]

    def _reserve(self, positions: int) -> None:
        if self._cache.reserve(positions):
            self._bound = 0


class Row(Protocol):
    """An answer that is decoded as one row of a batch."""

    def inputs_embeds(self) -> Float32Array:
        """Embeddings of the prompt, float32 [1, sequence, hidden]; called when the row is added."""

    def sample(self, logits: Float32Array) -> int:
        """The next token from logits, float32 [vocabulary]."""

    def push(self, token_id: int) -> bool:
        """Add the next token of the answer; returns whether the answer continues."""


R = TypeVar("R", bound=Row)


def decode_batch(
    decoder: Decoder,
    waiting: Iterable[R],
    embed: Callable[[list[int]], Float32Array],
    eos_token_ids: Collection[int],
    batch_size: int,
    cancellation: Cancellation,
) -> Generator[R, None, None]:
    """Decode many answers, ``batch_size`` at a time; when one ends, the next begins.

    Args:
        decoder: The model's decoder.
        waiting: The answers to decode, taken one by one as rows become free.
        embed: Maps token ids to embeddings, float32 [tokens, hidden].
        eos_token_ids: Tokens that end a text; they are not pushed.
        batch_size: Rows of the batch, at least 1.
        cancellation: Ends it from another thread.

    Yields:
        Each row, as soon as its answer is complete.

    Raises:
        CancellationError: It was cancelled.
    """
    batch = DecoderBatch(decoder, batch_size)
    waiting = iter(waiting)
    rows: list[R] = []
    tokens: list[int] = []

    def goes_on(row: R, token: int) -> bool:
        return token not in eos_token_ids and row.push(token)

    while True:
        while len(batch) < batch_size and (row := next(waiting, None)) is not None:
            state = decoder.start()
            token = row.sample(state.run(row.inputs_embeds(), cancellation=cancellation)[-1])
            if goes_on(row, token):
                batch.add(state)
                rows.append(row)
                tokens.append(token)
            else:
                yield row
        if not rows:
            return
        logits = batch.run(embed(tokens), cancellation)
        tokens = [row.sample(row_logits) for row, row_logits in zip(rows, logits, strict=True)]
        complete: list[R] = []
        for number in reversed(range(len(batch))):
            if not goes_on(rows[number], tokens[number]):
                complete.append(rows[number])
                batch.remove(number)
                rows[number], tokens[number] = rows[-1], tokens[-1]
                rows.pop()
                tokens.pop()
        yield from reversed(complete)
