"""Error messages at the top of the window, shown until the next action."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QSizePolicy

from .fitted_text import FittedText
from .icons import IconButton

_HIGHEST = 154


class Notice(QFrame):
    """Errors, one below the other; the text can be selected, and the notice dismissed."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "notice")
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self._errors: list[str] = []
        self._text = FittedText("Error", _HIGHEST)
        self._text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        dismiss = IconButton("close", "Dismiss")
        dismiss.clicked.connect(self.clear)
        row = QHBoxLayout(self)
        row.setContentsMargins(12, 6, 6, 6)
        row.addWidget(self._text, 1)
        row.addWidget(dismiss, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def text(self) -> str:
        """All text of the notice."""
        return "\n".join(self._errors)

    def complain(self, error: str) -> None:
        """Add an error below the others."""
        self._errors.append(f"⚠ {error}")
        self._text.put(self.text)
        self.show()

    def clear(self) -> None:
        """Remove all errors, since another action begins."""
        self._errors.clear()
        self._text.put("")
        self.hide()
