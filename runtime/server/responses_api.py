"""OpenAI's Responses API: reads requests, and writes answers in the form of the API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..bundle.manifest import Manifest
from ..language.logprobs import TokenLogprob
from ..options import AnswerOptions
from .asked import Answered, Asked, Piece, boxes_of, logprob_documents
from .documents import EVENTS, sent_event
from .fields import Fields, read_fields
from .messages import Message, conversation, plain, read_messages
from .openai_chat import top_logprobs
from .refusal import RefusedError, quoted
from .schema import ANY_OBJECT, Schemas

_LOGPROBS = "message.output_text.logprobs"
_KNOWN = {
    *("input", "instructions", "model", "stream", "stream_options", "max_output_tokens", "stop", "text", "include"),
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed", "top_logprobs"),
}
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "background": (False,),
    "truncation": ("auto", "disabled"),
}
"""Fields that this server does not support, with the values that have no effect. For any ``truncation``, old turns
are left out if they do not fit in the context, and a question that does not fit is refused."""


def read_responses(body: bytes, manifest: Manifest, schemas: Schemas) -> ResponsesReply:
    """Read the body of a request to ``/v1/responses``.

    Args:
        body: The body, JSON.
        manifest: Manifest of the served model.
        schemas: JSON schemas for the served model.

    Raises:
        RefusedError: Status 400, or 404 for another model; names the field.
    """
    fields = read_fields(body)
    fields.check(_KNOWN, _NEUTRAL)
    fields.model(manifest.name)
    text = fields.inner("text")
    text.check({"format"}, {})
    include = fields.given.get("include", [])
    if not isinstance(include, list):
        raise fields.wrong("include", "a list")
    count = top_logprobs(fields)
    options = AnswerOptions(
        max_new_tokens=fields.limit("max_output_tokens"),
        sampling=fields.sampling(),
        stop=fields.stops(),
        top_logprobs=(count or 0) if count or _LOGPROBS in include else None,
        logits_processor=_format(text, schemas),
    )
    given = fields.given.get("input")
    instructions = fields.text("instructions")
    messages = [Message("system", [plain(instructions or "", "instructions")], [], "instructions")]
    if isinstance(given, str):
        messages.append(Message("user", [plain(given, "input")], [], "input"))
    else:
        messages += read_messages(_without_reasoning(given), "input")
    said = conversation(messages, "input", manifest.caption_question)
    echoed = {
        "instructions": instructions,
        "max_output_tokens": options.max_new_tokens,
        "metadata": fields.given.get("metadata", {}),
        "temperature": options.sampling.temperature,
        "text": {"format": text.given.get("format", {"type": "text"})},
        "top_p": options.sampling.top_p,
        "truncation": fields.given.get("truncation", "auto"),
    }
    return ResponsesReply(Asked(said, options), manifest, fields.flag("stream"), echoed)


@dataclass(frozen=True)
class ResponsesReply:
    """The response of the Responses API to one request; all events of a stream belong to the same response.

    In addition to OpenAI's fields, the response has ``boxes`` and ``truncated_turns`` as in chat completions.
    """

    asked: Asked
    manifest: Manifest
    streamed: bool
    echoed: dict[str, object]
    """Fields of the request that the response repeats."""
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    message_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    numbers: Iterator[int] = field(default_factory=count)
    """Sequence numbers of a stream's events."""
    media_type = EVENTS

    def whole(self, results: Sequence[Answered]) -> dict[str, object]:
        """The complete response."""
        (result,) = results
        answer = result.answer
        cut = answer.finish_reason == "length"
        return {
            **self._response("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(result)],
            "usage": {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.cached_tokens},
                "output_tokens": len(answer.token_ids),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.prompt_tokens + len(answer.token_ids),
            },
            "boxes": boxes_of(self.manifest, result),
            "truncated_turns": answer.truncated_turns,
        }

    def opening(self) -> Iterator[bytes]:
        """The events before the first piece of text."""
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = {"id": self.message_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=self._part("", ()))

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """The event for one piece of text."""
        logprobs = logprob_documents(piece.logprobs)
        yield self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=logprobs)

    def answered(self, result: Answered) -> Iterator[bytes]:
        """The events that end text, part, message and response."""
        text, logprobs = result.answer.text, logprob_documents(result.logprobs)
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=logprobs)
        yield self._event("response.content_part.done", **self._place(), part=self._part(text, result.logprobs))
        yield self._event("response.output_item.done", output_index=0, item=self._message(result))
        whole = self.whole([result])
        yield self._event(f"response.{whole['status']}", response=whole)

    def closing(self, results: Sequence[Answered]) -> Iterator[bytes]:
        """No bytes: the answer's last event ends the stream."""
        yield from ()

    def refused(self, refusal: RefusedError) -> Iterator[bytes]:
        """An error event."""
        yield self._event("error", code=refusal.code, message=str(refusal), param=refusal.param)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sent_event({"type": kind, "sequence_number": next(self.numbers), **fields}, kind)

    def _place(self) -> dict[str, object]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _part(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprob_documents(logprobs)}

    def _message(self, result: Answered) -> dict[str, object]:
        status = "incomplete" if result.answer.finish_reason == "length" else "completed"
        content = [self._part(result.answer.text, result.logprobs)]
        return {"id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.manifest.name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "tool_choice": "none",
            "tools": [],
            "usage": None,
            **self.echoed,
        }


def _without_reasoning(items: object) -> object:
    """The items of an ``input`` that are messages; other models' reasoning is dropped."""
    if not isinstance(items, list):
        return items
    for number, item in enumerate(items):
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind not in ("message", "reasoning"):
            where = f"input[{number}]"
            raise RefusedError(400, f"{where}.type is {quoted(kind)}; expected message", param=f"{where}.type")
    return [item for item in items if not (isinstance(item, dict) and item.get("type") == "reasoning")]


def _format(text: Fields, schemas: Schemas) -> Any:
    """The logits processor for JSON output, or None if the request does not ask for JSON."""
    chosen = text.inner("format")
    kind = chosen.given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return schemas.processor(ANY_OBJECT, "text.format")
    if kind != "json_schema":
        raise chosen.wrong("type", '"text", "json_object" or "json_schema"')
    return schemas.processor(chosen.given.get("schema", ANY_OBJECT), "text.format.schema")
