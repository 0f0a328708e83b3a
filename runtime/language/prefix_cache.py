"""Keys and values of earlier answers, reused for prompts that begin in the same way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .kv_cache import KVCache

Position = int | tuple[str, int]
"""The content of a position: a token id, or an image's key and the index of its embedding."""
IDLE_CACHES, IDLE_BYTES = 2, 256_000_000
"""Maximum number of caches kept for later questions, each cut after its images, and their maximum total size; the
last one is always kept. With Phi-2 in fp16, a prompt through one image of TinyGPT-V takes 42 MB, through one of 729
tokens 252 MB."""


def positions_of(segments: Sequence[Sequence[int]], images: Sequence[tuple[str, int]]) -> list[Position]:
    """The positions of a prompt.

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
    """A KV cache, with the content of each of its positions."""

    cache: KVCache
    positions: list[Position]
    prompt_length: int = 0
    """Number of positions that belong to the prompt; the others belong to the answer."""
    shared_length: int = 0
    """Number of first positions that every question about the same images begins with."""

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
        """Discard all but the first positions."""
        self.cache.rewind(length)
        del self.positions[length:]

    def shrink(self) -> None:
        """Discard all but the shared positions, and release their memory."""
        self.rewind(min(self.shared_length, len(self.positions)))
        self.cache.shrink()


class CacheStore(Protocol):
    """Supplies an answer with a KV cache that may contain the beginning of its prompt, and takes its cache back."""

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """A sequence that this prompt begins with and that is not in use; None if there is none."""

    def put(self, sequence: CachedSequence) -> None:
        """Store a sequence that is no longer written to."""


class PrefixCache:
    """Caches of a few complete answers, for other questions about the same images; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[CachedSequence] = []

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """The longest sequence that is completely a prefix of the prompt; others stay for their own images."""
        with self._lock:
            fitting = [cached for cached in self._idle if cached.common_prefix(wanted) == len(cached.positions)]
            if not fitting:
                return None
            best = max(fitting, key=lambda cached: len(cached.positions))
            self._idle = [cached for cached in self._idle if cached is not best]
            return best

    def put(self, sequence: CachedSequence) -> None:
        """Store the shared positions; the oldest sequences are removed to make room."""
        sequence.shrink()
        if sequence.positions:
            with self._lock:
                idle = [sequence, *self._idle][:IDLE_CACHES]
                while len(idle) > 1 and sum(one.cache.nbytes for one in idle) > IDLE_BYTES:
                    idle.pop()
                self._idle = idle


class ConversationCache:
    """The prompt of the last conversation, for its next question: 0.33 MB a token at the published sizes.

    Only the prompt is kept, not its answer: in int8, a token computed alone, as in decoding, is rounded differently
    from one computed among several, as in the next prompt. Otherwise the answer to a request would depend on whether
    this cache or a new prefill computed the earlier answer's positions. Thread-safe.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        """
        Args:
            prefixes: Cache for the beginning of a conversation; it also receives the images of a replaced one.
        """
        self._prefixes = prefixes
        self._lock = threading.Lock()
        self._last: CachedSequence | None = None

    def take(self, wanted: Sequence[Position]) -> CachedSequence | None:
        """The last conversation, as far as it matches a prompt about the same images; otherwise the images only.

        At least two positions remain to be computed, since a single one would be computed alone.
        """
        last = self._replace(None)
        if last is not None and _images(last.positions) == _images(wanted):
            last.rewind(last.common_prefix(wanted[:-1]))
            return last
        if last is not None:
            self._prefixes.put(last)
        return self._prefixes.take(wanted)

    def put(self, sequence: CachedSequence) -> None:
        """Store the prompt's positions; replaces the previous conversation."""
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
