"""Colours, sizes and the style sheet of all windows: light or dark as the system is, unless the user chooses."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

from .assets import ASSETS

SCHEMES = {"system": Qt.ColorScheme.Unknown, "light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark}
"""Colour schemes by their names in settings and menu."""
CARD_RADIUS, BUBBLE_RADIUS, CONTROL_RADIUS = 12, 14, 8
SPACE = 8
"""Unit of distances in pixels; all are multiples of half of it."""
TEXT, NOTE = 15, 13
"""Font sizes in pixels."""
LINE_HEIGHT = 22
"""Height of a line of text, in pixels."""


@dataclass(frozen=True)
class Tokens:
    """The colours of one scheme; text has a contrast of at least 4.5 with its background."""

    background: str
    card: str
    ink: str
    dim: str
    line: str
    accent: str
    on_accent: str
    question: str
    error: str
    over: str
    """Background of the widget under the mouse."""


LIGHT = Tokens(
    background="#f6f7f9",
    card="#ffffff",
    ink="#1b1e23",
    dim="#5c646e",
    line="#dde1e6",
    accent="#2f5bd3",
    on_accent="#ffffff",
    question="#e7edfd",
    error="#b3261e",
    over="#eceff3",
)
DARK = Tokens(
    background="#15171a",
    card="#1e2125",
    ink="#eceef1",
    dim="#a2a9b2",
    line="#353a41",
    accent="#8fb0ff",
    on_accent="#0e1a36",
    question="#28344f",
    error="#ff9d90",
    over="#2a2e34",
)


def tokens(palette: QPalette | None = None) -> Tokens:
    """The colours that a palette was made from; the application's palette if None."""
    window = (palette or QGuiApplication.palette()).color(QPalette.ColorRole.Window)
    return DARK if window.lightness() < 128 else LIGHT


def choose(name: str) -> None:
    """Apply a scheme of :data:`SCHEMES` to all windows; ``system`` follows later changes of the system too."""
    scheme, hints = SCHEMES[name], QGuiApplication.styleHints()
    hints.setColorScheme(scheme)
    if scheme is Qt.ColorScheme.Unknown:
        scheme = hints.colorScheme()
    colours = DARK if scheme is Qt.ColorScheme.Dark else LIGHT
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    sheet = _style_sheet(colours)
    if application.styleSheet() == sheet:
        return  # Qt would style every widget of every window again
    application.setStyle("Fusion")
    application.setPalette(_palette(colours))
    application.setStyleSheet(sheet)


def _palette(colours: Tokens) -> QPalette:
    role = QPalette.ColorRole
    palette = QPalette(QColor(colours.over), QColor(colours.background))
    for roles, colour in (
        ((role.WindowText, role.Text, role.ButtonText, role.ToolTipText), colours.ink),
        ((role.Base, role.ToolTipBase), colours.card),
        ((role.AlternateBase,), colours.background),
        ((role.PlaceholderText,), colours.dim),
        ((role.Highlight, role.Link, role.Accent), colours.accent),
        ((role.HighlightedText,), colours.on_accent),
    ):
        for each in roles:
            palette.setColor(each, QColor(colour))
    for each in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, each, QColor(colours.dim))
    return palette


