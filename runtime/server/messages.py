"""OpenAI's ``messages`` as a conversation: its pictures, what was said, and the question to answer."""

from __future__ import annotations

import base64
import binascii
import re
import string
from dataclasses import dataclass

from .refusal import RefusedError, quoted

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)
_BLANKS = string.whitespace.encode()


@dataclass(frozen=True)
class Conversation:
    """What the model is shown."""

    images: tuple[bytes, ...]
    """Files as they were sent, in order: all of them come before the first question, as the model was trained."""
    turns: tuple[tuple[str, str], ...]
    """Earlier (question, answer) pairs, oldest first."""
    question: str


def read_messages(messages: object) -> Conversation:
    """Read a conversation.

    A system (or developer) message has no place of its own in the published prompt: its text is put on a line before
    the question that follows it. Several user messages in a row are one question, a line each, as are several texts
    in one message.

    Args:
        messages: The field ``messages`` of a request.

    Raises:
        RefusedError: It is not a list of messages that ends with a question, or holds something that the model cannot
            be shown; names the field.
    """
    if not isinstance(messages, list) or not messages:
        raise RefusedError(
            400, f"messages is {quoted(messages)}; expected a list of at least one message", param="messages"
        )
    images: list[bytes] = []
    turns: list[tuple[str, str]] = []
    said: list[str] = []  # since the last answer
    asked = False
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise RefusedError(400, f"{where} is {quoted(message)}; expected an object", param=where)
        role = message.get("role")
        texts, pictures = _content(message.get("content"), f"{where}.content")
        if role in ("system", "developer", "user"):
            asked |= role == "user"
            if pictures and role != "user":
                raise RefusedError(
                    400, f"{where} is of role {role} and holds an image; expected it of role user", param=where
                )
            said += texts
            images += pictures
        elif role == "assistant":
            if pictures or message.get("tool_calls"):
                raise RefusedError(400, f"{where} holds more than text, which this model never says", param=where)
            turns.append((_question(said, asked, where), "\n".join(texts)))
            said, asked = [], False
        else:
            expected = "system, developer, user or assistant"
            raise RefusedError(400, f"{where}.role is {quoted(role)}; expected {expected}", param=f"{where}.role")
    if not asked:
        raise RefusedError(400, "the last message is not of role user; expected a question to answer", param="messages")
    return Conversation(tuple(images), tuple(turns), _question(said, asked, f"messages[{len(messages) - 1}]"))


def image_bytes(url: object, where: str) -> bytes:
    """The picture in a ``data:`` URI.

    Args:
        url: Such as ``data:image/png;base64,iVBORw0...``.
        where: The field, for the message.

    Raises:
        RefusedError: It is none, or its base64 is damaged. Other addresses are never fetched.
    """
    if not isinstance(url, str):
        raise RefusedError(400, f"{where} is {quoted(url)}; expected a data: URI", param=where)
    start = _DATA_URI.match(url)
    if start is None:
        raise RefusedError(
            400,
            f"{where} begins with {quoted(url[:40])}; expected data:image/...;base64,... since this server works "
            "offline and fetches nothing: send the picture itself",
            param=where,
            code="invalid_image_url",
        )
    try:
        # Many programs break base64 into lines.
        return base64.b64decode(url[start.end() :].encode("ascii").translate(None, _BLANKS), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{where} is not valid base64 ({error}); encode the file once more"
        raise RefusedError(400, message, param=where, code="invalid_image_url") from error


def _content(content: object, where: str) -> tuple[list[str], list[bytes]]:
    """Texts and pictures of one message."""
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        raise RefusedError(400, f"{where} is {quoted(content)}; expected a text or a list of parts", param=where)
    texts: list[str] = []
    pictures: list[bytes] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            pictures.append(image_bytes(part["image_url"].get("url"), f"{here}.image_url.url"))
        else:
            expected = '{"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}'
            raise RefusedError(400, f"{here} is {quoted(part)}; expected {expected}", param=here)
    return texts, pictures


def _question(said: list[str], asked: bool, where: str) -> str:
    question = "\n".join(said)
    if not asked or not question.strip():
        found = "no text in the user message" if asked else "no user message"
        raise RefusedError(400, f"there is {found} that {where} could answer or ask; expected a question", param=where)
    return question
