"""The window: puts its parts together, and shows the state of the session in them."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import (
    QCloseEvent,
    QDragEnterEvent,
    QDragLeaveEvent,
    QDropEvent,
    QKeySequence,
    QShortcut,
)
from PySide6.QtWidgets import QMainWindow, QStackedWidget, QVBoxLayout, QWidget

from . import theme
from .files import Files
from .header import Header
from .icons import program_icon
from .menus import MainMenu
from .notice import Notice
from .session import Session
from .settings import Settings
from .sources import has_picture
from .start_page import StartPage
from .status import Status
from .talk import Talk
from .turns import Said, Sheet
from .work_area import WorkArea
from .worker import Load

Key = QKeySequence.StandardKey


class Window(QMainWindow):
    """The main window, with one model and the open pictures."""

    def __init__(self, load: Load, settings: Settings | None = None) -> None:
        """
        Args:
            load: Loads a bundle; called in another thread.
            settings: The initial settings; the defaults if None.
        """
        super().__init__()
        self.session = Session(load, settings or Settings())
        self.model = self.session.model
        self.talk = Talk(self.session)
        self.files = Files(self, self.session)
        self.header = Header()
        self.notice = Notice()
        self.start_page = StartPage(QKeySequence(Key.Paste).toString(QKeySequence.SequenceFormat.NativeText))
        self.work = WorkArea()
        self.picture, self.strip, self.panel = self.work.picture, self.work.strip, self.work.panel
        self.status = Status()
        self._stack = QStackedWidget()
        theme.choose(self.session.settings.appearance)
        self._arrange()
        self.menus = MainMenu(self, self.session, self.talk, self.files, self.panel.composer.question)
        QShortcut(QKeySequence(Key.Paste), self, self.files.paste)  # the question field has its own
        self._connect()
        self._show_settings()
        self._show_sheet()

    # What the system tells

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        if has_picture(event.mimeData()) and event.possibleActions() & Qt.DropAction.CopyAction:
            event.setDropAction(Qt.DropAction.CopyAction)  # a move would cost the other program its file
            event.accept()
            self.start_page.show_over(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        self.start_page.show_over(False)

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        event.setDropAction(Qt.DropAction.CopyAction)
        event.accept()
        self.start_page.show_over(False)
        self.files.take(event.mimeData())

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        self.hide()  # at once, although a bundle that is being loaded has to be waited for
        self.model.close()
        super().closeEvent(event)

    # What the session tells

    def _begin(self, doing: str) -> None:
        self.notice.clear()
        self.status.tell(doing)

    def _show_sheet(self) -> None:
        """Show the current picture and conversation, or the start page."""
        sheet = self.session.sheet
        if sheet is None:
            self._stack.setCurrentWidget(self.start_page)
            self.start_page.open_button.setFocus()
        else:
            appears = self._stack.currentWidget() is not self.work
            self._stack.setCurrentWidget(self.work)
            size = (sheet.picture.width, sheet.picture.height)
            self.picture.show_image(sheet.image, size, sheet.picture.name)
            self.strip.choose(sheet.picture.number)
            self.panel.conversation.show_all(sheet.said)
            self._show_boxes()
            if appears:
                self.panel.composer.question.setFocus()
        self._show_title()
        self._show_state()

    def _show_boxes(self) -> None:
        self.picture.show_regions(self.session.regions)

    def _asked(self, said: Said) -> None:
        self.panel.conversation.add(said)
        self._show_boxes()
        self._show_state()

    def _unanswered(self, said: Said) -> None:
        """Put a failed question back into the field, unless the user has typed another one."""
        field = self.panel.composer.question
        if not field.toPlainText():
            self.talk.take_back(said)
            self.panel.composer.put(said.question)

    def _show_state(self) -> None:
        session, sheet = self.session, self.session.sheet
        answering, looks = self.talk.answering, sheet is not None and session.looking == sheet.picture.number
        note = ""
        if looks:
            note = "Looking at the picture …"
        elif session.loading:
            note = f"Loading {session.loading} …"
        self.picture.show_doing(note, waits=not looks)
        self.panel.composer.show_state(
            ready=not session.loading and not session.opening,
            answering=answering is not None,
            busy=self.model.busy,
            note="" if answering else note,
        )
        if answering is not None:
            self.panel.conversation.update_of(answering, "Looking at the picture …" if looks else "Thinking …")
        self.status.show_busy(self.model.busy)
        self.header.show_model(session.loading or session.bundle_name, loading=bool(session.loading))
        self.header.show_savable(sheet is not None and bool(sheet.said))
        self.menus.show_state()

    def _show_model(self) -> None:
        manifest = self.session.manifest
        if manifest is not None and self.session.bundle_name:
            self.panel.composer.offer(manifest.tasks)
            self.picture.take_boxes(manifest.boxes)
            demo = not self.session.settings.bundle
            self.panel.explain(demo=demo, tasks=bool(manifest.tasks), boxes=manifest.boxes)
            self.start_page.note.setVisible(demo)
        self._show_title()

    def _show_settings(self) -> None:
        settings = self.session.settings
        theme.choose(settings.appearance)
        self.menus.update(settings)
        self.start_page.show_recent(settings.recent)

    def _show_title(self) -> None:
        sheet = self.session.sheet
        parts = (sheet.picture.name if sheet else "", self.session.bundle_name, "tinygptv")
        self.setWindowTitle(" - ".join(filter(None, parts)))

    # Putting together

    def _arrange(self) -> None:
        self._stack.addWidget(self.start_page)
        self._stack.addWidget(self.work)
        notice_row = QWidget()
        row = QVBoxLayout(notice_row)
        row.setContentsMargins(12, 0, 12, 0)
        row.addWidget(self.notice)
        root = QWidget()
        rows = QVBoxLayout(root)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(4)
        for widget in (self.header, notice_row, self._stack):
            rows.addWidget(widget)
        rows.setStretch(2, 1)
        self.setCentralWidget(root)
        self.setStatusBar(self.status)
        self.setAcceptDrops(True)
        self.setWindowIcon(program_icon())
        self.setMinimumSize(340, 560)
        self.resize(1080, 720)

    def _closed(self, sheet: Sheet) -> None:
        self.strip.remove(sheet.picture.number)
        self._show_state()

    def _connect(self) -> None:
        session, talk = self.session, self.talk
        composer, conversation = self.panel.composer, self.panel.conversation
        self.header.model_wanted.connect(self.files.choose_bundle)
        self.header.demo_wanted.connect(lambda: self.files.open_bundle(None))
        self.header.picture_wanted.connect(self.files.choose_pictures)
        self.header.save_wanted.connect(self.files.choose_conversation_file)
        self.header.settings_wanted.connect(self.menus.show_settings)
        self.start_page.picture_wanted.connect(self.files.choose_pictures)
        self.start_page.sample_wanted.connect(lambda sample: session.open(str(sample.path), sample))
        self.start_page.recent_wanted.connect(self.files.open)
        for note in (self.start_page.note, self.panel.note):
            note.wanted.connect(self.files.choose_bundle)
        self.strip.chosen.connect(session.show)
        self.strip.closed.connect(session.close)
        self.strip.wanted.connect(self.files.choose_pictures)
        self.picture.boxed.connect(talk.ask_about)
        composer.asked.connect(talk.ask)
        composer.stopped.connect(self.model.cancel)
        composer.question.given.connect(self.files.take)
        conversation.again.connect(talk.ask_again)
        conversation.boxes.connect(talk.show_boxes)
        session.began.connect(self._begin)
        session.failed.connect(self.notice.complain)
        session.sheet_opened.connect(self.strip.add)
        session.sheet_closed.connect(self._closed)
        session.switched.connect(self._show_sheet)
        talk.asked.connect(self._asked)
        talk.unanswered.connect(self._unanswered)
        talk.written.connect(conversation.update_of)
        talk.boxes_changed.connect(self._show_boxes)
        session.model_changed.connect(self._show_model)
        session.state_changed.connect(self._show_state)
        session.seen.connect(self.status.tell_seen)
        talk.answered.connect(self.status.tell_speed)
        session.saved.connect(lambda path: self.status.tell(f"saved {path}", lasts=True))
        session.settings_changed.connect(self._show_settings)
