"""Long operations, in a thread of their own: loading a bundle, encoding a picture, answering.

The only module of the app that computes. Qt carries signals into this thread, where the slots run one after
another; results are returned as signals. The only object shared with the other thread is a
:class:`~tinygptv.runtime.Cancellation`.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QObject, QThread, Signal, Slot
from PySide6.QtGui import QImage

from .. import AnswerOptions, Cancellation, CancellationError, Chat, TinyGPTV, TinyGPTVError
from ..boxes import Region
from ..drawing import draw_regions
from ..errors import line_of, reason_of
from ..loading import MemoryMode
from ..pointing import regions_of, words_of
from ..system.files import write_atomically
from .sources import name_of
from .turns import Picture

_LONGEST_SHOWN = 2048
"""Maximum length of the displayed picture's longer side, in pixels; the model gets the picture itself."""
Turns = Sequence[tuple[str, str]]
"""A sequence of (question, answer) pairs."""


class Load(Protocol):
    """Loads a bundle, or the demo if None, like :meth:`.TinyGPTV.load`."""

    def __call__(self, path: Path | None, /, *, threads: int | None, memory: MemoryMode) -> TinyGPTV: ...


@dataclass(frozen=True)
class Request:
    """A request to the worker; its number is returned with the results."""

    number: int
    cancellation: Cancellation


@dataclass(frozen=True)
class Source:
    """The origin of a picture."""

    what: str | QImage | bytes
    """A path, the clipboard's pixels, or the content of a file."""
    number: int
    """The number that the picture gets."""
    name: str = ""
    """Name of the picture, if it differs from that of the file."""
    turns: Turns = ()
    """Earlier turns about the picture."""
    size: tuple[int, int] | None = None
    """Width and height of the picture, if known."""


