"""The status bar: the current activity, the speed of the last answer, and memory use."""

from __future__ import annotations

import psutil
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QLabel, QProgressBar, QStatusBar

from .. import Answer
from .label import PlainLabel

_MEMORY_MILLISECONDS = 1000


class Status(QStatusBar):
    """Labels in the status bar."""

    def __init__(self) -> None:
        super().__init__()
        self._process = psutil.Process()
        self._lasts = False
        self._doing, self._speed, self._memory = PlainLabel(), PlainLabel(), QLabel()
        self._speed.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._busy = QProgressBar()
        self._busy.setRange(0, 0)  # nobody knows how long it takes: it moves, that is all
        self._busy.setFixedWidth(96)
        self._busy.setTextVisible(False)
        self._busy.hide()
        self._busy.setAccessibleName("Working")
        self.setSizeGripEnabled(False)
        self.setContentsMargins(12, 0, 12, 4)
        self._memory.setToolTip("Resident memory of this program, the model included")
        self.addWidget(self._busy)
        self.addWidget(self._doing, 1)
        self.addPermanentWidget(self._speed, 1)
        self.addPermanentWidget(self._memory)
        self._timer = QTimer(self, interval=_MEMORY_MILLISECONDS)
        self._timer.timeout.connect(self._show_memory)
        self._timer.start()
        self._show_memory()

    def tell(self, text: str, *, lasts: bool = False) -> None:
        """Show the current activity until it ends; if ``lasts``, until another one begins."""
        self._lasts = lasts
        self._show_doing(text)

    def show_busy(self, busy: bool) -> None:
        """Show whether something is running."""
        self._busy.setVisible(busy)
        if not busy:
            if not self._lasts:
                self._show_doing("")
            self._show_memory()

    def tell_seen(self, seconds: float) -> None:
        """Show how long the picture took to encode."""
        self._speed.setText(f"looked at the picture for {seconds:.2f} s")

    def tell_speed(self, answer: Answer) -> None:
        """Show the speed of an answer."""
        timings = answer.timings
        parts = [f"first token after {timings.time_to_first_token:.2f} s"] if answer.token_ids else []
        if timings.decode_tokens_per_second:
            parts.append(f"{timings.decode_tokens_per_second:.1f} tokens/s")
        self._speed.setText(", ".join(parts))

    @property
    def text(self) -> str:
        """All text of the status bar."""
        return "  ".join(label.text() for label in (self._doing, self._speed, self._memory))

    def _show_doing(self, text: str) -> None:
        self._doing.setText(text)
        self._doing.setVisible(bool(text))  # the other labels take its room

    def _show_memory(self) -> None:
        self._memory.setText(f"memory {self._process.memory_info().rss / 1e9:.2f} GB")
