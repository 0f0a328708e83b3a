"""Too little memory: one line that says what is needed, what there is and what would help, wherever it shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUESTION, plain_environment
from tinygptv.runtime import BundleError, MemoryShortageError, TinyGPTV, TinyGPTVError, memory_needs
from tinygptv.runtime.bundle.manifest import Manifest, read_manifest
from tinygptv.runtime.captioning import caption_each
from tinygptv.runtime.language.kv_cache import KVCache
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.memory_needs import check_memory, shortage_told
from tinygptv.runtime.system.machine import SystemMemory
from tinygptv.runtime.vision.encoder import Vision

GB = 1_000_000_000


@pytest.fixture(scope="module")
def full_size(golden_bundle: Callable[[int, str], Path]) -> Manifest:
    """A manifest with the published files' sizes."""
    manifest = read_manifest(golden_bundle(4, "int8"))
    sizes = {"vision_encoder": 1_000_000_000, "projector": 120_000_000, "decoder": 2_700_000_000}
    data = {manifest.graphs[name].data: size for name, size in sizes.items()}
    files = tuple(replace(record, size=data.get(record.name, record.size)) for record in manifest.files)
    return replace(manifest, files=files, name="tinygptv-stage4")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the system have so many GB available, and so many of swap."""

    def let(available: float | None, swap: float | None = 0) -> None:
        found = SystemMemory(8 * GB, *(None if size is None else int(size * GB) for size in (available, None, swap)))
        monkeypatch.setattr(memory_needs, "system_memory", lambda: found)

    return let


@pytest.mark.parametrize(
    ("available", "mode", "advice"),
    [
        (3.5, "default", "close other programs, or use --memory low (about 3.0 GB), or run tinygptv tune once, so "),
        (2.0, "default", "close other programs, or run tinygptv tune once, so that weights are read from the disk"),
        (0.05, "default", "4.2 GB, 0.1 GB are available: close other programs"),
        (2.0, "low", "tinygptv-stage4 needs about 3.0 GB, 2.0 GB are available: close other programs, or run tinyg"),
    ],
)
def test_it_is_told_before_anything_is_loaded(
    available: float, mode: str, advice: str, full_size: Manifest, memory: Callable[..., None]
) -> None:
    memory(available)
    with pytest.raises(MemoryShortageError) as told:
        check_memory(full_size, mode, is_tuned=False)
    assert advice in str(told.value)
    assert str(told.value).startswith("there is not enough memory: tinygptv-stage4 needs about ")
    for words, needed in (("--memory low", 3.0), ("tinygptv tune", 0.2), ("--precision int4", 3.1)):
        helps = available >= needed and not (mode == "low" and words == "--memory low")
        assert (words in str(told.value)) == (helps and not (mode == "low" and words == "--precision int4"))


@pytest.mark.parametrize(("available", "swap"), [(5, 0), (2, 3), (None, 0), (2, None)])
def test_what_may_be_enough_is_tried(
    available: float | None, swap: float | None, full_size: Manifest, memory: Callable[..., None]
) -> None:
    memory(available, swap)
    check_memory(full_size, "default", is_tuned=False)


def test_a_bundle_is_not_loaded(
    golden_bundle: Callable[[int, str], Path], memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(0.01)
    monkeypatch.setattr("tinygptv.runtime.loading.open_graph", lambda *arguments, **more: pytest.fail("loaded"))
    with pytest.raises(MemoryShortageError, match=r"needs about 0\.1 GB, 0\.0 GB are available"):
        TinyGPTV.load(golden_bundle(4, "int8"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        BundleError("a.onnx: onnxruntime 1.32.0 cannot load it ([ONNXRuntimeError] : 6 : Exception: std::bad_alloc)"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : bad allocation"),
        RuntimeError("Failed to allocate memory for requested buffer of size 52428800"),
    ],
    ids=str,
)
def test_every_library_is_understood(error: Exception, full_size: Manifest) -> None:
    told = pytest.raises(MemoryShortageError, match="there is not enough memory: tinygptv-stage4 needs")
    with told, shortage_told(full_size, "low", is_tuned=True):
        raise error
    assert issubclass(MemoryShortageError, TinyGPTVError) and issubclass(MemoryShortageError, MemoryError)


def test_other_errors_stay(full_size: Manifest) -> None:
    for error in (ValueError("x"), OSError(28, "No space left on device"), BundleError("damaged")):
        with pytest.raises(type(error)) as found, shortage_told(full_size, "low", is_tuned=False):
            raise error
        assert found.value is error


@pytest.fixture
def model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(golden_bundle(4, "int8")) as model:
        yield model


@pytest.mark.parametrize("where", [(Vision, "image_features"), (KVCache, "_grown")])
def test_while_answering(
    where: tuple[type, str], model: TinyGPTV, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the model goes on answering when there is enough again."""
    image = model.encode_image(photo) if where[0] is KVCache else photo

    def failing(*arguments: Any, **more: Any) -> np.ndarray:
        raise MemoryError

    wanted = model.ask(image, QUESTION, max_new_tokens=4).token_ids
    model._engine._images._recent.clear()
    with monkeypatch.context() as patch:
        patch.setattr(*where, failing)
        for ask in (model.ask, lambda *asked: list(model.ask_each([asked]))):
            model._engine.prefixes._idle.clear()
            with pytest.raises(MemoryShortageError, match="there is not enough memory"):
                ask(image, QUESTION)
    assert model.ask(image, QUESTION, max_new_tokens=4).token_ids == wanted


