"""The window: puts its parts together, and tells the model's thread what the user wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QMimeData, QRectF, Qt
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QGuiApplication, QImage, QKeySequence, QShortcut
from PySide6.QtWidgets import QFileDialog, QMainWindow, QSplitter

from .. import Answer, ArgumentError, TinyGPTV
from ..bundle.manifest import Manifest
from ..pointing import question_about, words_of
from .menus import Entry, add_menu, add_view_menu
from .model_thread import ModelThread
from .panel import Panel
from .picture import PictureView
from .sources import has_picture, picture_in
from .status import Status
from .worker import name_of

DEMO_HINT = (
    "This is the built-in demo model: it knows simple shapes and colours, and nothing else. "
    "To ask about photos, choose the bundle of an exported model in the File menu."
)
Key = QKeySequence.StandardKey
PICTURES = "Pictures (*.jpg *.jpeg *.png *.webp *.bmp *.gif *.tif *.tiff)"


class Window(QMainWindow):
    """One bundle, one picture, one conversation about it."""

    def __init__(self, load: Callable[[Path | None], TinyGPTV]) -> None:
        """
        Args:
            load: Loads a bundle; called in another thread.
        """
        super().__init__()
        self.picture = PictureView(
            f"Drop a picture here, click to open one ({_keys(Key.Open)}), or paste one ({_keys(Key.Paste)})"
        )
        self.panel = Panel()
        self.status = Status()
        self.model = ModelThread(load)
        self._bundle = self._picture = self._copied = ""
        self._manifest: Manifest | None = None
        self._arrange()
        self._connect()
        self.model.start()

    def open_bundle(self, bundle: Path | None) -> None:
        """Load another model, the built-in demo if None."""
        self._begin(f"Loading {_bundle_name(bundle)} …")
        self.model.load(bundle)

    def open_picture(self, source: str | QImage) -> None:
        """Show the model a picture, from a path or the clipboard."""
        self._begin(f"Opening {name_of(source)} …")
        self.model.open(source)

    def ask(self, question: str) -> None:
        """Ask about the picture."""
        self._begin("Answering …")
        self._copied = ""
        self.panel.conversation.ask(question)
        self.model.ask(question)

    def start_over(self) -> None:
        """Forget what was said about the picture."""
        self._begin("")
        self.model.reset()

    def copy_answer(self) -> None:
        """Put the last answer on the clipboard, if there is one."""
        if self._copied:
            QGuiApplication.clipboard().setText(self._copied)

    def choose_picture(self) -> None:
        """Ask which picture to open."""
        dialog = QFileDialog(self, "Open a picture", filter=f"{PICTURES};;All files (*)")
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(self.open_picture)
        _show(dialog)

    def choose_bundle(self) -> None:
        """Ask which bundle to load."""
        dialog = QFileDialog(self, "Choose a bundle: the folder that tinygptv-export wrote")
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.fileSelected.connect(lambda folder: self.open_bundle(Path(folder)))
        _show(dialog)

    def paste_picture(self) -> None:
        """Open the picture on the clipboard."""
        self._take(QGuiApplication.clipboard().mimeData())

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        if has_picture(event.mimeData()) and event.possibleActions() & Qt.DropAction.CopyAction:
            event.setDropAction(Qt.DropAction.CopyAction)  # a move would cost the other program its file
            event.accept()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        event.setDropAction(Qt.DropAction.CopyAction)
        event.accept()
        self._take(event.mimeData())

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        self.hide()  # at once, although a bundle that is being loaded has to be waited for
        self.model.close()
        super().closeEvent(event)

    def _take(self, data: QMimeData) -> None:
        """Open the picture in what was dropped or pasted."""
        if source := picture_in(data):
            self.open_picture(source)
        else:
            self.panel.clear_errors()
            self.panel.complain("there is no picture in what was pasted or dropped; expected one, or a file")

    def _begin(self, doing: str) -> None:
        self.panel.clear_errors()
        self.status.tell(doing)

    # What the worker tells

    def _unloaded(self) -> None:
        self._bundle = ""
        self._show_title()

    def _loaded(self, bundle: Path | None, manifest: Manifest) -> None:
        self._bundle, self._manifest = _bundle_name(bundle), manifest
        self.panel.offer(manifest.tasks)
        self.picture.take_boxes(manifest.boxes)
        self.panel.conversation.setPlaceholderText("" if bundle else DEMO_HINT)
        self._show_new()

    def _opened(self, image: QImage, name: str) -> None:
        self._picture = name
        self.picture.show_image(image)
        self.status.tell(f"Looking at {self._picture} …")
        self._show_new()

    def _answered(self, answer: Answer, boxes: int) -> None:
        assert self._manifest is not None
        text = words_of(self._manifest, answer.text)
        self._copied = text or answer.text
        self.panel.conversation.answer(text, _note(answer, boxes))
        self.status.tell_speed(answer)

    def _failed(self, error: str) -> None:
        if self.panel.conversation.unanswered:
            if self.panel.question.toPlainText():  # the next one, typed meanwhile
                self.panel.conversation.answer("", "failed")
            else:
                self.panel.put(self.panel.conversation.take_back())
        self.panel.complain(error)

    def _show_busy(self, busy: bool) -> None:
        self.panel.show_busy(busy)
        self.status.show_busy(busy)
        if not busy and self.panel.conversation.unanswered:  # it was stopped while the model looked at the picture
            self.panel.conversation.answer("", "stopped")

    def _show_new(self) -> None:
        """Nothing has been said yet."""
        self._copied = ""
        self.panel.conversation.forget()
        self._show_title()

    def _show_title(self) -> None:
        self.setWindowTitle(" - ".join(filter(None, (self._picture, self._bundle, "tinygptv"))))

    def _ask_about(self, box: QRectF) -> None:
        """Fill in a question about a box that was drawn."""
        assert self._manifest is not None
        width, height = self.picture.image.size().toTuple()
        right, bottom = min(box.right(), width), min(box.bottom(), height)  # floats may be a little more
        try:
            self.panel.put(question_about(self._manifest, (box.left(), box.top(), right, bottom), width, height))
        except ArgumentError as error:  # where the model sees nothing of the picture
            self.panel.complain(str(error))

    # Putting together

    def _arrange(self) -> None:
        splitter = QSplitter()
        splitter.addWidget(self.picture)
        splitter.addWidget(self.panel)
        splitter.setStretchFactor(0, 3)
        splitter.setStretchFactor(1, 2)
        splitter.setChildrenCollapsible(False)
        self.setCentralWidget(splitter)
        self.setStatusBar(self.status)
        self.setAcceptDrops(True)
        self.setWindowTitle("tinygptv")
        self.resize(1040, 680)
        self._add_menus()
        QShortcut(QKeySequence(Key.Paste), self, self.paste_picture)  # the question field has its own
        self.panel.question.setFocus()

    def _add_menus(self) -> None:
        add_menu(
            self.menuBar(),
            "&File",
            Entry("&Open picture …", Key.Open, self.choose_picture),
            Entry("&Paste picture", "Ctrl+Shift+V", self.paste_picture),
            Entry("Choose &bundle …", "Ctrl+B", self.choose_bundle),
            Entry("&Quit", "Ctrl+Q", self.close),
        )
        add_menu(
            self.menuBar(),
            "&Conversation",
            Entry("&Copy answer", "Ctrl+Shift+C", self.copy_answer),
            Entry("Start &over", Key.New, self.start_over),
            Entry("Go to the &question", "Ctrl+L", self.panel.question.setFocus),
        )
        add_view_menu(self.menuBar())

    def _connect(self) -> None:
        self.panel.asked.connect(self.ask)
        self.panel.stopped.connect(self.model.cancel)
        self.panel.question.given.connect(self._take)
        self.picture.wanted.connect(self.choose_picture)
        self.picture.boxed.connect(self._ask_about)
        self.model.busy_changed.connect(self._show_busy)
        worker = self.model.worker
        worker.unloaded.connect(self._unloaded)
        worker.loaded.connect(self._loaded)
        worker.opened.connect(self._opened)
        worker.seen.connect(self.status.tell_seen)
        worker.wrote.connect(self.panel.conversation.answer)
        worker.drawn.connect(self.picture.show_image)
        worker.answered.connect(self._answered)
        worker.over.connect(self._show_new)
        worker.failed.connect(self._failed)


def _note(answer: Answer, boxes: int) -> str:
    """What is to be known of an answer besides its text."""
    parts = [f"{boxes} box{'es' if boxes > 1 else ''} on the picture"] if boxes else []
    if answer.finish_reason == "cancelled":
        parts.append("stopped")
    elif answer.finish_reason == "length":
        parts.append("cut off at its greatest length")
    elif not answer.text.strip():
        parts.append("the model said nothing")
    if answer.truncated_turns:
        parts.append(f"the first {answer.truncated_turns} questions no longer fit into what the model remembers")
    return "; ".join(parts)


def _bundle_name(bundle: Path | None) -> str:
    return bundle.resolve().name if bundle else "built-in demo"


def _keys(key: QKeySequence.StandardKey) -> str:
    return QKeySequence(key).toString(QKeySequence.SequenceFormat.NativeText)


def _show(dialog: QFileDialog) -> None:
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.open()  # unlike exec, does not wait
