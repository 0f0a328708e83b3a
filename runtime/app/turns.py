"""The questions and answers about a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from PySide6.QtGui import QImage

from ..boxes import Box, Region


@dataclass(eq=False)
class Said:
    """A question and its answer so far."""

    question: str
    """The question in the form that the model reads."""
    task: str = ""
    """Name of the question's task; empty if it has none."""
    words: str = ""
    """The question without its task, for display."""
    answer: str = ""
    """The answer without boxes, for display."""
    note: str = ""
    """A remark about the answer, such as that it was stopped."""
    text: str = ""
    """The answer as the model generated it."""
    regions: tuple[Region, ...] = ()
    """The regions in the answer, in pixels of the picture."""
    box: Box | None = None
    """The box in the question."""
    model: str = ""
    """Name of the bundle."""
    answered: bool = False
    """Whether the turn is included in the model's context for later questions."""
    divider: str = ""
    """A remark shown before the turn, such as that another model answers from here on."""

    @property
    def shown_regions(self) -> tuple[Region, ...]:
        """The regions to draw on the picture: the question's box, labelled with the answer, or the answer's regions."""
        if self.box is not None and not self.regions:
            return (Region(self.answer or None, (self.box,)),)
        return self.regions


@dataclass(frozen=True)
class Picture:
    """An open picture file."""

    number: int
    name: str
    data: bytes
    """The file's content; PNG for a pasted picture."""
    width: int
    """Width of the upright picture, in pixels."""
    height: int


@dataclass(eq=False)
class Sheet:
    """A picture and the conversation about it."""

    picture: Picture
    image: QImage
    """The displayed image: the picture, or a smaller copy of it."""
    path: str = ""
    """Path of the file, if the picture was opened from one."""
    said: list[Said] = field(default_factory=list)
    known_from: int = 0
    """Index of the first question that the loaded model was asked."""
    shown: Said | None = None
    """The turn whose boxes are on the picture."""
    seen_seconds: float | None = None
    """Seconds that the model took to encode the picture; None before that."""

    def known(self, before: Said | None = None) -> list[tuple[str, str]]:
        """The (question, answer) pairs in the model's context, up to the given turn."""
        end = self.said.index(before) if before in self.said else len(self.said)
        return [(said.question, said.text) for said in self.said[self.known_from : end] if said.answered]
