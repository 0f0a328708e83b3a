"""A request's JSON as what the model is asked; whatever would change an answer and cannot is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ArgumentError
from ..language.sampling import Sampling
from ..options import AnswerOptions
from .messages import Conversation, read_messages
from .refusal import RefusedError, quoted

MAX_STOPS = 4
"""As OpenAI's own."""
_KNOWN = {
    *("messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"),
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed"),
}
_IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",
}
"""They are about accounts, bills and logs: the answer is the same without them."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What this server cannot do, and the values that ask for none of it."""


@dataclass(frozen=True)
class CompletionRequest:
    """What is asked, and how the answer is wanted."""

    conversation: Conversation
    options: AnswerOptions
    stream: bool
    include_usage: bool
    """Whether a stream ends with the counts of tokens."""


def read_request(body: bytes, model: str) -> CompletionRequest:
    """Read the body of a request to ``/v1/chat/completions``.

    Answers are greedy, the same each time, unless ``temperature`` is given (OpenAI's default is 1); ``top_k`` and
    ``repetition_penalty`` are understood besides OpenAI's fields. Null is the same as leaving a field out.

    Args:
        body: JSON.
        model: The name of the model that is served.

    Raises:
        RefusedError: Status 400, or 404 for another model; names the field.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        # Not the error's own text for what is no UTF-8: it may quote all of the body.
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise RefusedError(
            400, f"the body is not JSON ({reason}); expected one JSON object", code="invalid_json"
        ) from error
    if not isinstance(document, dict):
        raise RefusedError(400, f"the body is {quoted(document)}; expected one JSON object", code="invalid_json")
    given = {name: value for name, value in document.items() if value is not None and name not in _IGNORED}
    for name, value in given.items():
        if name in _NEUTRAL and not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            neutral = " or ".join(map(json.dumps, _NEUTRAL[name]))
            message = f"{name} is {quoted(value)}, which this server cannot do; leave it out (or give {neutral})"
            raise RefusedError(400, message, param=name, code="unsupported_value")
        if name not in _NEUTRAL and name not in _KNOWN:
            message = f"{quoted(name)} is no field that this server knows; leave it out"
            raise RefusedError(400, message, param=name[:60], code="unsupported_parameter")
    if given.get("model", model) != model:
        message = f"model is {quoted(given['model'])}; this server has {model!r}"
        raise RefusedError(404, message, param="model", code="model_not_found")
    stream = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        message = f"stream_options is {quoted(options)}; expected an object, and stream to be true"
        raise RefusedError(400, message, param="stream_options")
    try:
        sampling = Sampling(
            temperature=_number(given, "temperature", 0.0),
            top_p=_number(given, "top_p", 1.0),
            top_k=_whole(given, "top_k") or 0,
            repetition_penalty=_number(given, "repetition_penalty", 1.0),
            seed=_whole(given, "seed"),
        )
    except ArgumentError as error:
        raise RefusedError(400, str(error), param=str(error).split()[0]) from error
    return CompletionRequest(
        conversation=read_messages(given.get("messages")),
        options=AnswerOptions(max_new_tokens=_max_tokens(given), sampling=sampling, stop=_stop(given.get("stop", []))),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
    )


def _same(value: object, neutral: object) -> bool:
    """Whether two values of JSON are equal: true is not 1 there."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _flag(given: Mapping[str, object], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(400, f"{name} is {quoted(value)}; expected true or false", param=name)
    return value


def _number(given: Mapping[str, object], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(400, f"{name} is {quoted(value)}; expected a number", param=name)
    try:
        return float(value)
    except OverflowError as error:
        raise RefusedError(400, f"{name} is {quoted(value)}, which is too large", param=name) from error


def _whole(given: Mapping[str, object], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RefusedError(400, f"{name} is {quoted(value)}; expected a whole number", param=name)
    return value


def _max_tokens(given: Mapping[str, object]) -> int | None:
    new, old = _whole(given, "max_completion_tokens"), _whole(given, "max_tokens")
    value = old if new is None else new
    if value is not None and value < 1:
        name = "max_tokens" if new is None else "max_completion_tokens"
        raise RefusedError(400, f"{name} is {value}; expected at least 1", param=name)
    if None not in (new, old) and new != old:
        message = f"max_tokens is {old} and max_completion_tokens {new}, which are two names of one limit; give one"
        raise RefusedError(400, message, param="max_tokens")
    return value


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        message = f"stop is {quoted(value)}; expected a text or up to {MAX_STOPS} of them, none empty"
        raise RefusedError(400, message, param="stop")
    return tuple(stops)
