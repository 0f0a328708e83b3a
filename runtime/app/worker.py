"""What takes time, in a thread of its own: loading a bundle, looking at a picture, answering.

The one module of the app that computes. Qt carries signals over into this thread, where the slots run one after
another; their results go back as signals. What the other thread may touch meanwhile is a
:class:`~tinygptv.runtime.Cancellation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtGui import QImage

from .. import Cancellation, CancellationError, Chat, TinyGPTV, TinyGPTVError
from ..boxes import Region, parse_boxes, plain_text
from ..drawing import draw_regions

_LONGEST_SHOWN = 2048
"""Pixels of a picture's longer side on the screen; the model is shown the picture itself."""


class Worker(QObject):
    """Owns the model and the conversation. Made in the window's thread, then moved to its own."""

    loaded = Signal(object)
    """This bundle is there, the demo if None, and nothing said yet."""
    opened = Signal(QImage, str)
    """A picture of this name is there, and nothing said yet."""
    over = Signal()
    """What was said about the picture is forgotten."""
    seen = Signal(float)
    """The model has looked at the picture, in so many seconds."""
    wrote = Signal(str)
    """The answer so far, without boxes."""
    answered = Signal(object, int)
    """The whole :class:`~tinygptv.runtime.Answer`, and how many boxes it has."""
    drawn = Signal(QImage)
    """The picture with the answer's boxes, or without any."""
    failed = Signal(str)
    """One line on what went wrong."""
    finished = Signal()
    """One of the slots has ended, well or not."""

    def __init__(self, load: Callable[[Path | None], TinyGPTV]) -> None:
        """
        Args:
            load: Loads a bundle; called in the worker's thread.
        """
        super().__init__()
        self._load = load
        self._model: TinyGPTV | None = None
        self._picture: Image.Image | None = None
        self._shown: Image.Image | None = None
        self._chat: Chat | None = None

    @Slot(object, object)
    def load(self, bundle: Path | None, cancellation: Cancellation) -> None:
        """Load a bundle, the demo if None, in the place of the one that is open, and show it the picture."""
        with self._job():
            # Looks at the files and opens no graph: a wrong folder must not cost the model that is there.
            TinyGPTV.load(bundle, memory="low").close()
            self._model = self._chat = None  # two at once would not fit in memory
            self._model = self._load(bundle)
            self.loaded.emit(bundle)
            self._draw(())
            self._begin(cancellation)

    @Slot(object, object)
    def open(self, source: str | bytes, cancellation: Cancellation) -> None:
        """Open a picture, a path or the bytes of a file, and let the model look at it."""
        with self._job():
            cancellation.check()  # it may have had to wait, and be wanted no more
            picture = draw_regions(source, ())  # upright, RGB
            self._picture, self._shown = picture, picture.copy()
            self._shown.thumbnail((_LONGEST_SHOWN, _LONGEST_SHOWN), reducing_gap=3)
            self._chat = None
            self.opened.emit(_as_qt(self._shown), name_of(source))
            self._begin(cancellation)

    @Slot(str, object)
    def ask(self, question: str, cancellation: Cancellation) -> None:
        """Ask about the picture, or without one."""
        with self._job():
            chat = self._begin(cancellation)
            self._draw(())
            text = ""
            stream = chat.stream(question, cancellation=cancellation)
            for piece in stream:
                text += piece
                self.wrote.emit(plain_text(text))
            answer = stream.answer
            regions = parse_boxes(answer.text, *self._shown.size) if self._shown else ()
            self._draw(regions)
            self.answered.emit(answer, sum(len(region.boxes) for region in regions))

    @Slot()
    def reset(self) -> None:
        """Forget what was said about the picture."""
        with self._job():
            if self._chat:
                self._chat.reset()
            self.over.emit()
            self._draw(())

    def _begin(self, cancellation: Cancellation) -> Chat:
        """The conversation; a new one takes the time of looking at the picture."""
        if self._chat is None:
            if self._model is None:
                raise TinyGPTVError("no model is loaded; choose a bundle")
            self._chat = self._model.chat(self._picture, cancellation=cancellation)
            for image in self._chat.images:
                self.seen.emit(image.preprocess_seconds + image.encode_seconds + image.project_seconds)
        return self._chat

    def _draw(self, regions: Sequence[Region]) -> None:
        if self._shown:
            self.drawn.emit(_as_qt(draw_regions(self._shown, regions)))

    @contextmanager
    def _job(self) -> Iterator[None]:
        """Whatever happens, the window is told how it ended."""
        try:
            yield
        except CancellationError:
            pass
        except TinyGPTVError as error:
            self.failed.emit(str(error))
        except Exception as error:
            self.failed.emit(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.finished.emit()


def name_of(source: str | bytes) -> str:
    """What people call a picture."""
    return Path(source).name if isinstance(source, str) else "pasted picture"


def _as_qt(picture: Image.Image) -> QImage:
    """A copy that Qt owns, of mode RGB."""
    width, height = picture.size
    return QImage(picture.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()
