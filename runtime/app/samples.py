"""Sample pictures that the built-in demo understands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .assets import ASSETS


@dataclass(frozen=True)
class Sample:
    """A picture that is included in the program, and a question about it."""

    file: str
    title: str
    tag: str
    """Tag of the question's task; empty for a question without one."""
    words: str
    plain: str
    """The question for models without that task."""

    @property
    def path(self) -> Path:
        return ASSETS / self.file


SAMPLES = (
    Sample("red_triangle.png", "Find the triangle", "[detection]", "triangle", "where is the triangle?"),
    Sample("blue_circle.png", "What color is it?", "", "what color is the shape?", "what color is the shape?"),
    Sample("teal_rectangle.png", "Describe it with boxes", "[grounding]", "what do you see?", "what do you see?"),
)
