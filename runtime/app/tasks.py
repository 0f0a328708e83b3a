"""What a model was trained to do, by the names that people read in place of the tags that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A kind of question."""

    tag: str
    """Put before the question."""
    name: str
    hint: str
    """What to type, in the empty field."""
    alone: str | None = None
    """What is asked where nothing was typed; None where words are needed."""


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
"""In the order in which they are offered."""


def offered(tags: Sequence[str]) -> list[Task]:
    """The tasks of a model; a tag without a name here is offered as it is, last."""
    known = [task for task in TASKS if task.tag in tags]
    names = {task.tag for task in known}
    return known + [Task(tag, tag, "Ask about the picture …") for tag in tags if tag not in names]


def split(question: str, tags: Sequence[str]) -> tuple[Task | None, str]:
    """A question's task and the words after its tag; no task where the model has no such tag."""
    for task in offered(tags):
        if question.startswith(task.tag):
            return task, question[len(task.tag) :].strip()
    return None, question
