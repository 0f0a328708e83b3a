"""One question and its answer as bubbles: selectable text with its buttons."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from .fitted_text import FittedText
from .icons import IconButton
from .label import PlainLabel
from .turns import Said

_BUTTONS = 64
"""Width in pixels that is kept free beside a bubble for its buttons."""
_COPIED_MILLISECONDS = 1500


class _Bubble(QFrame):
    """Text on a coloured background."""

    def __init__(self, role: str, name: str) -> None:
        super().__init__()
        self.setProperty("role", role)
        self.text = FittedText(name)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(14, 7, 14, 10)
        self.column.setSpacing(4)
        self.column.addWidget(self.text)


class TurnView(QWidget):
    """A question on the right, its answer on the left; buttons appear under the mouse and with the focus."""

    again = Signal()
    """The user wants another answer to the same question."""
    boxes = Signal()
    """The user wants to see the boxes of this answer on the picture."""

    def __init__(self, said: Said) -> None:
        super().__init__()
        self.said = said
        self._question, self._answer = _Bubble("question", "Question"), _Bubble("answer", "Answer")
        if said.task:
            self._question.column.insertWidget(0, _tag(said.task), 0, Qt.AlignmentFlag.AlignLeft)
        self._question.text.put(said.words)
        self._question.text.setVisible(bool(said.words))
        self._copy_question = IconButton("copy", "Copy the question")
        self._copy_answer = IconButton("copy", "Copy the answer")
        self._again = IconButton("again", "Regenerate: sample another answer")
        self._boxes = QPushButton()
        self._boxes.setProperty("role", "link")
        self._boxes.setToolTip("Show them on the picture")
        self._note = PlainLabel(role="note", wraps=True)
        self._newest = True
        self._doing = "…"
        self._copy_question.clicked.connect(lambda: self._copy(self._copy_question, said.question))
        self._copy_answer.clicked.connect(lambda: self._copy(self._copy_answer, said.answer or said.text))
        self._again.clicked.connect(self.again)
        self._boxes.clicked.connect(self.boxes)
        self._arrange()
        self.show_answer()

    @property
    def text(self) -> str:
        """All text of the turn, one part a line."""
        shown = (self.said.task, self.said.words, self._answer.text.toPlainText(), self._boxes.text(), self.said.note)
        return "\n".join(filter(None, shown))

    @property
    def answer_text(self) -> FittedText:
        """The widget with the answer, whose text can be selected."""
        return self._answer.text

    def show_answer(self, doing: str | None = None) -> None:
        """Show the answer so far; while it is empty, show ``doing``, or the previous ``doing`` if None."""
        said = self.said
        count = sum(len(region.boxes) for region in said.regions)
        self._doing = self._doing if doing is None else doing
        self._over = bool(said.note or said.answered)
        self._answer.text.put(said.answer or ("" if self._over else self._doing))
        self._answer.setVisible(bool(said.answer) or not self._over)
        self._answer.text.setEnabled(bool(said.answer))
        self._boxes.setText(f"{count} box{'es' if count > 1 else ''} on the picture" if count else "")
        self._boxes.setVisible(count > 0)
        self._note.setText(said.note)
        self._note.setVisible(bool(said.note))
        self._show_buttons()

    def show_newest(self, newest: bool) -> None:
        """Set whether this is the newest answer: only that can be regenerated, and its buttons are always visible."""
        self._newest = newest
        self._show_buttons()

    def enterEvent(self, event: QEvent) -> None:  # noqa: N802
        self._show_buttons()

    def leaveEvent(self, event: QEvent) -> None:  # noqa: N802
        self._show_buttons()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        for bubble in (self._question, self._answer):
            bubble.setMaximumWidth(max(80, event.size().width() - _BUTTONS))

    def _show_buttons(self) -> None:
        over = self.underMouse()
        self._copy_question.be_quiet(not over)
        self._copy_answer.setVisible(bool(self.said.answer or self.said.text))
        self._copy_answer.be_quiet(not (over or self._newest))
        self._again.setVisible(self._newest and self._over)

    def _copy(self, button: IconButton, text: str) -> None:
        QGuiApplication.clipboard().setText(text)
        button.show_icon("check")
        QTimer.singleShot(_COPIED_MILLISECONDS, button, lambda: button.show_icon("copy"))

    def _arrange(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        if self.said.divider:
            divider = PlainLabel(self.said.divider, role="note", wraps=True)
            divider.setAlignment(Qt.AlignmentFlag.AlignCenter)
            column.addWidget(divider)
        question = _row()
        question.addStretch(1)
        question.addWidget(self._copy_question, 0, Qt.AlignmentFlag.AlignTop)
        question.addWidget(self._question)
        answer = _row()
        answer.addWidget(self._answer)
        buttons = _row()
        buttons.setContentsMargins(0, 0, 0, 5)  # level with the last line
        for button in (self._copy_answer, self._again):
            buttons.addWidget(button, 0, Qt.AlignmentFlag.AlignBottom)
        answer.addLayout(buttons)
        answer.addStretch(1)
        for row in (question, answer):
            column.addLayout(row)
        column.addWidget(self._boxes, 0, Qt.AlignmentFlag.AlignLeft)
        column.addWidget(self._note)


def _tag(text: str) -> QLabel:
    tag = QLabel(text)
    tag.setTextFormat(Qt.TextFormat.PlainText)
    tag.setProperty("role", "tag")
    return tag


def _row() -> QHBoxLayout:
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(4)
    return row
