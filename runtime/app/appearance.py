"""Light and dark: as the system is, unless the user chooses."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

SCHEMES = {
    "&System": Qt.ColorScheme.Unknown,
    "&Light": Qt.ColorScheme.Light,
    "&Dark": Qt.ColorScheme.Dark,
}
"""By what the menu calls them."""
_GREYS = {Qt.ColorScheme.Light: "#efefef", Qt.ColorScheme.Dark: "#353535"}
"""Of buttons; Qt derives the others."""


def choose(scheme: Qt.ColorScheme) -> None:
    """Take a colour scheme for all windows; ``Unknown`` follows the system."""
    QGuiApplication.styleHints().setColorScheme(scheme)
    if scheme in (Qt.ColorScheme.Unknown, QGuiApplication.styleHints().colorScheme()):
        QApplication.setPalette(QPalette())
        return
    # A desktop that has no schemes.
    palette = QPalette(QColor(_GREYS[scheme]))
    if scheme is Qt.ColorScheme.Dark:
        palette.setColor(QPalette.ColorRole.Base, QColor("#232323"))
        palette.setColor(QPalette.ColorRole.Highlight, QColor("#2a82da"))
        palette.setColor(QPalette.ColorRole.Link, QColor("#6cb6ff"))
        palette.setColor(QPalette.ColorGroup.Disabled, QPalette.ColorRole.Text, QColor("#808080"))
        palette.setColor(QPalette.ColorGroup.Disabled, QPalette.ColorRole.ButtonText, QColor("#808080"))
    QApplication.setPalette(palette)