def _style_sheet(c: Tokens) -> str:
    check = (ASSETS / ("check_dark.png" if c is DARK else "check_light.png")).as_posix()
    control = f"border-radius: {CONTROL_RADIUS}px; padding: 7px 14px;"
    return f"""
QWidget {{ font-size: {TEXT}px; }}
QMenuBar, QMenu, QStatusBar, QStatusBar QLabel, QToolTip {{ font-size: {NOTE}px; }}
QMenuBar {{ background: {c.background}; border: none; }}
QMenuBar::item {{ padding: 5px 9px; border-radius: 5px; background: transparent; }}
QMenuBar::item:selected {{ background: {c.over}; }}
QMenu {{ background: {c.card}; border: 1px solid {c.line}; padding: 4px; }}
QMenu::item {{ padding: 6px 24px; border-radius: 5px; }}
QMenu::item:selected {{ background: {c.over}; color: {c.ink}; }}
QMenu::item:disabled {{ color: {c.dim}; }}
QMenu::separator {{ height: 1px; background: {c.line}; margin: 4px 8px; }}
QToolTip {{ background: {c.card}; color: {c.ink}; border: 1px solid {c.line}; padding: 4px; }}
QStatusBar, QStatusBar QLabel {{ background: {c.background}; color: {c.dim}; }}
QStatusBar::item {{ border: none; }}
QSplitter::handle {{ background: transparent; }}
QScrollArea, QScrollArea > QWidget > QWidget {{ background: transparent; border: none; }}
QScrollBar:vertical {{ background: transparent; width: 10px; margin: 0; }}
QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 0; }}
QScrollBar::handle {{ background: {c.line}; border-radius: 4px; margin: 1px; min-height: 24px; min-width: 24px; }}
QScrollBar::handle:hover {{ background: {c.dim}; }}
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{
  background: transparent; border: none; width: 0; height: 0; }}
QProgressBar {{ background: {c.line}; border: none; border-radius: 2px; max-height: 4px; }}
QProgressBar::chunk {{ background: {c.accent}; border-radius: 2px; }}

QPushButton {{ {control} background: {c.card}; color: {c.ink}; border: 1px solid {c.line}; }}
QPushButton:hover {{ background: {c.over}; }}
QPushButton:focus {{ border: 2px solid {c.accent}; padding: 6px 13px; }}
QPushButton:disabled {{ color: {c.dim}; }}
QPushButton[role="accent"] {{
  background: {c.accent}; color: {c.on_accent}; border: 2px solid {c.accent}; font-weight: 600; padding: 6px 18px; }}
QPushButton[role="accent"]:focus {{ border: 2px solid {c.question}; }}
QPushButton[role="accent"]:disabled {{ background: {c.over}; color: {c.dim}; border-color: {c.over}; }}
QPushButton[role="chip"] {{
  font-size: {NOTE}px; border-radius: 12px; padding: 4px 11px; border: 1px solid {c.line}; background: {c.card}; }}
QPushButton[role="chip"]:hover {{ background: {c.over}; }}
QPushButton[role="chip"]:checked {{ background: {c.question}; border: 1px solid {c.accent}; }}
QPushButton[role="chip"]:focus {{ border: 2px solid {c.accent}; padding: 3px 10px; }}
QPushButton[role="chip"]::menu-indicator {{ image: none; width: 0; }}
QPushButton[role="link"] {{
  font-size: {NOTE}px; border: none; background: transparent; color: {c.accent}; padding: 2px 0; text-align: left; }}
QPushButton[role="link"]:hover, QPushButton[role="link"]:focus {{ text-decoration: underline; }}
QPushButton[role="link"]:disabled {{ color: {c.dim}; }}
QPushButton[role="sample"] {{ border-radius: {CARD_RADIUS}px; padding: 0; text-align: left; }}
QPushButton[role="sample"]:focus {{ border: 2px solid {c.accent}; padding: 0; }}
QToolButton {{ border: none; border-radius: {CONTROL_RADIUS}px; background: transparent; }}
QToolButton:hover, QToolButton:focus {{ background: {c.over}; }}
QToolButton:focus {{ border: 2px solid {c.accent}; }}

QFrame[role="card"] {{ background: {c.card}; border: 1px solid {c.line}; border-radius: {CARD_RADIUS}px; }}
QFrame[role="drop"] {{ background: {c.card}; border: 2px dashed {c.line}; border-radius: {CARD_RADIUS}px; }}
QFrame[role="drop"][over="true"] {{ border-color: {c.accent}; background: {c.question}; }}
QFrame[role="field"] {{ background: {c.card}; border: 1px solid {c.line}; border-radius: {CARD_RADIUS}px; }}
QFrame[role="field"][focused="true"] {{ border: 1px solid {c.accent}; }}
QFrame[role="question"] {{
  background: {c.question}; border: none; border-radius: {BUBBLE_RADIUS}px; border-bottom-right-radius: 4px; }}
QFrame[role="answer"] {{
  background: {c.background}; border: none; border-radius: {BUBBLE_RADIUS}px; border-bottom-left-radius: 4px; }}
QFrame[role="notice"] {{ background: {c.card}; border: 1px solid {c.error}; border-radius: {CONTROL_RADIUS}px; }}
QFrame[role="notice"] QTextEdit {{ color: {c.error}; font-size: {NOTE}px; }}
QPlainTextEdit[role="bare"] {{ background: transparent; border: none; }}
QLabel[role="tag"] {{
  color: {c.dim}; background: {c.card}; font-size: {NOTE}px; border-radius: {CONTROL_RADIUS}px; padding: 2px 8px; }}
QLabel[role="title"] {{ font-size: 24px; font-weight: 600; }}
QLabel[role="heading"] {{ font-weight: 600; }}
QLabel[role="note"] {{ color: {c.dim}; font-size: {NOTE}px; }}
QDialog {{ background: {c.card}; }}
QLineEdit, QSpinBox, QDoubleSpinBox, QComboBox {{
  min-height: 24px; padding: 4px 10px; background: {c.background}; color: {c.ink};
  border: 1px solid {c.line}; border-radius: {CONTROL_RADIUS}px; }}
QLineEdit:focus, QSpinBox:focus, QDoubleSpinBox:focus, QComboBox:focus {{ border-color: {c.accent}; }}
QAbstractSpinBox QLineEdit {{ min-height: 0; padding: 0; border: none; background: transparent; }}
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {{ width: 0; border: none; }}
QComboBox::drop-down {{ border: none; width: 28px; background: transparent; }}
QComboBox::down-arrow {{ image: url("{(ASSETS / "down.png").as_posix()}"); width: 16px; height: 16px; }}
QComboBox QAbstractItemView {{ background: {c.card}; color: {c.ink}; border: 1px solid {c.line}; }}
QCheckBox {{ spacing: 8px; }}
QCheckBox::indicator {{
  width: 16px; height: 16px; border: 1px solid {c.dim}; border-radius: 4px; background: {c.background}; }}
QCheckBox::indicator:checked {{ background: {c.accent}; border-color: {c.accent}; image: url("{check}"); }}
QCheckBox:focus {{ color: {c.accent}; }}
"""
