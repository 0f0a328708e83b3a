"""What a conversation that goes on need not compute again, without a trace of it in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from ..language.prefix_cache import Fed, Position, PrefixCache


class ConversationMemory:
    """Keeps the keys and values of the last conversation's prompt: 0.33 MB a token at the published sizes.

    Of the prompt only, not of the answer to it: in int8, a token that is fed alone, as an answer's are, is rounded
    other than among several, as in the next prompt. The same request would be answered one way by whoever wrote the
    answer before it, and another way if somebody else asked in between. For one thread.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        """
        Args:
            prefixes: What questions about the same images leave, and where a conversation begins.
        """
        self._prefixes = prefixes
        self._fed: Fed | None = None
        self._shared = 0
        self._prompt = 0

    def take(self, wanted: Sequence[Position]) -> Fed | None:
        """What agrees with a prompt, of the last one if it is about the same images; two positions are left to feed,
        for one would be fed alone.
        """
        fed, self._fed = self._fed, None
        self._prompt = len(wanted)
        if fed is not None and _pictures(fed.positions) == _pictures(wanted):
            fed.rewind(fed.agreement(wanted[:-1]))
            return fed
        if fed is not None:
            self._prefixes.put(fed, self._shared)
        return self._prefixes.take(wanted)

    def put(self, fed: Fed, shared: int) -> None:
        """Keep what was fed of the prompt that was taken last."""
        fed.rewind(min(self._prompt, len(fed.positions)))
        self._fed, self._shared = fed, shared


def _pictures(positions: Sequence[Position]) -> list[Position]:
    return [position for position in positions if isinstance(position, tuple)]
