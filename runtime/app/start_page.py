"""The page shown while no picture is open: drop area, samples, recent pictures, and a note about the demo."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPixmap
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from . import theme
from .flow import FlowLayout
from .icons import draw_icon
from .label import PlainLabel
from .samples import SAMPLES, Sample

DEMO_HINT = (
    "This is the built-in demo model. It knows simple shapes and colours, and nothing else: it cannot describe photos. "
    "For those, export a published model once (tinygptv-export, see Help) and choose its folder, the bundle."
)
_WIDEST = 640
_MOST_RECENT = 5


class DemoNote(QFrame):
    """Explains what the demo can answer, and how to choose a real model."""

    wanted = Signal()
    """The user wants to choose another model."""

    def __init__(self, role: str) -> None:
        """
        Args:
            role: Style role of its frame: ``card``, or ``answer`` on a card.
        """
        super().__init__()
        self.setProperty("role", role)
        button = QPushButton("Choose a model …")
        button.setProperty("role", "link")
        button.setCursor(Qt.CursorShape.PointingHandCursor)
        button.clicked.connect(self.wanted)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 16, 10)
        column.setSpacing(4)
        column.addWidget(PlainLabel(DEMO_HINT, role="note", wraps=True))
        column.addWidget(button, 0, Qt.AlignmentFlag.AlignLeft)


class StartPage(QScrollArea):
    """The start page; everything on it can be reached with the keyboard."""

    picture_wanted = Signal()
    """The user wants to choose a picture."""
    sample_wanted = Signal(object)
    """The user wants to open this :class:`Sample` and ask about it."""
    recent_wanted = Signal(str)
    """The user wants to reopen the picture at this path."""

    def __init__(self, keys: str) -> None:
        """
        Args:
            keys: Shortcut for pasting a picture.
        """
        super().__init__()
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.note = DemoNote("card")
        self.open_button = QPushButton("Open a picture …")
        self.open_button.setProperty("role", "accent")
        self.open_button.clicked.connect(self.picture_wanted)
        self.samples = [_SampleCard(sample) for sample in SAMPLES]
        for card in self.samples:
            card.clicked.connect(lambda checked, sample=card.sample: self.sample_wanted.emit(sample))
        self._drop = _drop_area(self.open_button, keys)
        self._recent = QWidget()
        self._recent.setLayout(FlowLayout(theme.SPACE))
        self._recent.hide()
        self._arrange()

    def show_recent(self, paths: tuple[str, ...]) -> None:
        """Offer recently opened pictures."""
        layout = self._recent.layout()
        assert layout is not None
        while item := layout.takeAt(0):
            widget = item.widget()
            assert widget is not None
            widget.hide()
            widget.deleteLater()
        for path in paths[:_MOST_RECENT]:
            button = QPushButton()
            button.setProperty("role", "chip")
            button.ensurePolished()
            name = Path(path).name
            shown = button.fontMetrics().elidedText(name, Qt.TextElideMode.ElideMiddle, 180)
            button.setText(shown.replace("&", "&&"))
            button.setAccessibleName(name)
            button.clicked.connect(lambda checked, path=path: self.recent_wanted.emit(path))
            layout.addWidget(button)
        self._recent.setVisible(bool(paths))
        self._recent_heading.setVisible(bool(paths))

    def show_over(self, over: bool) -> None:
        """Highlight the page while a picture is dragged over it."""
        self._drop.setProperty("over", "true" if over else "false")
        self._drop.style().polish(self._drop)

    def _arrange(self) -> None:
        title = QLabel("Ask about a picture")
        title.setProperty("role", "title")
        title.setAlignment(Qt.AlignmentFlag.AlignCenter)
        subtitle = PlainLabel(
            "Everything happens on this computer: no picture and no question leaves it.", role="note", wraps=True
        )
        subtitle.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._recent_heading = _heading("Recent pictures")
        self._recent_heading.hide()
        cards = QHBoxLayout()
        cards.setSpacing(12)
        for card in self.samples:
            cards.addWidget(card, 1)
        page = QWidget()
        page.setMaximumWidth(_WIDEST)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 8, 0, 8)
        column.setSpacing(12)
        column.addStretch(1)
        column.addWidget(title)
        column.addWidget(subtitle)
        column.addSpacing(4)
        column.addWidget(self._drop)
        column.addSpacing(4)
        column.addWidget(_heading("Or try a sample: one click opens it and asks"))
        column.addLayout(cards)
        column.addWidget(self._recent_heading)
        column.addWidget(self._recent)
        column.addWidget(self.note)
        column.addStretch(1)
        inner = QWidget()
        row = QHBoxLayout(inner)
        row.setContentsMargins(16, 0, 16, 0)
        row.addStretch(1)
        row.addWidget(page, 1000)
        row.addStretch(1)
        self.setWidget(inner)


class _SampleCard(QPushButton):
    """A button with the sample's picture above its question."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        self.setProperty("role", "sample")
        self.setAccessibleName(f"Sample: {sample.title}")
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._picture = QPixmap(str(sample.path))
        self._text = PlainLabel(sample.title, role="note", wraps=True)
        self._text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._text.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 100, 8, 6)
        column.addWidget(self._text)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(140, 138)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(88, 138)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        side = 84
        painter.drawPixmap(
            QRectF((self.width() - side) / 2, 12, side, side), self._picture, QRectF(self._picture.rect())
        )


class _Mark(QWidget):
    """A drawing of a picture's outline."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedSize(44, 44)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        draw_icon(QPainter(self), "picture", QRectF(self.rect()), QColor(theme.tokens().accent))


def _drop_area(button: QPushButton, keys: str) -> QFrame:
    area = QFrame()
    area.setProperty("role", "drop")
    column = QVBoxLayout(area)
    column.setContentsMargins(24, 16, 24, 16)
    column.setSpacing(8)
    text = QLabel("Drop pictures here")
    text.setProperty("role", "heading")
    note = PlainLabel(f"or paste one ({keys})", role="note", wraps=True)
    for widget in (_Mark(), text, button, note):
        column.addWidget(widget, 0, Qt.AlignmentFlag.AlignHCenter)
    return area


def _heading(text: str) -> QLabel:
    label = QLabel(text)
    label.setProperty("role", "heading")
    label.setWordWrap(True)
    return label
