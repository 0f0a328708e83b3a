"""Keys and values that are still there from before: what of a prompt need not be computed again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .kv_cache import KVCache

Position = int | tuple[str, int]
"""What was fed there: a token id, or an image's key and the number of its embedding."""
IDLE_CACHES = 2
"""Kept for later questions, each cut behind its images: 42 MB each at the published sizes, in fp16."""


def positions_of(segments: Sequence[Sequence[int]], images: Sequence[tuple[str, int]]) -> list[Position]:
    """A prompt position by position.

    Args:
        segments: Token ids, one list more than there are images.
        images: The key and the number of embeddings of the image between each two of them.
    """
    positions: list[Position] = list(segments[0])
    for (key, count), segment in zip(images, segments[1:], strict=True):
        positions += [(key, number) for number in range(count)]
        positions += segment
    return positions


@dataclass
class Fed:
    """A KV cache, and what it was fed: as many positions as it is long."""

    cache: KVCache
    positions: list[Position]

    def agreement(self, wanted: Sequence[Position]) -> int:
        """How many positions from the first on are those of a prompt; less than all of it, since the last one's logits
        are wanted.
        """
        count = 0
        for ours, theirs in zip(self.positions, wanted[:-1], strict=False):
            if ours != theirs:
                break
            count += 1
        return count

    def rewind(self, length: int) -> None:
        """Forget all but the first positions."""
        self.cache.rewind(length)
        del self.positions[length:]

    def keep(self, length: int) -> None:
        """Forget all but the first positions at most, and give back their room."""
        self.rewind(min(length, len(self.positions)))
        self.cache.shrink()


class Memory(Protocol):
    """Where an answer gets a cache from that may hold its beginning, and where it leaves its own."""

    def take(self, wanted: Sequence[Position]) -> Fed | None:
        """A cache for this prompt, not lent to anybody else; None if nothing of it was fed before."""

    def put(self, fed: Fed, shared: int) -> None:
        """Leave a cache whose first ``shared`` positions other questions about the same images begin with."""


class PrefixCache:
    """A few caches of answers that are whole, for other questions about the same images; for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Fed] = []

    def take(self, wanted: Sequence[Position]) -> Fed | None:
        """The longest cache all of which a prompt begins with: images that are others would cost it its own."""
        with self._lock:
            fitting = [fed for fed in self._idle if fed.agreement(wanted) == len(fed.positions)]
            if not fitting:
                return None
            best = max(fitting, key=lambda fed: len(fed.positions))
            self._idle = [fed for fed in self._idle if fed is not best]
            return best

    def put(self, fed: Fed, shared: int) -> None:
        """Keep a cache up to ``shared``; the one that was left first makes room."""
        fed.keep(shared)
        if fed.positions:
            with self._lock:
                self._idle = [fed, *self._idle][:IDLE_CACHES]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._idle = []
