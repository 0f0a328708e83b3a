"""The attention's keys and values, in buffers that grow in steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bundle.contract import Contract
from ..errors import ArgumentError

CacheArray = NDArray[np.generic]
"""Floating-point numbers, or int8 values whose scales are in the graph."""
GROWTH = 128
"""Positions added at a time: 42 MB with the published Phi-2 in fp16, 21 MB in int8."""


class KVCache:
    """One key and one value buffer a layer, [rows, heads, capacity, head_dim], at most ``length`` positions filled.

    The decoder's graph writes new positions into these very buffers (past and present are bound to the same memory),
    so a step copies nothing; only growing does.
    """

    def __init__(self, contract: Contract, rows: int = 1) -> None:
        self._limit = contract.context
        self._shape = (rows, contract.heads, 0, contract.head_dim)
        self.length = 0
        """Number of filled positions, in the longest row."""
        self.buffers = [np.zeros(self._shape, contract.cache_dtype) for _ in range(2 * contract.layers)]
        """Keys and values alternately: layer i's are at 2i and 2i + 1."""

    @property
    def capacity(self) -> int:
        return int(self.buffers[0].shape[2])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def rewind(self, length: int) -> None:
        """Discard all but the first ``length`` positions; the next run overwrites them.

        Raises:
            ArgumentError: ``length`` is negative or larger than the number of positions.
        """
        if not 0 <= length <= self.length:
            raise ArgumentError(f"{self.length} positions cannot be rewound to {length}")
        self.length = length

    def shrink(self) -> None:
        """Release unused steps if they are at least half of the buffers; briefly, old and new buffers are both held."""
        capacity = min(-(-self.length // GROWTH) * GROWTH, self._limit)
        if 2 * capacity <= self.capacity:
            for i, old in enumerate(self.buffers):
                self.buffers[i] = self._grown(old, capacity)

    def reserve(self, positions: int) -> bool:
        """Make room for ``positions`` more; returns whether the buffers were replaced."""
        needed = self.length + positions
        if needed > self._limit:
            raise ArgumentError(f"{needed} positions do not fit in a context of {self._limit}")
        if needed <= self.capacity:
            return False
        capacity = min(-(-needed // GROWTH) * GROWTH, self._limit)
        for i, old in enumerate(self.buffers):
            self.buffers[i] = self._grown(old, capacity)
        return True

    def _grown(self, old: CacheArray, capacity: int) -> CacheArray:
        rows, heads, _, head_dim = self._shape
        new = np.zeros((rows, heads, capacity, head_dim), old.dtype)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new
