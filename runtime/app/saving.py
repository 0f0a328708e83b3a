"""Conversations as files: Markdown for reading, JSON for opening again."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..boxes import Box, Region
from ..bundle.typed_json import from_json
from ..errors import BundleError, TinyGPTVError, line_of, reason_of
from ..system.files import write_atomically
from .turns import Said, Sheet

FORMAT, VERSION = "tinygptv conversation", 1
_MARKDOWN = (".md", ".markdown")


@dataclass(frozen=True)
class SavedRegion:
    """A :class:`Region` as it is saved."""

    phrase: str | None
    boxes: tuple[tuple[int, int, int, int], ...]
    """Left, top, right and bottom in pixels of the picture."""


@dataclass(frozen=True)
class SavedTurn:
    """The part of a :class:`Said` that is saved."""

    question: str
    task: str
    words: str
    answer: str
    note: str
    text: str
    regions: tuple[SavedRegion, ...]
    box: tuple[int, int, int, int] | None
    model: str
    answered: bool
    divider: str


@dataclass(frozen=True)
class SavedConversation:
    """A picture and its conversation. The file contains the picture itself, so that it can be opened anywhere."""

    format: str
    version: int
    name: str
    """Name of the picture."""
    path: str
    """Path of the picture's file at the time of saving; empty if there was none."""
    width: int
    height: int
    known_from: int
    turns: tuple[SavedTurn, ...]
    picture: str
    """Content of the picture's file, in base64."""

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.picture, validate=True)

    @property
    def said(self) -> list[Said]:
        return [_said(turn) for turn in self.turns]


def save_conversation(sheet: Sheet, path: Path) -> None:
    """Write a conversation: as Markdown if the file's name ends in its suffix, otherwise as JSON.

    Raises:
        TinyGPTVError: It cannot be written.
    """
    text = as_markdown(sheet) if path.suffix.lower() in _MARKDOWN else as_json(sheet)
    try:
        write_atomically(path, lambda file: file.write(text.encode("utf-8", "replace")))
    except OSError as error:
        raise TinyGPTVError(f"the conversation cannot be saved: {line_of(error)}") from error


def as_markdown(sheet: Sheet) -> str:
    """The conversation as Markdown: questions as quotations, answers as text, boxes as lists."""
    picture = sheet.picture
    parts = [f"# {picture.name}", f"{picture.width} by {picture.height} pixels. Answers of tinygptv."]
    model = ""
    for said in sheet.said:
        if said.divider:
            parts.append(f"*{said.divider}*")
        if said.model != model:
            model = said.model
            parts.append(f"Model: {model}")
        task = f"**{said.task}** " if said.task else ""
        parts.append("\n".join(f"> {line}" for line in f"{task}{said.words}".strip().split("\n")))
        parts.extend(filter(None, (said.answer,)))
        boxes = [(region.phrase or "box", box) for region in said.shown_regions for box in region.boxes]
        lines = (f"- {phrase}: {b.left}, {b.top} to {b.right}, {b.bottom} (pixels)" for phrase, b in boxes)
        parts.extend(filter(None, ("\n".join(lines), said.note and f"*({said.note})*")))
    return "\n\n".join(parts) + "\n"


def as_json(sheet: Sheet) -> str:
    """The conversation as JSON, with all that :func:`open_conversation` needs; the picture itself comes last."""
    picture = sheet.picture
    saved = SavedConversation(
        format=FORMAT,
        version=VERSION,
        name=picture.name,
        path=sheet.path,
        width=picture.width,
        height=picture.height,
        known_from=sheet.known_from,
        turns=tuple(_turn(said) for said in sheet.said),
        picture=base64.b64encode(picture.data).decode(),
    )
    return json.dumps(asdict(saved), indent=1, ensure_ascii=False) + "\n"


def open_conversation(path: Path) -> SavedConversation:
    """Read a conversation that was saved as JSON.

    Raises:
        TinyGPTVError: The file cannot be read, or is not a saved conversation; says what was found.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TinyGPTVError(f"{path} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise TinyGPTVError(f"{path} is not JSON ({reason_of(error)}); expected a conversation saved here") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise TinyGPTVError(f"{path} has format {found!r:.80}; expected {FORMAT!r}: a conversation saved here as JSON")
    if document.get("version") != VERSION:
        raise TinyGPTVError(
            f"{path} has version {document.get('version')!r:.80}; this version of tinygptv reads {VERSION}: update "
            "tinygptv"
        )
    try:
        saved: SavedConversation = from_json(SavedConversation, document, "it")
        _ = saved.data
    except (BundleError, ValueError) as error:
        what = str(error).partition("; copy the bundle")[0].partition(": copy the bundle")[0]
        raise TinyGPTVError(f"{path} is damaged ({what}); save the conversation again") from error
    _check(saved, path)
    return saved


def _check(saved: SavedConversation, path: Path) -> None:
    """Check that boxes are within the picture and indices of turns within the conversation."""
    boxes = [box for turn in saved.turns for region in turn.regions for box in region.boxes]
    boxes += [turn.box for turn in saved.turns if turn.box is not None]
    for box in boxes:
        left, top, right, bottom = box
        if not (0 <= left < right <= saved.width and 0 <= top < bottom <= saved.height):
            raise TinyGPTVError(
                f"{path} is damaged (box {box} is not within {saved.width} x {saved.height} pixels); "
                "save the conversation again"
            )
    if not 0 <= saved.known_from <= len(saved.turns):
        raise TinyGPTVError(f"{path} is damaged (known_from is {saved.known_from}); save the conversation again")


def _turn(said: Said) -> SavedTurn:
    return SavedTurn(
        question=said.question,
        task=said.task,
        words=said.words,
        answer=said.answer,
        note=said.note,
        text=said.text,
        regions=tuple(SavedRegion(region.phrase, region.boxes) for region in said.regions),
        box=said.box,
        model=said.model,
        answered=said.answered,
        divider=said.divider,
    )


def _said(turn: SavedTurn) -> Said:
    return Said(
        question=turn.question,
        task=turn.task,
        words=turn.words,
        answer=turn.answer,
        note=turn.note,
        text=turn.text,
        regions=tuple(Region(region.phrase, tuple(Box(*box) for box in region.boxes)) for region in turn.regions),
        box=None if turn.box is None else Box(*turn.box),
        model=turn.model,
        answered=turn.answered,
        divider=turn.divider,
    )
