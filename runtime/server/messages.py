"""Lists of messages as a conversation: pictures, earlier turns, and the question to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ArgumentError
from ..language.prompt import check_plain
from .asked import Conversation, Picture
from .pictures import base64_bytes, image_bytes
from .refusal import RefusedError, quoted

_TEXTS = ("text", "input_text", "output_text")
_PICTURES = ("image_url", "input_image")


@dataclass(frozen=True)
class Message:
    """One message, in the form common to all APIs."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    texts: list[str]
    pictures: list[Picture]
    where: str
    """The request's field that contained it."""


def read_messages(messages: object, field: str) -> list[Message]:
    """Read messages, each with ``role`` and ``content``, or Ollama's ``images``.

    Content is a text, null, or a list of parts, in the forms of OpenAI's chat completions or of its Responses.

    Args:
        messages: The list of messages.
        field: Its name in the request.

    Raises:
        RefusedError: It is not a list of messages, or contains something that is not supported; names the field.
    """
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, f"{field} is {quoted(messages)}; expected a list of at least one message", param=field)
    return [_message(message, f"{field}[{number}]") for number, message in enumerate(messages)]


def conversation(messages: Sequence[Message], field: str, caption_question: str) -> Conversation:
    """Put messages in the order in which the model is shown them.

    System messages at the beginning are the conversation's ``system``; later ones go on a line before the question that
    follows. Several user messages in a row are one question, a line each, as are several texts in one message; likewise
    several assistant messages. An assistant message that comes first answers an empty question.

    Args:
        messages: Messages from :func:`read_messages`.
        field: The request's field that contained them.
        caption_question: Question for a picture that comes without text.

    Raises:
        RefusedError: They do not end with a question; names the field.
    """
    images: list[Picture] = []
    turns: list[tuple[str, str]] = []
    system: list[str] = []
    said: list[str] = []  # since the last answer
    asked = pictured = False

    def question() -> str:
        return "\n".join(said) or (caption_question if pictured else "")

    for message in messages:
        texts = [text for text in message.texts if text.strip()]
        if message.role == "system":
            (said if asked or turns else system).extend(texts)
        elif message.role == "user":
            asked, pictured = True, pictured or bool(message.pictures)
            said += texts
            images += message.pictures
        else:
            answer = "\n".join(texts)
            if turns and not asked and not said:
                turns[-1] = (turns[-1][0], "\n".join(filter(None, (turns[-1][1], answer))))
            elif asked or said or answer:
                turns.append((question(), answer))
            said, asked, pictured = [], False, False
    if not asked:
        raise RefusedError(400, f"the last of {field} is not of role user; expected a question to answer", param=field)
    if not question():
        where = messages[-1].where
        raise RefusedError(400, f"{where} has no text and no image; expected a question to answer", param=where)
    return Conversation(field, tuple(images), tuple(turns), question(), "\n".join(system) or None)


def plain(text: str, where: str) -> str:
    """Check that a text can be put into a prompt, and return it.

    Raises:
        RefusedError: The text cannot be put into a prompt.
    """
    try:
        check_plain(where, text)
    except ArgumentError as error:
        raise RefusedError(400, str(error), param=where) from error
    return text


def read_images(images: object, where: str) -> list[Picture]:
    """Ollama's ``images``: a list of files in base64, or ``data:`` URIs.

    Raises:
        RefusedError: The value has another form; names the field.
    """
    if images is None:
        return []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RefusedError(400, f"{where} is {quoted(images)}; expected a list of files in base64", param=where)
    pictures = []
    for number, image in enumerate(images):
        here = f"{where}[{number}]"
        data = image_bytes(image, here) if ":" in image[:80] else base64_bytes(image, here)
        pictures.append(Picture(data, here))
    return pictures


def _message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise RefusedError(400, f"{where} is {quoted(message)}; expected an object", param=where)
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        expected = "system, developer, user or assistant"
        raise RefusedError(400, f"{where}.role is {quoted(role)}; expected {expected}", param=f"{where}.role")
    texts, pictures = _content(message.get("content"), f"{where}.content")
    pictures += read_images(message.get("images"), f"{where}.images")
    if role == "assistant" and (pictures or message.get("tool_calls") or message.get("function_call")):
        raise RefusedError(400, f"{where} holds more than text, which this model never says", param=where)
    if role in ("system", "developer") and pictures:
        message = f"{where} is of role {role} and holds an image; expected it of role user"
        raise RefusedError(400, message, param=where)
    return Message("system" if role == "developer" else role, texts, pictures, where)


def _content(content: object, where: str) -> tuple[list[str], list[Picture]]:
    """The texts and pictures of one message."""
    if content is None:
        return [], []
    if isinstance(content, str):
        return [plain(content, where)], []
    if not isinstance(content, list):
        raise RefusedError(400, f"{where} is {quoted(content)}; expected a text or a list of parts", param=where)
    texts: list[str] = []
    pictures: list[Picture] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXTS and isinstance(part.get("text"), str):
            texts.append(plain(part["text"], f"{here}.text"))
        elif kind in _PICTURES and part.get("image_url") is not None:
            url, field = part["image_url"], f"{here}.image_url"
            if isinstance(url, dict):
                url, field = url.get("url"), f"{field}.url"
            pictures.append(Picture(image_bytes(url, field), field))
        else:
            expected = '{"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}'
            if isinstance(kind, str) and kind.startswith("input_"):
                expected = '{"type": "input_text", "text": ...} or {"type": "input_image", "image_url": ...}'
            raise RefusedError(400, f"{here} is {quoted(part)}; expected {expected}", param=here)
    return texts, pictures
