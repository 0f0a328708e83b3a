"""Incremental decoding of token ids to text: complete characters only, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders

from ..errors import ArgumentError


class Detokenizer:
    """Decodes one answer's token ids piece by piece.

    The pieces of all :meth:`push` calls and :meth:`finish` joined are
    ``tokenizer.decode(token_ids, skip_special_tokens=True)`` without ``prefix``, cut before the stop string that is
    completed first (when one character completes several, before the longest). A token costs time in proportion to its
    own length, not to the answer's.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = (), prefix: str = "") -> None:
        """
        Args:
            tokenizer: A byte-level BPE tokenizer, as bundles hold.
            stop_strings: Texts that end the answer and are not part of it.
            prefix: Taken off where the decoded text begins with it; stop strings are looked for behind it.

        Raises:
            TypeError: ``stop_strings`` is one string, or holds something else than strings.
            ArgumentError: A stop string is empty, or the tokenizer is not byte-level.
        """
        if isinstance(stop_strings, str) or not all(isinstance(stop, str) for stop in stop_strings):
            raise TypeError(f"stop_strings is {stop_strings!r}; expected a sequence of strings")
        if "" in stop_strings:
            raise ArgumentError("stop_strings holds an empty string, which would end every answer before it began")
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise ArgumentError(f"the tokenizer's decoder is {tokenizer.decoder!r}; expected ByteLevel")
        self._tokenizer = tokenizer
        self._special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
        self._stop_strings = tuple(stop_strings)
        self._longest_prefix = max((len(stop) - 1 for stop in stop_strings), default=0)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._prefix = prefix  # empty once it was taken off, or the text begins otherwise
        self._held = ""  # decoded, but possibly the beginning of the prefix or of a stop string
        self._stopped = False
        self._finished = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; from then on every piece is empty."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now final, which may be empty.

        Special tokens have no text, and neither have ids beyond the vocabulary (Phi-2's output is wider than that).

        Args:
            token_id: From 0 up.

        Raises:
            RuntimeError: :meth:`finish` was called before.
        """
        if self._finished:
            raise RuntimeError("this Detokenizer is finished; make a new one for another answer")
        return self._advance(self._utf8.decode(self.token_bytes(token_id)))

    def token_bytes(self, token_id: int) -> bytes:
        """The text of one token in UTF-8, perhaps a part of a character; empty for tokens without text."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._special:
            return b""
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # an added token, which stands for itself
            return token.encode()

    def finish(self) -> str:
        """Return the text that was still held back; a character left incomplete becomes U+FFFD."""
        self._finished = True
        text = self._advance(self._utf8.decode(b"", final=True), final=True) + self._held
        self._held = ""
        return text

    def _advance(self, text: str, final: bool = False) -> str:
        """Append decoded text and return what can no longer become part of the prefix or of a stop string."""
        if self._stopped:
            return ""
        text = self._held + text
        if not final and len(text) < len(self._prefix) and self._prefix.startswith(text):
            self._held = text
            return ""
        text = text.removeprefix(self._prefix)
        self._prefix = ""
        found = [(start + len(stop), start) for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if found:
            self._stopped = True
            self._held = ""
            return text[: min(found)[1]]
        safe = len(text) - self._open_length(text)
        self._held = text[safe:]
        return text[:safe]

    def _open_length(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string without completing it."""
        for length in range(min(self._longest_prefix, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop_strings):
                return length
        return 0


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()
