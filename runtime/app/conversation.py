"""What was said: questions and answers, the last one as it comes."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QEvent
from PySide6.QtGui import QFont, QPalette, QTextBlockFormat, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QTextBrowser

_FAINT = 0.65
"""Opacity of notes: less would be hard to read."""


@dataclass
class Said:
    """A question, and what there is of its answer."""

    question: str
    answer: str = ""
    note: str = ""
    """What is to be known of the answer besides, such as that it was stopped."""


class Conversation(QTextBrowser):
    """Read-only; can be reached, scrolled and copied from with the keyboard."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Said] = []
        self._answer_begins = self._answer_ends = 0
        self.setAccessibleName("Conversation")
        self.setTabChangesFocus(True)
        self.setOpenLinks(False)

    @property
    def unanswered(self) -> bool:
        """Whether there is nothing of the last question's answer."""
        return bool(self.said) and not (self.said[-1].answer or self.said[-1].note)

    def ask(self, question: str) -> None:
        """Begin a turn."""
        self.said.append(Said(question))
        self._append(self.said[-1])
        self._scroll_to_end()

    def answer(self, text: str, note: str = "") -> None:
        """Show what there is of the last question's answer by now."""
        said = self.said[-1]
        shown = said.answer
        said.answer, said.note = text, note
        bar = self.verticalScrollBar()
        at_end = bar.value() == bar.maximum()  # else somebody reads further up
        cursor = self.textCursor()
        cursor.beginEditBlock()
        # What stays is left alone, and with it what somebody has selected in it.
        kept = shown if text.startswith(shown) else ""
        cursor.setPosition(self._answer_ends if kept else self._answer_begins)
        cursor.movePosition(QTextCursor.MoveOperation.End, QTextCursor.MoveMode.KeepAnchor)
        cursor.removeSelectedText()
        self._write_answer(cursor, said, len(kept))
        cursor.endEditBlock()
        if at_end:
            self._scroll_to_end()

    def take_back(self) -> str:
        """Remove the last turn; returns its question."""
        said = self.said.pop()
        self._show_all()
        return said.question

    def forget(self) -> None:
        """Begin anew."""
        self.said.clear()
        self._show_all()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange):
            self._show_all()

    def _show_all(self) -> None:
        self.clear()
        for said in self.said:
            self._append(said)
        self._scroll_to_end()

    def _append(self, said: Said) -> None:
        cursor = self.textCursor()
        cursor.movePosition(QTextCursor.MoveOperation.End)
        if self.document().isEmpty():
            cursor.setBlockFormat(_spaced(0, 2))
        else:
            cursor.insertBlock(_spaced(14, 2))
        cursor.insertText(said.question, self._style(QFont.Weight.DemiBold))
        cursor.insertBlock(_spaced(0, 0))
        self._answer_begins = cursor.position()
        self._write_answer(cursor, said)

    def _write_answer(self, cursor: QTextCursor, said: Said, start: int = 0) -> None:
        cursor.insertText(said.answer[start:], self._style())
        self._answer_ends = cursor.position()
        if said.note:
            note = f" ({said.note})" if said.answer else f"({said.note})"
            cursor.insertText(note, self._style(strength=_FAINT))

    def _style(self, weight: QFont.Weight = QFont.Weight.Normal, strength: float = 1) -> QTextCharFormat:
        colour = self.palette().color(QPalette.ColorRole.Text)
        colour.setAlphaF(strength)
        style = QTextCharFormat()
        style.setForeground(colour)
        style.setFontWeight(weight)
        return style

    def _scroll_to_end(self) -> None:
        bar = self.verticalScrollBar()
        bar.setValue(bar.maximum())


def _spaced(above: int, below: int) -> QTextBlockFormat:
    """A paragraph with so many pixels around it."""
    format = QTextBlockFormat()
    format.setTopMargin(above)
    format.setBottomMargin(below)
    return format
