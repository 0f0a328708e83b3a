"""Ollama's API: ``/api/chat`` and ``/api/generate`` with their streams of JSON lines, and information on models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..bundle.manifest import Manifest
from ..language.logprobs import TokenLogprob
from ..options import AnswerOptions
from .asked import Answered, Asked, Conversation, Piece, boxes_of, logprob_documents
from .documents import LINES, line
from .fields import HARMLESS, Fields, read_fields
from .messages import Message, conversation, plain, read_images, read_messages
from .openai_chat import top_logprobs
from .refusal import RefusedError
from .schema import ANY_OBJECT, Schemas

VERSION = {"version": "0.13.0"}
"""The version of Ollama whose API is implemented; clients refuse versions without features that they need."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "think": (False,),
    "raw": (False,),
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
}
_KNOWN = {"model", "stream", "format", "options", "logprobs", "top_logprobs"}
_NEUTRAL_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "mirostat": (0,),
}
_OPTIONS = {"temperature", "top_p", "top_k", "repeat_penalty", "seed", "num_predict", "stop"}
_HARMLESS_OPTIONS = HARMLESS | {
    # About the machine: the bundle and the command's options say that here.
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "numa", "use_mmap", "use_mlock"),
    *("f16_kv", "vocab_only", "logits_all", "embedding_only"),
    # Finer points of the repetition penalty, which is over the whole answer here.
    *("num_keep", "repeat_last_n", "penalize_newline"),
}
_HARMLESS = HARMLESS | {"truncate", "shift"}
_UNLIMITED = (-1, -2)
"""Values of ``num_predict`` that mean no limit, and all the room in the context."""


def read_chat(body: bytes, manifest: Manifest, schemas: Schemas) -> OllamaReply | dict[str, object]:
    """Read the body of a request to ``/api/chat``.

    Args:
        body: The body, JSON.
        manifest: Manifest of the served model.
        schemas: JSON schemas for the served model.

    Returns:
        The request; for a request without messages, which clients send to load a model, the document that answers it.

    Raises:
        RefusedError: Status 400, or 404 for another model; names the field.
    """
    fields = read_fields(body)
    fields.check(_KNOWN | {"messages"}, _NEUTRAL, _HARMLESS)
    fields.model(manifest.name)
    if not (messages := fields.given.get("messages")):
        return {**_head(manifest), "message": {"role": "assistant", "content": ""}, **_loaded(fields)}
    said = conversation(read_messages(messages, "messages"), "messages", manifest.caption_question)
    return OllamaReply(_asked(fields, said, schemas), manifest, fields.flag("stream", True), is_chat=True)


def read_generate(body: bytes, manifest: Manifest, schemas: Schemas) -> OllamaReply | dict[str, object]:
    """Read the body of a request to ``/api/generate``; see :func:`read_chat`."""
    fields = read_fields(body)
    fields.check(_KNOWN | {"prompt", "images", "system"}, _NEUTRAL, _HARMLESS)
    fields.model(manifest.name)
    prompt, system = (plain(fields.text(name) or "", name) for name in ("prompt", "system"))
    images = read_images(fields.given.get("images"), "images")
    if not prompt.strip() and not images:
        return {**_head(manifest), "response": "", **_loaded(fields)}
    messages = [Message("system", [system], [], "system"), Message("user", [prompt], images, "prompt")]
    said = conversation(messages, "prompt", manifest.caption_question)
    return OllamaReply(_asked(fields, said, schemas), manifest, fields.flag("stream", True), is_chat=False)


def tags(manifest: Manifest, started: float) -> dict[str, object]:
    """The list of available models, which has one entry."""
    return {"models": [_model(manifest, started)]}


def running(manifest: Manifest, started: float) -> dict[str, object]:
    """The list of loaded models: the served one, which stays loaded as long as the server runs."""
    forever = datetime(9999, 12, 31, tzinfo=UTC).isoformat()
    more = {"expires_at": forever, "size_vram": 0, "context_length": manifest.contract.context}
    return {"models": [_model(manifest, started) | more]}


def show(body: bytes, manifest: Manifest, started: float) -> dict[str, object]:
    """The information on the model for ``/api/show``.

    Raises:
        RefusedError: Another model was requested.
    """
    fields = read_fields(body)
    name = fields.given.get("model", fields.given.get("name", manifest.name))
    Fields({"model": name}).model(manifest.name)
    template = manifest.template()
    family = manifest.family
    return {
        "modelfile": f"# a bundle of {manifest.exporter}\nFROM {manifest.name}\n",
        "parameters": "\n".join(f'stop "{stop}"' for stop in manifest.stop_strings),
        "template": f"{template.system}{template.user}{{{{ .Prompt }}}}{template.assistant}",
        "details": _details(manifest),
        "model_info": {
            "general.architecture": family,
            "general.basename": manifest.name,
            f"{family}.context_length": manifest.contract.context,
            f"{family}.embedding_length": manifest.contract.hidden_size,
            f"{family}.vision.image_size": manifest.image.image_size,
            f"{family}.vision.image_tokens": manifest.contract.image_tokens,
        },
        "capabilities": ["completion", "vision"],
        "modified_at": _time(started),
    }


