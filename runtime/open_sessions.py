"""The sessions of a bundle's three graphs: all kept open, or opened only while they are needed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundle.checksums import verified
from .bundle.manifest import DECODER, GRAPHS, PROJECTOR, VISION_ENCODER, Manifest
from .bundle.sessions import open_session, run_options
from .cancel import Cancellation
from .errors import BundleError
from .language.decoder import Decoder
from .system.process import return_freed_memory
from .system.read_ahead import reading_ahead
from .tuning.find import Tuned
from .vision.encoder import Vision

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OpenSessions:
    """A session for each of the three graphs; safe for concurrent use."""

    def __init__(self, open_graph: Callable[[str], InferenceSession], manifest: Manifest, low_memory: bool) -> None:
        """Return at once; other threads open the graphs, and callers that need one wait for it.

        Args:
            open_graph: Opens the graph of a given name.
            manifest: The bundle's manifest.
            low_memory: Keep only the graph that was used last. If it is still in use, it stays open until that use
                ends, so an image that is encoded in the middle of an answer needs the memory of both.
        """
        self._open_graph = open_graph
        self._contract = manifest.contract
        self.low_memory = low_memory
        self._lock = threading.Lock()
        self._last: dict[str, InferenceSession] = {}
        """With low memory: the open session, by its graph's name."""
        self._kept: dict[str, Future[InferenceSession]] = {}
        if not low_memory:
            # onnxruntime packs a graph's weights on one core: the three load at the same time.
            pool = ThreadPoolExecutor(max_workers=len(GRAPHS))
            self._kept = {name: pool.submit(_opened, open_graph, name) for name in GRAPHS}
            pool.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until all graphs are open that are kept open.

        Raises:
            BundleError: onnxruntime cannot load a graph, or its tuned copy is damaged.
        """
        wait(self._kept.values())
        for session in self._kept.values():
            session.result()

    @property
    def vision(self) -> Vision:
        """The vision graphs. Not stored, as that would be a reference cycle that keeps the weights in memory."""
        return Vision(_SessionOnDemand(self, VISION_ENCODER), _SessionOnDemand(self, PROJECTOR))

    def decoder(self, cancellation: Cancellation) -> Decoder:
        """The decoder; sequences started with it keep its session open.

        Raises:
            BundleError: See :meth:`wait`.
            CancellationError: It was cancelled while the graph was not open yet.
        """
        return Decoder(self.session(DECODER, cancellation), self._contract)

    def session(self, name: str, cancellation: Cancellation) -> InferenceSession:
        """The session of a graph, opened if necessary; errors as for :meth:`decoder`."""
        if not self.low_memory:
            return cancellation.wait(self._kept[name])
        with self._lock:
            session = self._last.get(name)
            if session is None:
                self._last.clear()
                return_freed_memory()
                session = self._last[name] = _opened(self._open_graph, name)
            return session


def _opened(open_graph: Callable[[str], InferenceSession], name: str) -> InferenceSession:
    session = open_graph(name)
    return_freed_memory()
    return session


class _SessionOnDemand:
    """A session that is opened when it is run."""

    def __init__(self, sessions: OpenSessions, name: str) -> None:
        self._sessions = sessions
        self._name = name

    def run(self, outputs: list[str], inputs: dict[str, Any], cancellation: Cancellation) -> list[Any]:
        session = self._sessions.session(self._name, cancellation)
        # A picture's working memory is not kept for the next: an answer is written first.
        options = run_options(returning_memory=True)
        with cancellation.stopping(options):
            results: list[Any] = session.run(outputs, inputs, options)
        return results


def open_graph(
    folder: Path, manifest: Manifest, name: str, threads: int | None, tuned: Tuned | None, turn: threading.Lock
) -> InferenceSession:
    """Open one graph of a bundle: its tuned copy, which is verified meanwhile, or the portable one.

    Graphs with the same ``turn`` are read from the disk one after the other.

    Raises:
        BundleError: onnxruntime cannot load it, or the tuned copy is damaged.
    """
    graph = manifest.graphs[name]
    if tuned is None:
        with reading_ahead(folder / graph.data, turn):
            return open_session(folder, graph, threads)
    part = tuned.graphs[name]
    advice = "run tinygptv tune again, or copy the bundle again if that fails"
    path = tuned.model(graph)
    model = path.read_bytes()
    if hashlib.sha256(model).hexdigest() != part.model_sha256:
        raise BundleError(f"{path} is damaged; {advice}")
    with verified(tuned.home / graph.data, part.sums, advice):
        return open_session(tuned.home, graph, threads, model)
