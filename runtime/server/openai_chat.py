"""OpenAI's chat completions: reads requests, and writes answers in the form of the API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answer import Answer
from ..bundle.manifest import Manifest
from ..language.logprobs import TokenLogprob
from ..options import MOST_TOP_LOGPROBS, AnswerOptions
from .asked import Answered, Asked, Piece, boxes_of, logprob_documents
from .documents import EVENTS, sent_event
from .fields import Fields, read_fields
from .messages import conversation, read_messages
from .refusal import RefusedError
from .schema import ANY_OBJECT, Schemas

MOST_ANSWERS = 16
_KNOWN = {
    *("messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "n"),
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed", "logprobs", "top_logprobs", "response_format"),
}
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "mirostat": (0,),
}
"""Fields that this server does not support, with the values that have no effect."""


def read_chat(body: bytes, manifest: Manifest, schemas: Schemas) -> ChatReply:
    """Read the body of a request to ``/v1/chat/completions``.

    Answers are greedy and thus deterministic, unless ``temperature`` is given (OpenAI's default is 1); ``top_k`` and
    ``repetition_penalty`` are supported in addition to OpenAI's fields.

    Args:
        body: The body, JSON.
        manifest: Manifest of the served model.
        schemas: JSON schemas for the served model.

    Raises:
        RefusedError: Status 400, or 404 for another model; names the field.
    """
    fields = read_fields(body)
    fields.check(_KNOWN, NEUTRAL)
    fields.model(manifest.name)
    stream = fields.flag("stream")
    more = fields.inner("stream_options")
    if more.given and not stream:
        raise fields.wrong("stream_options", "stream to be true")
    count = fields.whole("n")
    if count is not None and not 1 <= count <= MOST_ANSWERS:
        raise fields.wrong("n", f"1 to {MOST_ANSWERS}")
    options = AnswerOptions(
        max_new_tokens=_limit(fields),
        sampling=fields.sampling(),
        stop=fields.stops(),
        top_logprobs=_top_logprobs(fields),
        logits_processor=_format(fields, schemas),
    )
    messages = read_messages(fields.given.get("messages"), "messages")
    asked = Asked(conversation(messages, "messages", manifest.caption_question), options, count or 1)
    return ChatReply(asked, manifest, stream, more.flag("include_usage"))


def top_logprobs(fields: Fields, name: str = "top_logprobs") -> int | None:
    """The number of most probable tokens to return at each position, or None.

    Raises:
        RefusedError: The number is out of range.
    """
    count = fields.whole(name)
    if count is not None and not 0 <= count <= MOST_TOP_LOGPROBS:
        raise fields.wrong(name, f"0 to {MOST_TOP_LOGPROBS}")
    return count


@dataclass(frozen=True)
class ChatReply:
    """The response of chat completions to one request; all documents of a stream have the same id and time.

    In addition to OpenAI's fields, ``message.boxes`` are in pixels, and ``truncated_turns`` is the number of oldest
    turns that were left out for lack of room in the context. In a stream, both come with the end of an answer.
    """

    asked: Asked
    manifest: Manifest
    """Manifest of the served model."""
    streamed: bool
    include_usage: bool
    """Whether a stream ends with the token counts."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    media_type = EVENTS

    def whole(self, results: Sequence[Answered]) -> dict[str, object]:
        """The document with all complete answers."""
        choices = [
            {
                "index": result.index,
                "message": {
                    "role": "assistant",
                    "content": result.answer.text,
                    "refusal": None,
                    "boxes": boxes_of(self.manifest, result),
                },
                "logprobs": self._logprobs(result.logprobs),
                "finish_reason": result.answer.finish_reason,
            }
            for result in results
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage(results),
            "truncated_turns": results[0].answer.truncated_turns,
        }

    def opening(self) -> Iterator[bytes]:
        """The first chunks of a stream."""
        for index in range(self.asked.count):
            yield sent_event(self._chunk(index, {"role": "assistant", "content": ""}))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """The chunk for one piece of text."""
        yield sent_event(self._chunk(piece.index, {"content": piece.text}, self._logprobs(piece.logprobs)))

    def answered(self, result: Answered) -> Iterator[bytes]:
        """The chunk that ends one answer."""
        delta = {"boxes": boxes_of(self.manifest, result)}
        chunk = self._chunk(result.index, delta, None, result.answer.finish_reason)
        yield sent_event({**chunk, "truncated_turns": result.answer.truncated_turns})

    def closing(self, results: Sequence[Answered]) -> Iterator[bytes]:
        """The token counts, if requested, and OpenAI's end marker."""
        if self.include_usage:
            yield sent_event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(results)})
        yield b"data: [DONE]\n\n"

    def refused(self, refusal: RefusedError) -> Iterator[bytes]:
        """A chunk with the error."""
        yield sent_event(refusal.document)

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: object = None, finish_reason: str | None = None
    ) -> dict[str, object]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> object:
        if self.asked.options.top_logprobs is None:
            return None
        return {"content": logprob_documents(logprobs), "refusal": None}

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.manifest.name}


def usage(results: Sequence[Answered]) -> dict[str, object]:
    """Token counts; an image counts as the number of its positions in the context."""
    first: Answer = results[0].answer
    completion = sum(len(result.answer.token_ids) for result in results)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


def _limit(fields: Fields) -> int | None:
    new, old = fields.limit("max_completion_tokens"), fields.limit("max_tokens")
    if None not in (new, old) and new != old:
        message = f"max_tokens is {old} and max_completion_tokens {new}, which are two names of one limit; give one"
        raise fields.refusal("max_tokens", message)
    return old if new is None else new


def _top_logprobs(fields: Fields) -> int | None:
    count, wanted = top_logprobs(fields), fields.flag("logprobs")
    if count and not wanted:
        raise fields.wrong("top_logprobs", "logprobs to be true")
    return (count or 0) if wanted else None


def _format(fields: Fields, schemas: Schemas) -> Any:
    """The logits processor for JSON output, or None if the request does not ask for JSON."""
    chosen = fields.inner("response_format")
    kind = chosen.given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return schemas.processor(ANY_OBJECT, "response_format")
    if kind != "json_schema":
        raise chosen.wrong("type", '"text", "json_object" or "json_schema"')
    inner = chosen.inner("json_schema")
    return schemas.processor(inner.given.get("schema", ANY_OBJECT), "response_format.json_schema.schema")