@dataclass(frozen=True)
class OllamaReply:
    """The response of Ollama's API to one request.

    In addition to Ollama's fields, the last line has ``boxes`` and ``truncated_turns`` as in OpenAI's form.
    """

    asked: Asked
    manifest: Manifest
    streamed: bool
    is_chat: bool
    media_type = LINES

    def whole(self, results: Sequence[Answered]) -> dict[str, object]:
        """The document with the complete answer."""
        (result,) = results
        return self._part(result.answer.text, result.logprobs) | self._end(result)

    def opening(self) -> Iterator[bytes]:
        """No bytes: a stream has no opening."""
        yield from ()

    def piece(self, piece: Piece) -> Iterator[bytes]:
        """The line for one piece of text."""
        yield line(self._part(piece.text, piece.logprobs))

    def answered(self, result: Answered) -> Iterator[bytes]:
        """The last line of the stream."""
        yield line(self._part("", ()) | self._end(result))

    def closing(self, results: Sequence[Answered]) -> Iterator[bytes]:
        """No bytes: the answer's last line ends the stream."""
        yield from ()

    def refused(self, refusal: RefusedError) -> Iterator[bytes]:
        """A line with the error."""
        yield line({"error": str(refusal)})

    def _part(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        said: dict[str, object] = {"response": text}
        if self.is_chat:
            said = {"message": {"role": "assistant", "content": text}}
        document = {**_head(self.manifest), **said, "done": False}
        return document | ({"logprobs": logprob_documents(logprobs)} if logprobs else {})

    def _end(self, result: Answered) -> dict[str, object]:
        answer, timings = result.answer, result.answer.timings
        return {
            "done": True,
            "done_reason": answer.finish_reason,
            "total_duration": _nanoseconds(timings.time_to_first_token + timings.decode),
            "load_duration": 0,
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(timings.time_to_first_token),
            "eval_count": len(answer.token_ids),
            "eval_duration": _nanoseconds(timings.decode),
            "boxes": boxes_of(self.manifest, result),
            "truncated_turns": answer.truncated_turns,
        }


def _asked(fields: Fields, said: Conversation, schemas: Schemas) -> Asked:
    inner = fields.inner("options")
    inner.check(_OPTIONS, _NEUTRAL_OPTIONS, _HARMLESS_OPTIONS)
    wanted = fields.flag("logprobs") or bool(fields.given.get("top_logprobs"))
    options = AnswerOptions(
        max_new_tokens=inner.limit("num_predict", _UNLIMITED),
        sampling=inner.sampling("repeat_penalty"),
        stop=inner.stops(),
        top_logprobs=(top_logprobs(fields) or 0) if wanted else None,
        logits_processor=_format(fields, schemas),
    )
    return Asked(said, options)


def _format(fields: Fields, schemas: Schemas) -> Any:
    """The logits processor for JSON output, or None if the request does not ask for JSON."""
    chosen = fields.given.get("format", "")
    if chosen == "":
        return None
    if chosen == "json":
        return schemas.processor(ANY_OBJECT, "format")
    if not isinstance(chosen, dict):
        raise fields.wrong("format", '"json" or a JSON schema')
    return schemas.processor(chosen, "format")


def _head(manifest: Manifest) -> dict[str, object]:
    return {"model": manifest.name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _loaded(fields: Fields) -> dict[str, object]:
    unload = fields.given.get("keep_alive") == 0  # the server keeps it all the same
    return {"done": True, "done_reason": "unload" if unload else "load"}


def _model(manifest: Manifest, started: float) -> dict[str, object]:
    digest = hashlib.sha256("".join(sorted(record.sha256 for record in manifest.files)).encode()).hexdigest()
    name = f"{manifest.name}:latest"
    size = sum(record.size for record in manifest.files)
    known = {"name": name, "model": name, "modified_at": _time(started), "size": size, "digest": digest}
    return {**known, "details": _details(manifest)}


def _details(manifest: Manifest) -> dict[str, object]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": manifest.family,
        "families": [manifest.family],
        "parameter_size": "",
        "quantization_level": manifest.graphs["decoder"].precision,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
