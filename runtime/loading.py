"""Opens a bundle's folder: selects the copy of its graphs, and loads everything that answers need."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from .bundle.manifest import EMBEDDINGS, TOKENIZER, Manifest, read_manifest
from .bundle.sessions import import_onnxruntime
from .engine import Engine
from .errors import ArgumentError, BundleError
from .language.embeddings import TokenEmbeddings
from .language.tokenizer import read_tokenizer
from .memory_needs import check_memory, shortage_told
from .open_sessions import OpenSessions, open_graph
from .tuning.find import Tuned, find_tuned
from .tuning.make import tune_if_possible
from .vision.cache import ImageCache

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TRIES = 5
"""Maximum attempts to open a graph while another process tunes the bundle."""
DEMO_BUNDLE = Path(__file__).parent / "demo"
"""The small trained model that is included in the package."""

MemoryMode = Literal["default", "low"]

THREADS_VARIABLE = "TINYGPTV_THREADS"
"""Environment variable with the default number of threads."""


def load_engine(
    folder: Path,
    threads: int | None,
    memory: MemoryMode,
    tune: bool,
    image_cache: str | os.PathLike[str] | None,
    background: bool,
    progress: Callable[[float], object] | None = None,
) -> Engine:
    """Open a bundle; arguments and errors as for :meth:`.TinyGPTV.load`."""
    if threads is None:
        threads = _threads_of_environment()
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads is {threads}; expected at least 1")
    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        # More would take turns: 100 of them on 2 cores took 19 seconds for what 2 do in one.
        warnings.warn(
            f"threads is {threads}, and this machine has {cores}: as many are used",
            RuntimeWarning,
            stacklevel=3,  # the caller of TinyGPTV.load
        )
        threads = cores
    if memory not in get_args(MemoryMode):
        raise ArgumentError(f"memory is {memory!r}; expected one of {', '.join(get_args(MemoryMode))}")
    manifest = read_manifest(folder)
    import_onnxruntime()
    tuned = tune_if_possible(folder, manifest, cache=folder == DEMO_BUNDLE) if tune else find_tuned(folder, manifest)
    is_tuned = tuned is not None
    check_memory(manifest, memory, is_tuned)
    images = ImageCache(manifest, None if image_cache is None else Path(image_cache))
    opened = _Opener(folder, manifest, threads, tuned, progress)
    telling = partial(shortage_told, manifest, memory, is_tuned)
    with telling():
        sessions = OpenSessions(opened, manifest, memory == "low")
        table = TokenEmbeddings(folder / EMBEDDINGS, manifest.contract)
        tokenizer = read_tokenizer(folder / TOKENIZER, manifest.contract.vocab_size)
        if not background:
            sessions.wait()
    return Engine(manifest, sessions, table, tokenizer, images, telling)


class _Opener:
    """Opens a bundle's graphs, even while another process tunes it or undoes that."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        threads: int | None,
        tuned: Tuned | None,
        progress: Callable[[float], object] | None,
    ) -> None:
        self._folder, self._manifest, self._threads, self._tuned = folder, manifest, threads, tuned
        self._turn = threading.Lock()
        self._progress, self._reporting = progress, threading.Lock()
        sizes = {record.name: record.size for record in manifest.files}
        self._sizes = {name: sizes[graph.data] for name, graph in manifest.graphs.items()}
        """Size of each graph's weights in bytes."""
        self._opened: set[str] = set()

    def __call__(self, name: str) -> InferenceSession:
        """Open one of the graphs and report it; errors as for :func:`.open_graph`."""
        session = self._open(name)
        with self._reporting:  # graphs are opened by several threads
            if self._progress is not None and name not in self._opened:
                self._opened.add(name)
                self._progress(sum(self._sizes[each] for each in self._opened) / sum(self._sizes.values()))
        return session

    def _open(self, name: str) -> InferenceSession:
        for left in reversed(range(TRIES)):
            tuned = self._tuned
            try:
                return open_graph(self._folder, self._manifest, name, self._threads, tuned, self._turn)
            except (BundleError, OSError):
                # The index goes before the files that it speaks of change: if it is still there, they are damaged.
                now = find_tuned(self._folder, self._manifest)
                if now == tuned or not left:
                    raise
                self._tuned = now
        raise AssertionError


def _threads_of_environment() -> int | None:
    """The value of the variable; None if it is not set."""
    text = os.environ.get(THREADS_VARIABLE)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentError(f"{THREADS_VARIABLE} is {text!r}; expected a number of threads, at least 1")
    return int(text)
