"""Typed access to the fields of a request's JSON; errors name the field."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import ArgumentError, reason_of
from ..language.sampling import Sampling
from .refusal import RefusedError, quoted

MAX_STOPS = 4
"""Maximum number of stop strings, as in OpenAI's API."""
HARMLESS = {
    # About accounts, bills, logs, and how long things are kept.
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("keep_alive", "ttl", "cache_prompt", "cache_salt", "id_slot", "slot_id", "n_keep", "priority", "request_id"),
    *("chat_id", "session_id", "id", "title", "timeout", "usage", "return_progress", "timings_per_token"),
    # About what this model never does: tools, thinking, speech.
    *("parallel_tool_calls", "max_tool_calls", "reasoning", "reasoning_effort", "include_reasoning", "verbosity"),
    *("prediction", "draft_model", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    *("skip_special_tokens", "spaces_between_special_tokens", "background_tasks", "features", "variables"),
    # Finer ways to leave out improbable tokens than top_p and top_k.
    *("min_p", "typical_p", "tfs_z", "top_a", "mirostat_tau", "mirostat_eta", "dynatemp_range"),
}
"""Fields that some clients always send; they are accepted with any value, as they do not matter for the answer."""


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object. Null is the same as a missing field."""

    given: Mapping[str, object]
    prefix: str = ""
    """Prefix of the fields' names in messages, such as ``options.``."""

    @classmethod
    def of(cls, document: object, prefix: str = "") -> Self:
        """The fields of an object.

        Raises:
            RefusedError: The document is not an object.
        """
        if not isinstance(document, dict):
            name = prefix.removesuffix(".") or "the body"
            code = None if prefix else "invalid_json"
            message = f"{name} is {quoted(document)}; expected one JSON object"
            raise RefusedError(400, message, param=name if prefix else None, code=code)
        return cls({name: value for name, value in document.items() if value is not None}, prefix)

    def check(
        self, known: Collection[str], neutral: Mapping[str, tuple[object, ...]], harmless: Collection[str] = HARMLESS
    ) -> None:
        """Check that every field is supported.

        Args:
            known: Fields that are read.
            neutral: Fields that this server does not support, with the values that have no effect.
            harmless: Fields that are ignored.

        Raises:
            RefusedError: A field is not supported.
        """
        for name, value in self.given.items():
            if name in neutral and not any(_same(value, each) for each in neutral[name]):
                values = " or ".join(map(json.dumps, neutral[name]))
                found = f"{self.prefix}{name} is {quoted(value)}, which this server does not support"
                raise self.refusal(name, f"{found}; leave it out (or give {values})", "unsupported_value")
            if name not in neutral and name not in known and name not in harmless:
                message = f"{quoted(self.prefix + name)} is not a field that this server knows; leave it out"
                raise self.refusal(name[:60], message, "unsupported_parameter")

    def refusal(self, name: str, message: str, code: str | None = None) -> RefusedError:
        """The refusal for an error in a field."""
        return RefusedError(400, message, param=self.prefix + name, code=code)

    def wrong(self, name: str, expected: str) -> RefusedError:
        """The refusal for a field of the wrong type or value."""
        return self.refusal(name, f"{self.prefix}{name} is {quoted(self.given.get(name))}; expected {expected}")

    def model(self, name: str) -> None:
        """Check that the requested model is the served one, with or without Ollama's tag."""
        given = self.given.get("model", name)
        if given not in (name, f"{name}:latest"):
            message = f"model is {quoted(given)}; this server has {quoted(name)}"
            raise RefusedError(404, message, param="model", code="model_not_found")

    def inner(self, name: str) -> Fields:
        """The fields of a nested object."""
        return Fields.of(self.given.get(name, {}), f"{self.prefix}{name}.")

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.given.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.given.get(name)
        if not isinstance(value, str | None):
            raise self.wrong(name, "a text")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        try:
            return float(value)
        except OverflowError as error:
            raise self.refusal(name, f"{self.prefix}{name} is {quoted(value)}, which is too large") from error

    def whole(self, name: str) -> int | None:
        """An integer."""
        value = self.given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(name, "a whole number")
        return value

    def limit(self, name: str, none: Sequence[int] = (-1,)) -> int | None:
        """Maximum number of tokens; None for the values in ``none``, which mean no limit."""
        value = self.whole(name)
        if value is not None and value not in none and value < 1:
            raise self.wrong(name, "at least 1")
        return None if value in none else value

    def stops(self) -> tuple[str, ...]:
        """``stop``: a string, or a list of strings."""
        value = self.given.get("stop", [])
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
            raise self.wrong("stop", f"a text or up to {MAX_STOPS} of them, none empty")
        return tuple(stops)

    def sampling(self, penalty: str = "repetition_penalty") -> Sampling:
        """How tokens are sampled; greedily, unless there is a temperature. A seed or ``top_k`` of -1 means none.

        Args:
            penalty: The API's name of the repetition penalty.
        """
        seed, top_k = self.whole("seed"), self.whole("top_k")
        try:
            return Sampling(
                temperature=self.number("temperature", 0.0),
                top_p=self.number("top_p", 1.0),
                top_k=0 if top_k is None or top_k == -1 else top_k,
                repetition_penalty=self.number(penalty, 1.0),
                seed=None if seed == -1 else seed,
            )
        except ArgumentError as error:
            name, _, rest = str(error).partition(" ")
            name = penalty if name == "repetition_penalty" else name
            raise self.refusal(name, f"{self.prefix}{name} {rest}") from error


def read_fields(body: bytes) -> Fields:
    """Parse the fields of a request.

    Raises:
        RefusedError: The body is not one JSON object.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits is a ValueError that speaks of Python's settings.
        reason = "a number is too long" if type(error) is ValueError else reason_of(error)
        raise RefusedError(
            400, f"the body is not JSON ({reason}); expected one JSON object", code="invalid_json"
        ) from error
    return Fields.of(document)


def _same(value: object, neutral: object) -> bool:
    """Whether two JSON values are equal; unlike in Python, true is not equal to 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
