"""What was said about a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from PySide6.QtGui import QImage

from ..boxes import Box, Region


@dataclass(eq=False)
class Said:
    """A question, and what there is of its answer."""

    question: str
    """As the model reads it."""
    task: str = ""
    """Its task's name, if it has one."""
    words: str = ""
    """The rest of it, for people."""
    answer: str = ""
    """For people: without boxes."""
    note: str = ""
    """What is to be known of the answer besides, such as that it was stopped."""
    text: str = ""
    """The answer as the model wrote it."""
    regions: tuple[Region, ...] = ()
    """What the answer points at, in pixels of the picture."""
    box: Box | None = None
    """What the question points at."""
    model: str = ""
    """The bundle's name."""
    answered: bool = False
    """Whether the model knows of it when it is asked again."""
    divider: str = ""
    """What is to be known before it, such as that another model answers from here on."""

    @property
    def shown_regions(self) -> tuple[Region, ...]:
        """What is drawn on the picture: the box that was asked about, with the answer as its label, or the answer's."""
        if self.box is not None and not self.regions:
            return (Region(self.answer or None, (self.box,)),)
        return self.regions


@dataclass(frozen=True)
class Picture:
    """A picture file that is open."""

    number: int
    name: str
    data: bytes
    """The file's content: PNG where it was pasted."""
    width: int
    """Of the upright picture, in pixels."""
    height: int


@dataclass(eq=False)
class Sheet:
    """A picture and the conversation about it."""

    picture: Picture
    image: QImage
    """What is shown: the picture, or a smaller copy of it."""
    path: str = ""
    """The file, if it was opened from one."""
    said: list[Said] = field(default_factory=list)
    known_from: int = 0
    """The first question that the model that is loaded was asked itself."""
    shown: Said | None = None
    """Whose boxes are on the picture."""
    seen_seconds: float | None = None
    """How long the model took to look at it; None before it has."""

    def known(self, before: Said | None = None) -> list[tuple[str, str]]:
        """The (question, answer) pairs that the model knows of, up to one of them."""
        end = self.said.index(before) if before in self.said else len(self.said)
        return [(said.question, said.text) for said in self.said[self.known_from : end] if said.answered]
