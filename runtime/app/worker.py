"""What takes time, in a thread of its own: loading a bundle, looking at a picture, answering.

The one module of the app that computes. Qt carries signals over into this thread, where the slots run one after
another; their results go back as signals. What the other thread may touch meanwhile is a
:class:`~tinygptv.runtime.Cancellation`.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PySide6.QtCore import QObject, QThread, Signal, Slot
from PySide6.QtGui import QImage

from .. import Cancellation, CancellationError, Chat, TinyGPTV, TinyGPTVError
from ..boxes import Region
from ..drawing import draw_regions
from ..pointing import regions_of, words_of

_LONGEST_SHOWN = 2048
"""Pixels of a picture's longer side on the screen; the model is shown the picture itself."""


class Worker(QObject):
    """Owns the model and the conversation. Made in the window's thread, then moved to its own."""

    unloaded = Signal()
    """The bundle that was there makes room for the next."""
    loaded = Signal(object, object)
    """This bundle is there, the demo if None, with its :class:`~tinygptv.runtime.bundle.manifest.Manifest`, and nothing
    said yet."""
    opened = Signal(QImage, str)
    """A picture of this name is there, and nothing said yet."""
    over = Signal()
    """What was said about the picture is forgotten."""
    seen = Signal(float)
    """The model has looked at the picture, in so many seconds."""
    wrote = Signal(str)
    """The answer so far, without boxes."""
    answered = Signal(object, int)
    """The complete :class:`~tinygptv.runtime.Answer`, and how many boxes it has."""
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
        self._plain = QImage()
        self._chat: Chat | None = None

    @Slot(object, object)
    def load(self, bundle: Path | None, cancellation: Cancellation) -> None:
        """Load a bundle, the demo if None, in the place of the one that is open, and show it the picture."""
        with self._job():
            if QThread.currentThread().isInterruptionRequested():  # the window is gone
                return
            # Looks at the files and opens no graph: a wrong folder must not cost the model that is there.
            TinyGPTV.load(bundle, memory="low").close()
            self._model = self._chat = None  # two at once would not fit in memory
            self.unloaded.emit()
            gc.collect()  # an answer that failed halfway refers to itself
            self._model = self._load(bundle)
            self.loaded.emit(bundle, self._model.manifest)
            self._draw(())
            self._begin(cancellation)

    @Slot(object, object)
    def open(self, source: str | QImage, cancellation: Cancellation) -> None:
        """Open a picture, from a path or the clipboard, and let the model look at it."""
        with self._job():
            cancellation.check()  # it may have had to wait, and be wanted no more
            picture = draw_regions(_as_pillow(source) if isinstance(source, QImage) else source, ())  # upright, RGB
            self._picture, self._shown = picture, _small(picture)
            self._plain = _as_qt(self._shown)
            self._chat = None
            self.opened.emit(self._plain, name_of(source))
            if self._model:  # otherwise the window shows why already
                self._begin(cancellation)

    @Slot(str, object)
    def ask(self, question: str, cancellation: Cancellation) -> None:
        """Ask about the picture, or without one."""
        with self._job():
            chat = self._begin(cancellation)
            assert self._model is not None
            manifest = self._model.manifest
            self._draw(())
            text = ""
            with chat.stream(question, cancellation=cancellation) as stream:
                for piece in stream:
                    text += piece
                    self.wrote.emit(words_of(manifest, text))
                answer = stream.answer
            regions = regions_of(manifest, answer.text, *self._shown.size) if self._shown else ()
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
            self.drawn.emit(_as_qt(draw_regions(self._shown, regions)) if regions else self._plain)

    @contextmanager
    def _job(self) -> Iterator[None]:
        """Whatever happens, the window gets a signal when it ended."""
        try:
            yield
        except CancellationError:
            pass
        except TinyGPTVError as error:
            self.failed.emit(str(error))
        except Exception as error:
            self.failed.emit(f"{type(error).__name__}: {error}")
            traceback.print_exc()  # raised, it would be kept as the last one, and the model with it
        finally:
            self.finished.emit()


def name_of(source: str | QImage) -> str:
    """What people call a picture."""
    return Path(source).name if isinstance(source, str) else "pasted picture"


def _small(picture: Image.Image) -> Image.Image:
    """What is enough for the screen; the picture itself if that is no more."""
    scale = _LONGEST_SHOWN / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), reducing_gap=3)


def _as_pillow(image: QImage) -> Image.Image:
    """A copy of mode RGBA."""
    rgba = image.convertToFormat(QImage.Format.Format_RGBA8888)
    return Image.frombytes("RGBA", (rgba.width(), rgba.height()), bytes(rgba.constBits()))


def _as_qt(picture: Image.Image) -> QImage:
    """A copy that Qt owns, of mode RGB."""
    width, height = picture.size
    return QImage(picture.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()
