"""What went wrong, above everything else, until something else is done."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QSizePolicy

from .fitted_text import FittedText
from .icons import IconButton

_HIGHEST = 154


class Notice(QFrame):
    """Errors, one below the other; can be selected and dismissed."""

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
        """All that can be read there."""
        return "\n".join(self._errors)

    def complain(self, error: str) -> None:
        """Show what went wrong, below what else has."""
        self._errors.append(f"⚠ {error}")
        self._text.put(self.text)
        self.show()

    def clear(self) -> None:
        """Something else is done now."""
        self._errors.clear()
        self._text.put("")
        self.hide()
