"""The conversation about a picture: turns from the oldest to the newest, which stays visible as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QScrollArea, QVBoxLayout, QWidget

from . import theme
from .bubbles import TurnView
from .turns import Said


class Conversation(QScrollArea):
    """Scrolls with the newest answer unless the user has scrolled up; works with the keyboard too."""

    again = Signal()
    """The user wants another answer to the last question."""
    boxes = Signal(object)
    """The user wants to see the boxes of this :class:`Said` on the picture."""

    def __init__(self, hint: QWidget) -> None:
        """
        Args:
            hint: Widget that is shown while the conversation is empty.
        """
        super().__init__()
        self.views: list[TurnView] = []
        self._follows = True
        self._hint = hint
        self.setAccessibleName("Conversation")
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumHeight(theme.LINE_HEIGHT)
        inner = QWidget()
        self._column = QVBoxLayout(inner)
        self._column.setContentsMargins(2 * theme.SPACE, 2 * theme.SPACE, 2 * theme.SPACE, theme.SPACE)
        self._column.setSpacing(2 * theme.SPACE)
        self._column.addWidget(hint)
        self._column.addStretch(1)
        self.setWidget(inner)
        bar = self.verticalScrollBar()
        bar.setSingleStep(theme.LINE_HEIGHT)
        bar.rangeChanged.connect(self._follow)
        bar.valueChanged.connect(self._note_place)

    @property
    def text(self) -> str:
        """All text of the conversation."""
        return "\n".join(view.text for view in self.views)

    def show_all(self, turns: Sequence[Said]) -> None:
        """Show another conversation, scrolled to its end."""
        while self.views:
            self._remove(self.views.pop())
        self._follows = True
        self.verticalScrollBar().setValue(0)
        for said in turns:
            self.add(said)
        self._hint.setVisible(not self.views)

    def add(self, said: Said) -> None:
        """Add a turn."""
        if self.views:
            self.views[-1].show_newest(False)
        view = TurnView(said)
        view.again.connect(self.again)
        view.boxes.connect(lambda: self.boxes.emit(said))
        self.views.append(view)
        self._column.insertWidget(self._column.count() - 1, view)
        self._hint.hide()
        self._follows = True
        self._follow()

    def update_of(self, said: Said, doing: str | None = None) -> None:
        """Update the answer of a turn, if it is in this conversation; while the answer is empty, show ``doing``."""
        for view in self.views:
            if view.said is said:
                view.show_answer(doing)

    def _remove(self, view: TurnView) -> None:
        self._column.removeWidget(view)
        view.hide()
        view.deleteLater()

    def _follow(self) -> None:
        if self._follows and self.views:
            bar = self.verticalScrollBar()
            bar.setValue(bar.maximum())

    def _note_place(self, value: int) -> None:
        self._follows = value >= self.verticalScrollBar().maximum() - theme.LINE_HEIGHT // 2
