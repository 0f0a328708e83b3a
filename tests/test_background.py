"""``TinyGPTV.load(..., background=True)``: what needs a graph waits for that graph, and for no other."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import QUESTION, plain_environment, spoil
from tinygptv.runtime import BundleError, Cancellation, CancellationError, TinyGPTV, open_sessions
from tinygptv.runtime.bundle.manifest import DECODER, GRAPHS, PROJECTOR, VISION_ENCODER
from tinygptv.runtime.cli import main


class Gates:
    """Holds up the opening of each graph until its gate is opened."""

    def __init__(self) -> None:
        self._gates = {name: threading.Event() for name in GRAPHS}
        self.sessions: list[weakref.ref[object]] = []

    def open(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()

    def wait(self, name: str) -> None:
        assert self._gates[name].wait(60)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    gates = Gates()
    opened = open_sessions.open_session

    def held_up(folder, graph, *arguments):
        gates.wait(graph.file.removesuffix(".onnx"))
        session = opened(folder, graph, *arguments)
        gates.sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(open_sessions, "open_session", held_up)
    yield gates
    gates.open(*GRAPHS)


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path]) -> Path:
    return golden_bundle(3, "fp32")


def test_an_image_is_encoded_before_the_decoder_is_there(
    bundle: Path, gates: Gates, photo: Path, speaking_model: TinyGPTV
) -> None:
    with TinyGPTV.load(bundle, background=True) as model:
        gates.open(VISION_ENCODER, PROJECTOR)
        image = model.encode_image(photo)
        assert image == speaking_model.encode_image(photo)
        stream = model.stream(image, QUESTION, max_new_tokens=12)  # which computes nothing yet
        gates.open(DECODER)
        assert stream.answer.token_ids == speaking_model.ask(photo, QUESTION, max_new_tokens=12).token_ids


def test_text_alone_needs_no_vision(bundle: Path, gates: Gates, speaking_model: TinyGPTV) -> None:
    gates.open(DECODER)
    with TinyGPTV.load(bundle, background=True) as model:
        found = model.ask(None, QUESTION, max_new_tokens=12)
    assert found.token_ids == speaking_model.ask(None, QUESTION, max_new_tokens=12).token_ids


def test_waiting_is_part_of_what_is_waited_for(bundle: Path, gates: Gates, photo: Path) -> None:
    def open_slowly() -> None:
        for name in (VISION_ENCODER, PROJECTOR, DECODER):
            time.sleep(0.2)
            gates.open(name)

    with TinyGPTV.load(bundle, background=True) as model:
        opening = threading.Thread(target=open_slowly)
        opening.start()
        timings = model.ask(photo, QUESTION, max_new_tokens=3).timings
        opening.join()
    assert min(timings.image_encode, timings.projector, timings.prefill) > 0.1


def test_otherwise_loading_waits_for_all(bundle: Path, gates: Gates) -> None:
    loaded: list[TinyGPTV] = []
    loading = threading.Thread(target=lambda: loaded.append(TinyGPTV.load(bundle)))
    loading.start()
    for name in GRAPHS:
        assert not loaded
        gates.open(name)
    loading.join(60)
    assert len(loaded) == 1 and len(gates.sessions) == len(GRAPHS)


@pytest.mark.parametrize("broken", GRAPHS)
def test_a_broken_graph_is_reported_by_what_needs_it(broken: str, bundle: Path, photo: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil(copied, f"{broken}.onnx", lambda data: bytes(len(data)))
    with pytest.raises(BundleError) as at_once:
        TinyGPTV.load(copied)
    assert str(copied / f"{broken}.onnx") in str(at_once.value)
    with TinyGPTV.load(copied, background=True) as model:
        if broken == DECODER:
            image = model.encode_image(photo)
            uses = [lambda: model.ask(image, QUESTION), lambda: next(model.stream(None, QUESTION))]
        else:
            assert model.ask(None, QUESTION, max_new_tokens=3).token_ids
            uses = [lambda: model.encode_image(photo), lambda: model.ask(photo, QUESTION)]
        for use in uses * 2:
            with pytest.raises(BundleError) as later:
                use()
            assert str(later.value) == str(at_once.value)


def test_the_bundles_files_are_looked_at_first(bundle: Path, gates: Gates, tmp_path: Path) -> None:
    """What can be told without opening a graph is told at once."""
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    os.truncate(copied / f"{DECODER}.onnx.data", 1000)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data has 1,000 bytes"):
        TinyGPTV.load(copied, background=True)


def test_cancelling_ends_the_wait(bundle: Path, gates: Gates, photo: Path) -> None:
    with TinyGPTV.load(bundle, background=True) as model:

        def soon() -> Cancellation:
            cancellation = Cancellation()
            threading.Timer(0.1, cancellation.cancel).start()
            return cancellation

        with pytest.raises(CancellationError):
            model.encode_image(photo, cancellation=soon())
        answer = model.ask(None, QUESTION, cancellation=soon())
        assert (answer.finish_reason, answer.token_ids) == ("cancelled", ())
        with pytest.raises(CancellationError):
            model.ask_many([(photo, QUESTION)], cancellation=soon())

        async def leave() -> None:
            stream = model.astream(None, QUESTION)
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        gates.open(*GRAPHS)
        assert model.ask(photo, QUESTION, max_new_tokens=3).token_ids, "nothing is broken"


def test_closed_while_it_loads(bundle: Path, gates: Gates) -> None:
    """What is opened later is released at once."""
    gc.collect()
    gc.disable()
    try:
        TinyGPTV.load(bundle, background=True).close()
        gates.open(*GRAPHS)
        for thread in threading.enumerate():
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join(60)
        assert len(gates.sessions) == len(GRAPHS)
        assert all(session() is None for session in gates.sessions)
    finally:
        gc.enable()


def test_a_program_that_ends_while_it_loads(bundle: Path, tmp_path: Path) -> None:
    script = "import sys; from tinygptv import TinyGPTV; TinyGPTV.load(sys.argv[1], background=True); print('over')"
    done = subprocess.run(
        [sys.executable, "-c", script, bundle], capture_output=True, env=plain_environment(tmp_path), timeout=60
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"over"], b"")


@pytest.mark.parametrize("held_up", [VISION_ENCODER, DECODER])
def test_ctrl_c_while_the_command_waits(
    held_up: str, bundle: Path, gates: Gates, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates.open(*set(GRAPHS) - {held_up})
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupting = threading.Timer(1, signal.raise_signal, [signal.SIGINT])
    try:
        interrupting.start()
        assert main(["ask", str(photo), QUESTION, "--bundle", str(bundle)]) == 130
    finally:
        interrupting.cancel()
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().out == ""


# Progress


def test_progress(bundle: Path) -> None:
    """The share of the weights that is ready, up to all of it, before ``load`` returns."""
    shares: list[float] = []
    with TinyGPTV.load(bundle, progress=shares.append):
        assert len(shares) == len(GRAPHS) and shares == sorted(shares)
        assert shares[0] > 0 and shares[-1] == 1


def test_progress_in_the_background(bundle: Path, gates: Gates) -> None:
    shares: list[float] = []
    reported = threading.Event()

    def progress(share: float) -> None:
        shares.append(share)
        reported.set()

    with TinyGPTV.load(bundle, background=True, progress=progress):
        assert shares == []
        gates.open(DECODER)
        assert reported.wait(60) and len(shares) == 1
        gates.open(*GRAPHS)


def test_progress_with_little_memory(bundle: Path, photo: Path) -> None:
    """Comes with the graphs, each of which counts once."""
    shares: list[float] = []
    with TinyGPTV.load(bundle, memory="low", progress=shares.append) as model:
        assert shares == []
        for question in (QUESTION, "why?"):
            model.ask(photo.read_bytes(), question, max_new_tokens=2)
        assert len(shares) == len(GRAPHS) and shares[-1] == 1


def test_what_progress_raises_is_raised(bundle: Path) -> None:
    def progress(share: float) -> None:
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        TinyGPTV.load(bundle, progress=progress)
