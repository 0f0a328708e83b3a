"""Questions about the picture that is shown, and their answers as they are generated."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import QObject, QRectF, Signal
from PySide6.QtGui import QGuiApplication

from .. import Answer, ArgumentError
from ..boxes import Box, Region
from ..pointing import question_about, regions_of, words_of
from .samples import Sample
from .session import Session
from .tasks import IDENTIFY, split
from .turns import Said, Sheet

_DRAW_A_BOX = "there is no box to ask about; draw one on the picture, or type it as {<left><top><right><bottom>}"


class Talk(QObject):
    """Keeps each answer with its question, even while another picture is shown."""

    asked = Signal(object)
    """A :class:`.Said` was added to the sheet that is shown."""
    unanswered = Signal(object)
    """This question on the sheet that is shown failed."""
    written = Signal(object)
    """The text of this answer has grown."""
    boxes_changed = Signal()
    answered = Signal(object)
    """A complete :class:`~tinygptv.runtime.Answer`."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._answers: dict[int, tuple[Sheet, Said, Said | None]] = {}
        """By request number: the sheet, the turn, and the previous turn if the answer is being regenerated."""
        worker = session.model.worker
        worker.wrote.connect(self._wrote)
        worker.answered.connect(self._answered)
        worker.failed.connect(self._failed)
        worker.finished.connect(self._finished)
        session.sample_opened.connect(self._ask_about_sample)
        session.sheet_closed.connect(self._closed)

    @property
    def answering(self) -> Said | None:
        """The question on the shown sheet that is being answered, if any."""
        return next((said for sheet, said, _ in self._answers.values() if sheet is self._session.sheet), None)

    def ask(self, question: str, box: Box | None = None) -> None:
        """Ask about the picture that is shown, or about the given box of it, which the question names."""
        self._session.began.emit("Answering …")
        sheet = self._session.sheet
        if sheet is None:
            self._session.failed.emit("there is no picture to ask about; open one first")
            return
        said = self._said(sheet, question, box)
        sheet.said.append(said)
        sheet.shown = said
        self.asked.emit(said)
        if said.task == IDENTIFY.name and said.box is None:
            self._session.failed.emit(_DRAW_A_BOX)
            self._fail(sheet, said)
        else:
            self._request(sheet, said, None)

    def ask_about(self, edges: QRectF) -> None:
        """Ask what is in a box that was drawn on the shown picture."""
        session = self._session
        assert session.sheet is not None
        if session.loading or session.opening or session.manifest is None:
            session.failed.emit(
                f"{session.loading or 'a picture'} is still being loaded; draw the box again after that"
            )
            return
        width, height = session.sheet.picture.width, session.sheet.picture.height
        right, bottom = min(edges.right(), width), min(edges.bottom(), height)  # floats may be a little more
        try:
            question = question_about(session.manifest, (edges.left(), edges.top(), right, bottom), width, height)
        except ArgumentError as error:  # where the model sees nothing of the picture
            session.failed.emit(str(error))
            return
        left, top = min(int(edges.left()), width - 1), min(int(edges.top()), height - 1)
        self.ask(question, Box(left, top, max(left + 1, round(right)), max(top + 1, round(bottom))))

    def ask_again(self) -> None:
        """Sample another answer to the last question; the previous answer is kept if this fails."""
        session, sheet = self._session, self._session.sheet
        if sheet is None or not sheet.said or self.answering or session.loading or session.opening:
            return
        session.began.emit("Answering …")
        said, before = sheet.said[-1], replace(sheet.said[-1])
        sheet.known_from = min(sheet.known_from, len(sheet.said) - 1)
        said.answer = said.text = said.note = ""
        said.regions, said.answered, said.model = (), False, session.bundle_name
        sheet.shown = said
        self._request(sheet, said, before)
        self.written.emit(said)
        self.boxes_changed.emit()

    def take_back(self, said: Said) -> None:
        """Remove a failed question from the shown sheet."""
        sheet = self._session.sheet
        assert sheet is not None
        sheet.said.remove(said)
        if sheet.shown is said:
            sheet.shown = None
        self._session.switched.emit()

    def start_over(self) -> None:
        """Begin a new conversation about the shown picture."""
        sheet, before = self._session.sheet, self._session.start_over()
        for number, (other, said, old) in self._answers.items():
            if before is not None and other is sheet:  # what still comes belongs to the old conversation
                self._answers[number] = (before, said, old)
        self._session.state_changed.emit()

    def show_boxes(self, said: Said) -> None:
        """Show the boxes of an answer."""
        assert self._session.sheet is not None
        self._session.sheet.shown = said
        self.boxes_changed.emit()

    def copy_answer(self) -> None:
        """Copy the last answer, if there is one, to the clipboard."""
        said = self._session.sheet.said if self._session.sheet else []
        if said and (text := said[-1].answer or said[-1].text):
            QGuiApplication.clipboard().setText(text)

    # What the worker tells

    def _wrote(self, request: int, text: str) -> None:
        _, said, _ = self._answers[request]
        said.answer = text
        self.written.emit(said)

    def _answered(self, request: int, answer: Answer, regions: tuple[Region, ...]) -> None:
        assert self._session.manifest is not None
        sheet, said, _ = self._answers[request]
        said.answer, said.text = words_of(self._session.manifest, answer.text), answer.text
        said.regions, said.note = regions, _note(answer, bool(regions))
        said.answered = bool(answer.token_ids) or answer.finish_reason != "cancelled"
        self.answered.emit(answer)
        self.written.emit(said)
        if sheet is self._session.sheet:
            self.boxes_changed.emit()

    def _failed(self, request: int, error: str) -> None:
        if request in self._answers:
            sheet, said, before = self._answers.pop(request)
            if before is None:
                self._fail(sheet, said)
            else:
                self._restore(said, before)

    def _finished(self, request: int) -> None:
        if request in self._answers:
            _, said, before = self._answers.pop(request)
            if before is not None and not (said.answer or said.regions):
                self._restore(said, before)
            elif not (said.answer or said.note or said.answered):  # it was stopped while the model looked
                said.note = "stopped"
            self.written.emit(said)
            self._session.state_changed.emit()

    # Inside

    def _ask_about_sample(self, sample: Sample) -> None:
        if self._session.bundle_name:  # otherwise the window shows why not already
            assert self._session.manifest is not None
            knows = not sample.tag or sample.tag in self._session.manifest.tasks
            self.ask(f"{sample.tag} {sample.words}".strip() if knows else sample.plain)

    def _closed(self, sheet: Sheet) -> None:
        if any(other is sheet for other, _, _ in self._answers.values()):
            self._session.model.cancel()

    def _said(self, sheet: Sheet, question: str, box: Box | None) -> Said:
        """A turn for display: the tag and the box of the question are replaced with readable text."""
        manifest = self._session.manifest
        if manifest is None:
            return Said(question, words=question)
        task, words = split(question, manifest.tasks)
        shown = words_of(manifest, words) if task else words
        if task is not None and task.tag == IDENTIFY.tag:
            if box is not None:  # then its name says it all
                shown = ""
            elif regions := regions_of(manifest, words, sheet.picture.width, sheet.picture.height):
                box = regions[0].boxes[0]
        new = bool(sheet.said) and sheet.known_from == len(sheet.said)
        model = self._session.bundle_name
        divider = f"From here on {model} answers. It does not know what was said above." if new else ""
        return Said(question, task.name if task else "", shown, box=box, model=model, divider=divider)

    def _request(self, sheet: Sheet, said: Said, before: Said | None) -> None:
        session = self._session
        goes_on = not self._answers and session.looking in (0, sheet.picture.number)
        options = session.settings.options(at_random=before is not None)
        turns = sheet.known(said)
        number = session.model.ask(sheet.picture, said.question, turns, options, goes_on=goes_on)
        self._answers[number] = (sheet, said, before)
        session.state_changed.emit()

    def _fail(self, sheet: Sheet, said: Said) -> None:
        said.note = said.note or "failed"
        self.written.emit(said)
        if sheet is self._session.sheet and not said.answer:
            self.unanswered.emit(said)

    def _restore(self, said: Said, before: Said) -> None:
        vars(said).update(vars(before))
        self.written.emit(said)
        self.boxes_changed.emit()


def _note(answer: Answer, boxes: bool) -> str:
    """Remarks about an answer, besides its text."""
    parts = []
    if answer.finish_reason == "cancelled":
        parts.append("stopped")
    elif answer.finish_reason == "length":
        parts.append("cut off at the longest length (see Settings)")
    elif not answer.text.strip() and not boxes:
        parts.append("the answer is empty")
    if answer.truncated_turns:
        parts.append(
            f"the first {answer.truncated_turns} questions no longer fit into the model's context and were left out"
        )
    return "; ".join(parts)
