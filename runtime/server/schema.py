"""JSON output: before each token is sampled, llguidance masks the tokens that a JSON schema does not allow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..bundle.manifest import Manifest
from ..language.detokenize import Detokenizer
from ..language.sampling import LogitsProcessor
from .refusal import RefusedError, advice, quoted

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT: dict[str, object] = {"type": "object"}
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space of all documents: a small model could write it without end if it were free to."""


class Schemas:
    """Creates logits processors from JSON schemas, for one model."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest) -> None:
        """
        Args:
            tokenizer: The model's.
            manifest: The model's.
        """
        self._tokenizer = tokenizer
        self._manifest = manifest

    def processor(self, schema: object, where: str) -> Callable[[], LogitsProcessor]:
        """A function that creates the logits processor for a schema, for :class:`.AnswerOptions`.

        Args:
            schema: A JSON schema.
            where: The request's field that contained it.

        Raises:
            RefusedError: It is not a schema or uses an unsupported feature, or llguidance is not installed.
        """
        if find_spec("llguidance") is None:
            message = f"{where} needs llguidance on the server; {advice('json')}, or leave it out"
            raise RefusedError(501, message, param=where, code="not_installed")
        if not isinstance(schema, dict):
            raise RefusedError(400, f"{where} is {quoted(schema)}; expected a JSON schema", param=where)
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_LAYOUT)
        except ValueError as error:
            raise RefusedError(400, f"{where} is not a JSON schema ({error!s:.200})", param=where) from error
        matcher = LLMatcher(self._vocabulary.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            message = f"{where} is not supported ({reason:.200}); expected a simpler JSON schema"
            raise RefusedError(400, message, param=where, code="invalid_schema")
        return lambda: _Follower(matcher.deep_copy(), self._vocabulary, where)

    @cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(self._tokenizer, self._manifest)


class _Vocabulary:
    """The properties of a model's tokens."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest) -> None:
        from llguidance import LLTokenizer

        self.size = manifest.contract.vocab_size
        self.end_of_text = list(manifest.eos_token_ids)
        self.tokenizer: LLTokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=self.size, eos_token=self.end_of_text)
        text = Detokenizer(tokenizer).token_bytes
        self.texts = [text(token) for token in range(self.size)]
        self.stops = [stop.encode() for stop in manifest.stop_strings]
        lasts = {stop[-1:] for stop in self.stops}
        self.stopping = [n for n, text in enumerate(self.texts) if any(last in text for last in lasts)]
        """Tokens that may complete one of the model's stop strings."""
        complete = [n for n in self.stopping if any(stop in self.texts[n] for stop in self.stops)]
        self.endings = np.array(self.end_of_text + complete, np.intp)
        """Tokens with which the model ends its answers."""
        single = {text: number for number, text in reversed(list(enumerate(self.texts)))}
        self.quote, self.comma = single[b'"'], single[b","]
        self.closers = [single[b"}"], single[b"]"]]


class _Follower:
    """Masks the tokens of one answer that its schema does not allow.

    A model that has nothing to add wants to end its answer. While the schema does not allow that, the probability of
    the end is given to the closest allowed token: the end of the current string, object or list.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary, where: str) -> None:
        self._matcher = matcher
        self._where = where
        self._vocabulary = vocabulary
        self._bits = np.zeros((1, (vocabulary.size + 31) // 32), np.int32)
        self._text = b""

    def __call__(self, token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        known = self._vocabulary
        if token_ids:
            self._matcher.consume_token(token_ids[-1])
            self._text += known.texts[token_ids[-1]]
        if self._matcher.is_stopped():
            allowed = np.zeros(known.size, np.bool_)
            allowed[known.end_of_text] = True
        else:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            allowed = np.unpackbits(self._bits.view(np.uint8)[0], count=known.size, bitorder="little").view(np.bool_)
        self._rule_out_stops(allowed)
        if self._matcher.is_error() or not allowed.any():
            reason = self._matcher.get_error() or "all that it allows next would end the answer"
            message = f"{self._where} cannot be satisfied any further ({reason:.200}); expected another JSON schema"
            raise RefusedError(400, message, param=self._where, code="invalid_schema")
        scores = np.where(allowed, logits, np.float32(-np.inf))
        if (nearest := self._nearest_end(allowed)) is not None:
            scores[nearest] = max(scores[nearest], logits[known.endings].max())
        return scores

    def _rule_out_stops(self, allowed: NDArray[np.bool_]) -> None:
        """Mask tokens that would complete one of the model's stop strings, which would cut the document off."""
        known = self._vocabulary
        for stop in known.stops:
            tail = self._text[-len(stop) + 1 :] if len(stop) > 1 else b""
            for token in known.stopping:
                if allowed[token] and stop in tail + known.texts[token]:
                    allowed[token] = False

    def _nearest_end(self, allowed: NDArray[np.bool_]) -> int | None:
        known = self._vocabulary
        open_closers = [token for token in known.closers if allowed[token]]
        if ends := [token for token in known.end_of_text if allowed[token]]:
            return ends[0]
        if allowed[known.quote] and allowed[known.comma] and open_closers:
            return known.quote  # only in a string may any of these come next
        return open_closers[0] if open_closers else None
