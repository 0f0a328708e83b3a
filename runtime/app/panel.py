"""The side of the window with the conversation and the field where the next question is typed."""

from __future__ import annotations

from PySide6.QtWidgets import QFrame, QVBoxLayout, QWidget

from . import theme
from .composer import Composer
from .conversation import Conversation
from .label import PlainLabel
from .start_page import DemoNote


class Panel(QFrame):
    """A card with the conversation and the question field."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self.setMinimumWidth(280)
        self.note = DemoNote("answer")
        self._hint = PlainLabel(role="note", wraps=True)
        hint = QWidget()
        inner = QVBoxLayout(hint)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(2 * theme.SPACE)
        inner.addWidget(self._hint)
        inner.addWidget(self.note)
        self.conversation = Conversation(hint)
        self.composer = Composer()
        column = QVBoxLayout(self)
        column.setContentsMargins(1, 1, 1, 1)
        column.setSpacing(0)
        column.addWidget(self.conversation, 1)
        column.addWidget(self.composer)

    def explain(self, *, demo: bool, tasks: bool, boxes: bool) -> None:
        """Show how to ask this model, until a question is asked."""
        parts = ["Ask anything about the picture."]
        if tasks:
            parts.append("The buttons below are what the model was trained to do.")
        if boxes:
            parts.append("Draw a box on the picture to ask what is in it.")
        self._hint.setText(" ".join(parts))
        self.note.setVisible(demo)
