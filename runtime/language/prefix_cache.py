"""Keys and values that earlier answers left: what of a prompt need not be computed again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .kv_cache import KVCache

Position = int | tuple[str, int]
"""What a position of a sequence is: a token id, or an image's key and the number of its embedding."""
IDLE_CACHES, IDLE_BYTES = 2, 256_000_000
"""How many caches are kept for later questions, each cut behind its images, and how large they may be together; the
last one is always kept. With Phi-2 in fp16, a prompt through one image of TinyGPT-V takes 42 MB, through one of 729
tokens 252 MB."""


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
class CachedSequence:
    """A KV cache, and the positions that it holds keys and values of: as many as it is long."""

    cache: KVCache
    positions: list[Position]
    prompt_length: int = 0
    """How many of the positions are the prompt's; the others are the answer's."""
    shared_length: int = 0
    """How many of the prompt's first positions every question about the same images begins with."""

    def common_prefix(self, wanted: Sequence[Position]) -> int:
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

    def shrink(self) -> None:
        """Forget all but the shared positions, and give back their room."""
        self.rewind(min(self.shared_length, len(self.positions)))
        self.cache.shrink()


class CacheStore(Protocol):
    """Where an answer takes a KV cache from that may hold its prompt's beginning, and where it puts its own."""

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """A sequence that begins as this prompt does, and that is not in use; None if there is none."""

    def put(self, sequence: CachedSequence) -> None:
        """Keep a sequence that is no longer being written."""


class PrefixCache:
    """A few caches of complete answers, for other questions about the same images; for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[CachedSequence] = []

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """The longest sequence all of which a prompt begins with: other images would cost it its own."""
        with self._lock:
            fitting = [cached for cached in self._idle if cached.common_prefix(wanted) == len(cached.positions)]
            if not fitting:
                return None
            best = max(fitting, key=lambda cached: len(cached.positions))
            self._idle = [cached for cached in self._idle if cached is not best]
            return best

    def put(self, sequence: CachedSequence) -> None:
        """Keep the shared positions; the sequences that were put first make room."""
        sequence.shrink()
        if sequence.positions:
            with self._lock:
                idle = [sequence, *self._idle][:IDLE_CACHES]
                while len(idle) > 1 and sum(one.cache.nbytes for one in idle) > IDLE_BYTES:
                    idle.pop()
                self._idle = idle


class ConversationCache:
    """The prompt of the last conversation, for its next question: 0.33 MB a token at the published sizes.

    Of the prompt only, not of the answer to it: in int8, a token that is computed alone, as an answer's are, is rounded
    other than among several, as in the next prompt. The same request would be answered one way by whoever computed the
    answer before it, and another way if somebody else asked in between. For many threads.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        """
        Args:
            prefixes: Where a conversation begins, and what another one's images go back to.
        """
        self._prefixes = prefixes
        self._lock = threading.Lock()
        self._last: CachedSequence | None = None

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """The last conversation's, as far as a prompt about the same images agrees with it; else the images' only.

        At least two positions are left to compute, for one would be computed alone.
        """
        last = self._replace(None)
        if last is not None and _images(last.positions) == _images(wanted):
            last.rewind(last.common_prefix(wanted[:-1]))
            return last
        if last is not None:
            self._prefixes.put(last)
        return self._prefixes.take(wanted)

    def put(self, sequence: CachedSequence) -> None:
        """Keep the prompt's positions; the conversation that was kept makes room."""
        sequence.rewind(min(sequence.prompt_length, len(sequence.positions)))
        displaced = self._replace(sequence)
        if displaced is not None:
            self._prefixes.put(displaced)

    def _replace(self, sequence: CachedSequence | None) -> CachedSequence | None:
        with self._lock:
            last, self._last = self._last, sequence
        return last


def _images(positions: Sequence[Position]) -> list[Position]:
    return [position for position in positions if isinstance(position, tuple)]