class Worker(QObject):
    """Owns the model. It is created in the window's thread, then moved to its own."""

    unloaded = Signal()
    """The previous bundle was closed, to make room for the next."""
    loaded = Signal(object, object)
    """A bundle (None for the demo) was loaded, with its :class:`~tinygptv.runtime.bundle.manifest.Manifest`."""
    opened = Signal(int, object, QImage)
    """This request opened a :class:`.Picture`; the image is the copy to display."""
    looking = Signal(int)
    """The model begins to encode the picture of this number."""
    seen = Signal(int, float)
    """The model has encoded the picture of this number, in this many seconds."""
    wrote = Signal(int, str)
    """The answer to a request so far, without boxes."""
    answered = Signal(int, object, object)
    """The complete :class:`~tinygptv.runtime.Answer` to a request, and its regions."""
    saved = Signal(str)
    """A picture was written to this path."""
    failed = Signal(int, str)
    """The error of a request, in one line."""
    finished = Signal(int)
    """A request has ended, successfully or not."""

    def __init__(self, load: Load) -> None:
        """
        Args:
            load: Loads a bundle; called in the worker's thread.
        """
        super().__init__()
        self._load = load
        self._model: TinyGPTV | None = None
        self._chat: Chat | None = None
        self._chat_of = 0
        """The number of the picture that the chat is about."""

    @Slot(object, object, object, str, object)
    def load(
        self, request: Request, bundle: Path | None, threads: int | None, memory: MemoryMode, picture: Picture | None
    ) -> None:
        """Replace the open bundle with another one (the demo if None), and encode the picture with it."""
        with self._job(request):
            if QThread.currentThread().isInterruptionRequested():  # the window is gone
                return
            # Looks at the files and opens no graph: a wrong folder must not cost the model that is there.
            TinyGPTV.load(bundle, memory="low").close()
            self._model = self._chat = None  # two at once would not fit in memory
            self.unloaded.emit()
            gc.collect()  # an answer that failed halfway refers to itself
            self._model = self._load(bundle, threads=threads, memory=memory)
            self.loaded.emit(bundle, self._model.manifest)
            if picture is not None:
                self._begin(picture, (), request.cancellation)

    @Slot(object, object)
    def open(self, request: Request, source: Source) -> None:
        """Open a picture, and encode it."""
        with self._job(request):
            what = source.what
            name = source.name or name_of("" if isinstance(what, bytes) else what)
            # Upright and RGB. A picture's file is read twice: Pillow says more of a path than of bytes.
            upright = draw_regions(_as_pillow(what) if isinstance(what, QImage) else what, ())
            _check_size(name, upright.size, source.size)
            data = what if isinstance(what, bytes) else _as_png(what) if isinstance(what, QImage) else _content(what)
            picture = Picture(source.number, name, data, *upright.size)
            self.opened.emit(request.number, picture, _as_qt(_small(upright)))
            del upright
            if self._model:  # otherwise the window shows why already
                self._begin(picture, source.turns, request.cancellation)

    @Slot(object, object, object)
    def look(self, request: Request, picture: Picture, turns: Turns) -> None:
        """Encode a picture again, with earlier turns about it."""
        with self._job(request):
            if self._model:
                self._begin(picture, turns, request.cancellation)

    @Slot(object, object, str, object, object)
    def ask(self, request: Request, picture: Picture, question: str, turns: Turns, options: AnswerOptions) -> None:
        """Ask about a picture, after earlier turns."""
        with self._job(request):
            chat = self._begin(picture, turns, request.cancellation)
            assert self._model is not None
            manifest = self._model.manifest
            text = ""
            with chat.stream(question, options=options, cancellation=request.cancellation) as stream:
                for piece in stream:
                    text += piece
                    self.wrote.emit(request.number, words_of(manifest, text))
                answer = stream.answer
            regions = regions_of(manifest, answer.text, picture.width, picture.height)
            self.answered.emit(request.number, answer, regions)

    @Slot(object, object, object, str)
    def save_picture(self, request: Request, picture: Picture, regions: Sequence[Region], path: str) -> None:
        """Write a picture at its original size, with boxes drawn on it."""
        with self._job(request):
            drawn = draw_regions(picture.data, regions)
            kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
            if kind not in Image.SAVE:
                raise TinyGPTVError(
                    f"{path} is not a name for a picture; expected one that ends in .png, .jpg or .webp"
                )
            try:
                write_atomically(Path(path), lambda file: drawn.save(file, kind))
            except OSError as error:
                raise TinyGPTVError(f"the picture cannot be saved: {line_of(error)}") from error
            self.saved.emit(path)

    def _begin(self, picture: Picture, turns: Turns, cancellation: Cancellation) -> Chat:
        """The chat about a picture; a new one has to encode the picture, unless it is still cached."""
        if self._model is None:
            raise TinyGPTVError("no model is loaded; choose a bundle")
        if self._chat is not None and self._chat_of == picture.number:
            if list(self._chat.turns) == list(turns):
                return self._chat
            if not turns:
                self._chat.reset()
                return self._chat
        self._chat = None
        self.looking.emit(picture.number)
        self._chat = self._model.chat(picture.data, turns=turns, cancellation=cancellation)
        self._chat_of = picture.number
        (image,) = self._chat.images
        self.seen.emit(picture.number, image.preprocess_seconds + image.encode_seconds + image.project_seconds)
        return self._chat

    @contextmanager
    def _job(self, request: Request) -> Iterator[None]:
        """Run a request; the window gets a signal when it ends, whatever happens."""
        try:
            yield
        except CancellationError:
            pass
        except TinyGPTVError as error:
            self.failed.emit(request.number, str(error))
        except Exception as error:
            self.failed.emit(request.number, f"{type(error).__name__}: {error}")
            traceback.print_exc()  # raised, it would be kept as the last one, and the model with it
        finally:
            self.finished.emit(request.number)


def _check_size(name: str, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and found != expected:
        raise TinyGPTVError(
            f"{name} has {found[0]} by {found[1]} pixels; the conversation expects {expected[0]} by {expected[1]}: its "
            "file was changed or is damaged, save the conversation again"
        )


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TinyGPTVError(f"{path} cannot be read: {reason_of(error)}") from error


def _small(picture: Image.Image) -> Image.Image:
    """A copy scaled down for the screen; the picture itself if it is small enough."""
    scale = _LONGEST_SHOWN / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), reducing_gap=3)


def _as_pillow(image: QImage) -> Image.Image:
    """The image as a Pillow copy in mode RGBA."""
    rgba = image.convertToFormat(QImage.Format.Format_RGBA8888)
    return Image.frombytes("RGBA", (rgba.width(), rgba.height()), bytes(rgba.constBits()))


def _as_png(image: QImage) -> bytes:
    content = QByteArray()
    buffer = QBuffer(content)
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    if not image.save(buffer, "PNG"):  # type: ignore[call-overload]
        raise TinyGPTVError("the pasted picture cannot be kept as PNG; save it as a file and open that")
    return bytes(content.data())


def _as_qt(picture: Image.Image) -> QImage:
    """The picture as an RGB copy that Qt owns."""
    width, height = picture.size
    return QImage(picture.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()
