"""Answers as OpenAI's clients read them: one JSON document, or the data of server-sent events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..answer import Answer
from ..bundle.manifest import Manifest
from ..pointing import regions_of
from ..vision.encoded import EncodedImage


@dataclass(frozen=True)
class Reply:
    """Writes one completion; all documents of a stream have the same id and time."""

    manifest: Manifest
    """The model's."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def complete(self, answer: Answer, images: Sequence[EncodedImage]) -> dict[str, object]:
        """The document of an answer that was waited for.

        Besides OpenAI's fields, ``message.boxes`` are in pixels, and ``truncated_turns`` says how many of the oldest
        turns no longer fit in the context, so that the model did not see them.

        Args:
            answer: Not a cancelled one.
            images: Those of the conversation.
        """
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": answer.text,
                "refusal": None,
                "boxes": self._boxes(answer, images),
            },
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer),
            "truncated_turns": answer.truncated_turns,
        }

    def first(self) -> dict[str, object]:
        """The document that opens a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, object]:
        """The document of one more piece of text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer, images: Sequence[EncodedImage]) -> dict[str, object]:
        """The document that says how it ended; extensions as in :meth:`complete`, the boxes in ``delta``."""
        chunk = self._chunk({"boxes": self._boxes(answer, images)}, answer.finish_reason)
        return {**chunk, "truncated_turns": answer.truncated_turns}

    def counts(self, answer: Answer) -> dict[str, object]:
        """The document with the counts of tokens, where they were asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)}

    def _chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _boxes(self, answer: Answer, images: Sequence[EncodedImage]) -> list[dict[str, object]]:
        """What the answer points at: ``{"phrase": str or null, "boxes": [[left, top, right, bottom], ...]}`` each.

        In pixels of the upright picture. An answer about several pictures does not say which it points into: none then.
        """
        if len(images) != 1:
            return []
        regions = regions_of(self.manifest, answer.text, images[0].width, images[0].height)
        return [{"phrase": region.phrase, "boxes": [list(box) for box in region.boxes]} for region in regions]

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.manifest.name}


def usage(answer: Answer) -> dict[str, object]:
    """Counts of tokens; an image counts with the positions that it takes."""
    completion = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": answer.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }
