"""Where a question is typed: tasks to choose from, some lines of text, and one button that asks or stops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from PySide6.QtCore import QEvent, QMimeData, QSize, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QFrame, QHBoxLayout, QPlainTextEdit, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from . import theme
from .flow import FlowLayout
from .label import PlainLabel
from .sources import has_picture
from .tasks import Task, offered

_LINES = (1, 6)
"""Minimum and maximum height of the field, in lines."""
_ASK_FREELY = "Ask about the picture …"


class QuestionField(QPlainTextEdit):
    """A text field: Enter asks, Shift+Enter begins a new line, and a picture can be pasted."""

    entered = Signal()
    """Enter was pressed."""
    given = Signal(QMimeData)
    """Data that contains a picture was pasted or dropped."""
    focused = Signal(bool)
    """The field got the focus (True) or lost it (False)."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "bare")
        self.setPlaceholderText(_ASK_FREELY)
        self.setAccessibleName("Question")
        self.setTabChangesFocus(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.document().setDocumentMargin(2)
        self.document().documentLayout().documentSizeChanged.connect(self.updateGeometry)

    def put(self, text: str) -> None:
        """Replace the text (this can be undone) and move the cursor to its end."""
        self.selectAll()
        self.insertPlainText(text)
        self.setFocus()

    def sizeHint(self) -> QSize:  # noqa: N802
        self.ensurePolished()
        least, most = _LINES
        lines = max(least, min(most, round(self.document().size().height())))
        return QSize(120, lines * self.fontMetrics().lineSpacing() + 6)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(80, self.sizeHint().height())

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        shifted = event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not shifted:
            self.entered.emit()
        else:
            super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        super().focusInEvent(event)
        self.focused.emit(True)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        super().focusOutEvent(event)
        self.focused.emit(False)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:  # noqa: N802
        return _is_picture(source) or super().canInsertFromMimeData(source)

    def insertFromMimeData(self, source: QMimeData) -> None:  # noqa: N802
        if _is_picture(source):
            self.given.emit(source)
        else:
            super().insertFromMimeData(source)


class Composer(QWidget):
    """Composes a question from an optional task and the typed text."""

    asked = Signal(str)
    """The question to ask, including its tag."""
    stopped = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.question = QuestionField()
        self.button = QPushButton("Ask")
        self.button.setProperty("role", "accent")
        self.chips: list[QPushButton] = []
        self._tasks: list[Task] = []
        self._chips = QWidget()
        self._chips.setAccessibleName("Kind of question")
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self._chips.setSizePolicy(policy)
        self._chips.setLayout(FlowLayout(6))
        self._frame = QFrame()
        self._frame.setProperty("role", "field")
        self._note = PlainLabel(role="note")
        self._ready = self._answering = self._busy = False
        self._arrange()
        self.question.entered.connect(self._enter)
        self.question.textChanged.connect(self._update)
        self.question.focused.connect(self._show_focus)
        self.button.clicked.connect(self._press)
        QShortcut(QKeySequence("Esc"), self, self._escape)
        self._update()

    @property
    def task(self) -> Task | None:
        """The chosen task, or None."""
        return next((task for task, chip in zip(self._tasks, self.chips, strict=True) if chip.isChecked()), None)

    def offer(self, tags: Sequence[str]) -> None:
        """Offer the tasks of a model; the list is hidden if the model has none."""
        layout = self._chips.layout()
        assert layout is not None
        for chip in self.chips:
            layout.removeWidget(chip)
            chip.hide()
            chip.deleteLater()
        self._tasks = offered(tags)
        self.chips = [self._chip(task) for task in self._tasks]
        for chip in self.chips:
            layout.addWidget(chip)
        self._chips.setVisible(bool(self.chips))
        order = [*self.chips, self.question, self.button]
        for one, next_one in pairwise(order):
            QWidget.setTabOrder(one, next_one)
        self._update()

    def show_state(self, *, ready: bool, answering: bool, busy: bool, note: str) -> None:
        """Show the state of the model.

        Args:
            ready: A question can be asked, now or once the picture is encoded.
            answering: A question is being answered; until that ends, the only action is to stop it.
            busy: Something that can be stopped is running.
            note: Text to show beside the button.
        """
        self._ready, self._answering, self._busy = ready, answering, busy
        self._note.setText(note)
        self._update()

    def put(self, question: str) -> None:
        """Fill in a complete question."""
        self.choose(None)
        self.question.put(question)

    def choose(self, tag: str | None) -> None:
        """Choose the task that has this tag, or no task if None."""
        for task, chip in zip(self._tasks, self.chips, strict=True):
            chip.setChecked(task.tag == tag)
        self._update()

    def _chip(self, task: Task) -> QPushButton:
        chip = QPushButton(task.name.replace("&", "&&"))
        chip.setProperty("role", "chip")
        chip.setCheckable(True)
        chip.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        chip.setCursor(Qt.CursorShape.PointingHandCursor)
        chip.setToolTip(task.hint)
        chip.clicked.connect(lambda checked: self._choose_by_hand(task, checked))
        return chip

    def _choose_by_hand(self, task: Task, checked: bool) -> None:
        self.choose(task.tag if checked else None)
        self.question.setFocus()
        if checked and task.alone is not None and not self.question.toPlainText().strip():
            self._enter()

    def _question(self) -> str:
        words, task = self.question.toPlainText().strip(), self.task
        if task is None:
            return words
        if not words and task.alone is None:
            return ""
        return f"{task.tag} {words or task.alone}".strip()

    @property
    def _asks(self) -> bool:
        """Whether the button asks; otherwise it stops."""
        return not self._answering and not (self._busy and not self._question())

    def _enter(self) -> None:
        if self._asks:
            self.button.click()

    def _escape(self) -> None:
        if self._busy:
            self.stopped.emit()

    def _press(self) -> None:
        if not self._asks:
            self.stopped.emit()
            return
        question = self._question()
        self.question.clear()
        self.choose(None)
        self.question.setFocus()
        self.asked.emit(question)

    def _update(self) -> None:
        asks, task = self._asks, self.task
        self.button.setText("Ask" if asks else "Stop")
        self.button.setToolTip("Enter" if asks else "Esc")
        self.button.setAccessibleName(self.button.text())
        self.button.setEnabled(bool(self._question()) and self._ready if asks else True)
        self.question.setPlaceholderText(task.hint if task else _ASK_FREELY)

    def _show_focus(self, focused: bool) -> None:
        self._frame.setProperty("focused", "true" if focused else "false")
        self._frame.style().polish(self._frame)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self.question.updateGeometry()

    def _arrange(self) -> None:
        self.button.setMinimumWidth(84)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE)
        row.addWidget(self._note, 1)
        row.addWidget(self.button)
        inner = QVBoxLayout(self._frame)
        inner.setContentsMargins(12, 10, 10, 10)
        inner.setSpacing(6)
        inner.addWidget(self.question)
        inner.addLayout(row)
        column = QVBoxLayout(self)
        column.setContentsMargins(2 * theme.SPACE, theme.SPACE, 2 * theme.SPACE, 2 * theme.SPACE)
        column.setSpacing(theme.SPACE)
        column.addWidget(self._chips)
        column.addWidget(self._frame)


def _is_picture(source: QMimeData) -> bool:
    """Whether the data should be read as a picture: spreadsheets and word processors copy one along with the text."""
    return has_picture(source) and (source.hasUrls() or not source.hasText())
