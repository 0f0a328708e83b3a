"""The settings dialog."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from ..options import DEFAULT_MAX_NEW_TOKENS
from .label import PlainLabel
from .settings import Settings, settings_file
from .theme import SCHEMES


class SettingsDialog(QDialog):
    """A form for the settings; they change only when OK is pressed."""

    chosen = Signal(object)
    """The new :class:`.Settings`."""
    forgotten = Signal()
    """Remembered settings should be deleted."""

    def __init__(self, parent: QWidget, settings: Settings) -> None:
        super().__init__(parent)
        self._settings = settings
        self.setWindowTitle("Settings")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.bundle = QLineEdit(settings.bundle)
        self.bundle.setPlaceholderText("built-in demo")
        self.threads = _spin_box(settings.threads or 0, 0, 512, "automatic (one a core)")
        self.low_memory = QCheckBox("Low memory: open each part of the model only while it is needed (slower)")
        self.low_memory.setChecked(settings.low_memory)
        self.length = _spin_box(settings.max_new_tokens or 0, 0, 100_000, f"automatic ({DEFAULT_MAX_NEW_TOKENS})")
        self.length.setSuffix(" tokens")
        self.temperature = QDoubleSpinBox()
        self.temperature.setRange(0, 10)
        self.temperature.setSingleStep(0.1)
        self.temperature.setSpecialValueText("0 (the same answer each time)")
        self.temperature.setValue(settings.temperature)
        self.appearance = QComboBox()
        for name in SCHEMES:
            self.appearance.addItem({"system": "As the system"}.get(name, name.capitalize()), name)
        self.appearance.setCurrentIndex(self.appearance.findData(settings.appearance))
        for field in (self.threads, self.length, self.temperature):
            field.lineEdit().setTextMargins(10, 0, 0, 0)  # in line with the others
        self.remember = QCheckBox("Remember settings and recent pictures")
        self.remember.setChecked(settings.remember)
        self.forget = QPushButton("Forget now")
        self.forget.setToolTip("Deletes that file, and the list of recent pictures")
        self.forget.clicked.connect(self._forget)
        self._arrange()

    @property
    def settings(self) -> Settings:
        """The settings as filled in in the form."""
        return replace(
            self._settings,
            bundle=self.bundle.text().strip(),
            threads=self.threads.value() or None,
            low_memory=self.low_memory.isChecked(),
            max_new_tokens=self.length.value() or None,
            temperature=round(self.temperature.value(), 2),
            appearance=self.appearance.currentData(),
            remember=self.remember.isChecked(),
        )

    def accept(self) -> None:
        self.chosen.emit(self.settings)
        super().accept()

    def _forget(self) -> None:
        self.remember.setChecked(False)
        self._settings = replace(self._settings, recent=(), remember=False)
        self.forgotten.emit()

    def _browse(self) -> None:
        dialog = QFileDialog(self, "Choose a model: the folder that tinygptv-export wrote")
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self.bundle.setText)
        dialog.open()

    def _arrange(self) -> None:
        browse = QPushButton("Choose …")
        browse.clicked.connect(self._browse)
        demo = QPushButton("Demo")
        demo.setToolTip("Go back to the built-in demo")
        demo.clicked.connect(self.bundle.clear)
        model = QHBoxLayout()
        model.setSpacing(8)
        for widget in (self.bundle, browse, demo):
            model.addWidget(widget)
        form = QFormLayout()
        form.setVerticalSpacing(10)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        label = QLabel("&Model (bundle)")
        label.setBuddy(self.bundle)
        form.addRow(label, model)
        form.addRow("&Threads", self.threads)
        form.addRow("", self.low_memory)
        form.addRow("&Longest answer", self.length)
        form.addRow("T&emperature", self.temperature)
        form.addRow("&Appearance", self.appearance)
        keep = QHBoxLayout()
        keep.addWidget(self.remember, 1)
        keep.addWidget(self.forget)
        form.addRow("", keep)
        where = PlainLabel(
            f"In {settings_file()}. Without this, nothing is written: settings and recent pictures are forgotten when "
            "the window is closed. Conversations and pictures are never remembered.",
            role="note",
            wraps=True,
        )
        form.addRow("", where)
        self.bundle.setAccessibleName("Model (bundle)")
        self.threads.setAccessibleName("Threads")
        self.length.setAccessibleName("Longest answer")
        self.temperature.setAccessibleName("Temperature")
        self.appearance.setAccessibleName("Appearance")
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        buttons.button(QDialogButtonBox.StandardButton.Ok).setProperty("role", "accent")
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.setContentsMargins(24, 24, 24, 16)
        column.setSpacing(16)
        column.addLayout(form)
        column.addWidget(buttons)
        self.resize(600, self.sizeHint().height())


def _spin_box(value: int, least: int, most: int, special: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(least, most)
    box.setSpecialValueText(special)
    box.setValue(value)
    return box
