"""The help dialog and the about dialog."""

from __future__ import annotations

import html
from importlib.metadata import PackageNotFoundError, version

from PySide6.QtCore import Qt, qVersion
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLabel, QScrollArea, QVBoxLayout, QWidget

from ..bundle.manifest import Manifest
from .icons import program_icon

HELP = """
<h3>Pictures</h3>
<p>Drop pictures on the window, open them (Ctrl+O) or paste one (Ctrl+V). Each has its own conversation; the row below
the picture shows those that are open. The model looks at a picture as soon as it is open. You can ask meanwhile: the
answer then comes as soon as it has looked.</p>
<h3>Questions</h3>
<p>Enter asks, Shift+Enter begins a new line, Esc stops. The buttons above the field are what the model was trained to
do: choose one, type what it asks for, and press Enter; <i>Caption</i> and <i>Describe with boxes</i> ask at once.
Without one, ask freely. Each answer builds on those before it.</p>
<h3>Boxes</h3>
<p>Boxes in an answer are shown on the picture, if the model knows boxes (TinyGPT-V does). Draw one with the mouse to
ask what is in it. With the keyboard: choose <i>What is in this box</i> and type the box as
<code>{&lt;left&gt;&lt;top&gt;&lt;right&gt;&lt;bottom&gt;}</code>, in hundredths of the picture's width and height.</p>
<h3>Models</h3>
<p>The built-in demo knows simple shapes and colours, and nothing else. For photos, export a published model once, on a
computer with enough memory: <code>tinygptv-export --help</code> says how. It writes a folder, the bundle; choose it
with Ctrl+B.</p>
<h3>Files</h3>
<p>Ctrl+S saves a conversation: as Markdown to read, or as JSON, which holds the picture too and can be opened again
(Ctrl+Shift+O). Ctrl+Shift+S saves the picture with its boxes. Nothing else is written, unless you choose
<i>Remember</i> in Settings.</p>
<h3>Keys</h3>
<table cellpadding="2">
<tr><td>Ctrl+O, Ctrl+V</td><td>open pictures, paste one</td></tr>
<tr><td>Ctrl+W, Ctrl+Shift+T</td><td>close the picture, reopen what was closed</td></tr>
<tr><td>Ctrl+PgUp, Ctrl+PgDown</td><td>previous and next picture</td></tr>
<tr><td>Ctrl+B, Ctrl+,</td><td>choose a model, settings</td></tr>
<tr><td>Enter, Shift+Enter, Esc</td><td>ask, new line, stop</td></tr>
<tr><td>Ctrl+Shift+C, Ctrl+R</td><td>copy the last answer, regenerate it</td></tr>
<tr><td>Ctrl+N, Ctrl+L, Tab</td><td>start over, go to the question, go on</td></tr>
<tr><td>Ctrl+S, Ctrl+Shift+S, Ctrl+Shift+O</td><td>save, save the picture, open a conversation</td></tr>
</table>
"""


def help_dialog(parent: QWidget) -> QDialog:
    """A dialog that explains how to use the window."""
    return _dialog(parent, "Help", HELP)


def about_dialog(parent: QWidget, model: str, manifest: Manifest | None) -> QDialog:
    """A dialog with name, version, licence, and the model that is loaded."""
    try:
        own = version("tinygptv")
    except PackageNotFoundError:  # a frozen program may have left it out
        own = ""
    about = [f"<h2>tinygptv {html.escape(own)}</h2>"]
    about.append("<p>Ask questions about pictures on an ordinary computer: no graphics card, offline, private.</p>")
    if manifest is not None:
        stage = f", stage {manifest.stage}" if manifest.stage is not None else ""
        image = manifest.image.image_size
        about.append(
            f"<p>Model: {html.escape(model)}<br>Family: {html.escape(manifest.family)}{stage}<br>"
            f"It sees pictures at {image} by {image} pixels. It may be wrong: check what matters.</p>"
        )
    about.append(
        "<p>No connection is opened, and nothing is written that you did not ask for.</p>"
        f"<p>Licence: Apache-2.0. Qt {qVersion()} is used under the LGPL, version 3.</p>"
    )
    return _dialog(parent, "About tinygptv", "".join(about))


def _dialog(parent: QWidget, title: str, text: str) -> QDialog:
    dialog = QDialog(parent)
    dialog.setWindowTitle(title)
    dialog.setWindowIcon(program_icon())
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.RichText)
    label.setWordWrap(True)
    label.setTextInteractionFlags(
        Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
    )
    label.setContentsMargins(8, 0, 8, 0)
    label.setAlignment(Qt.AlignmentFlag.AlignTop)
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(label)
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
    buttons.rejected.connect(dialog.reject)
    column = QVBoxLayout(dialog)
    column.addWidget(area)
    column.addWidget(buttons)
    label.ensurePolished()
    width = 560
    dialog.resize(width, min(620, label.heightForWidth(width - 60) + 90))
    return dialog
