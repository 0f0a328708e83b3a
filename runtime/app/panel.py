"""The right side of the window: the conversation, the question, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from .conversation import Conversation
from .label import PlainLabel
from .question import QuestionField

_ERROR_LINES = 8
TASKS = {
    "[vqa]": "Short answer",
    "[caption]": "Caption",
    "[grounding]": "Describe, with boxes",
    "[detection]": "Find all …",
    "[refer]": "Where is …",
    "[identify]": "What is in the box",
}
"""What the tags mean that a question may begin with."""


class Panel(QWidget):
    """Where one talks with the model."""

    asked = Signal(str)
    """A question, its tag included."""
    stopped = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.conversation = Conversation()
        self.error = PlainLabel()
        self.error.setWordWrap(True)
        self.error.setMaximumHeight(_ERROR_LINES * self.fontMetrics().lineSpacing())
        self.error.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.error.setAccessibleName("Error")
        self.error.hide()
        self.task = QComboBox()
        self.task.setAccessibleName("Kind of question")
        self.task.setToolTip("What the model was trained to do; puts a tag before the question")
        self.question = QuestionField()
        self.ask_button = QPushButton("&Ask")
        self.ask_button.setToolTip("Enter")
        self.stop_button = QPushButton("Stop")
        self.stop_button.setToolTip("Esc")
        self.stop_button.setShortcut(QKeySequence("Esc"))
        self.question.entered.connect(self.ask_button.click)
        self.ask_button.clicked.connect(self._ask)
        self.stop_button.clicked.connect(self.stopped)
        self.question.textChanged.connect(self._update)
        self.task.currentIndexChanged.connect(self._update)
        row = QHBoxLayout()
        row.addWidget(self.task, 1)
        row.addWidget(self.ask_button)
        row.addWidget(self.stop_button)
        column = QVBoxLayout(self)
        column.addWidget(self.conversation, 1)
        column.addWidget(self.error)
        column.addWidget(self.question)
        column.addLayout(row)
        self._busy = True
        self.offer(())

    def offer(self, tags: Sequence[str]) -> None:
        """Let people choose among a model's tasks; where it has none, there is nothing to choose."""
        self.task.clear()
        self.task.addItem("Ask freely", "")
        for tag in tags:
            self.task.addItem(TASKS.get(tag, tag), tag)
        self.task.setEnabled(bool(tags))
        self._update()

    def show_busy(self, busy: bool) -> None:
        """Say whether the model works: one asks it only when it does not, and stops it only when it does."""
        self._busy = busy
        self._update()

    def complain(self, error: str) -> None:
        """Show what went wrong, below what else has."""
        shown = self.error.text()
        self.error.setText(f"{shown}\n⚠ {error}" if shown else f"⚠ {error}")
        self.error.show()

    def clear_errors(self) -> None:
        """Something else is done now."""
        self.error.setText("")
        self.error.hide()

    def put(self, question: str) -> None:
        """Fill in a question that stands for itself."""
        self.task.setCurrentIndex(0)
        self.question.put(question)

    def _question(self) -> str:
        return f"{self.task.currentData() or ''} {self.question.toPlainText().strip()}".strip()

    def _ask(self) -> None:
        question = self._question()
        self.question.clear()
        self.question.setFocus()  # the button is disabled now, and would give the focus to anybody
        self.asked.emit(question)

    def _update(self) -> None:
        self.ask_button.setEnabled(not self._busy and bool(self._question()))
        self.stop_button.setEnabled(self._busy)