def test_the_caches_of_captions_decoded_together(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray holds free for an actor is what they take, and not many times that."""
    alive: weakref.WeakSet[KVCache] = weakref.WeakSet()
    taken = []
    reserve = KVCache.reserve

    def noting(cache: KVCache, positions: int) -> bool:
        grew = reserve(cache, positions)
        alive.add(cache)
        taken.append(sum(each.nbytes for each in alive))
        return grew

    monkeypatch.setattr(KVCache, "reserve", noting)
    with TinyGPTV.load() as demo:
        assert len(list(caption_each(demo, [photo] * 20, batch_size=8))) == 20
    manifest, nothing = read_manifest(DEMO_BUNDLE), SystemMemory(None, None, None)
    one, eight = (memory_needs.need_of(manifest, "default", True, nothing, count).unbacked for count in (1, 8))
    caches = eight - one + memory_needs.caches_of(manifest.contract)[0].bytes
    assert caches / 2 < max(taken) <= caches


LIMITED = """
import re, resource, sys
from tinygptv.runtime import cli
import tinygptv.runtime.bundle.sessions as sessions
sessions.import_onnxruntime()
if sys.argv[2] == "serve":
    import tinygptv.runtime.server.serving
now = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
limit = now + int(sys.argv[1]) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
@pytest.mark.parametrize("command", ["ask", "chat", "caption", "serve"])
def test_the_command_says_it_in_a_line(command: str, tmp_path: Path, photo: Path) -> None:
    """At whichever limit: either an answer, or one line. (Between these, Python itself and libraries may abort.)"""
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(photo, photos)
    arguments = {
        "ask": [str(photo), "what?", "--max-new-tokens", "2"],
        "chat": [str(photo), "--max-new-tokens", "2"],
        "caption": [str(photos), "--max-new-tokens", "2", "-o", str(tmp_path / "captions.jsonl")],
        "serve": ["--port", "0"],
    }[command]
    told = []
    for extra in (2, 4, 8, 16) if command == "serve" else (2, 4, 8, 16, 600):  # what is served is not ended by itself
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(extra), command, *arguments, "--threads", "1"],
            input="what?\n" if command == "chat" else "",
            capture_output=True,
            text=True,
            env=plain_environment(tmp_path),
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, f"{extra} MB: {done.stderr}"
        if done.returncode:
            *others, last = done.stderr.splitlines()
            assert done.returncode == 1 and "memory" in last, f"{extra} MB: {done.stderr}"
            assert len(others) <= 1  # that it is the demo
        else:
            assert done.stdout.strip() or command == "caption"
        told.append(done.returncode)
    assert told[0] == 1 and told[-1] == (command == "serve")
