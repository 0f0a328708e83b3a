"""The tasks that a model was trained on, with readable names for their tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A kind of question."""

    tag: str
    """The tag that is put before the question."""
    name: str
    hint: str
    """Placeholder text of the empty field."""
    alone: str | None = None
    """The question if nothing was typed; None if text is required."""


IDENTIFY = Task("[identify]", "What is in this box", "Draw a box on the picture with the mouse")
TASKS = (
    Task("[caption]", "Caption", "Describe the picture in one sentence", ""),
    Task("[vqa]", "Short answer", "Ask for a short answer …"),
    Task(
        "[grounding]",
        "Describe with boxes",
        "Describe the picture, with a box around each thing",
        "describe this image",
    ),
    Task("[detection]", "Find", "What to find, such as: triangle"),
    Task("[refer]", "Where is", "What to look for, such as: the red triangle"),
    IDENTIFY,
)
"""All named tasks, in the order in which they are offered."""


def offered(tags: Sequence[str]) -> list[Task]:
    """The tasks of a model; a tag without a name here is offered unchanged, at the end."""
    known = [task for task in TASKS if task.tag in tags]
    names = {task.tag for task in known}
    return known + [Task(tag, tag, "Ask about the picture …") for tag in tags if tag not in names]


def split(question: str, tags: Sequence[str]) -> tuple[Task | None, str]:
    """A question's task and the text after its tag; the task is None if the model has no such tag."""
    for task in offered(tags):
        if question.startswith(task.tag):
            return task, question[len(task.tag) :].strip()
    return None, question
