"""What several test modules share: the golden checkpoints, and bundles exported from them by the command itself."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers whose threads spin would wait for each other; torch reads its variable when it is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "TINYGPTV_THREADS": "1"}

import hashlib
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sibling_layouts import write_layout
from tinygptv.export.cli import main as export_main
from tinygptv.export.sources import open_model
from tinygptv.export.sources.model import Model, Network
from tinygptv.export.torch_ops import Observe, TorchOps, Value
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import FILE_NAME as MANIFEST
from tinygptv.runtime.bundle.manifest import read_manifest, write_manifest
from tinygptv.runtime.language.decoder import DecoderState
from tinygptv.runtime.language.prefix_cache import PrefixCache
from torch import Tensor
from variants import GOLDEN, Published, published_files

# A test module may import onnxruntime itself, and no telemetry is sent from a test run.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.pop("TINYGPTV_BUNDLE", None)  # where none is named, the demo model answers

GOLDEN_STAGES = (3, 4)
Refusal = Callable[..., str]
PUBLISHED = {"llava-phi": "fused bf16", "mipha": "separate bf16", "tinyllava": "one folder", "bunny": "merged"}
"""The layout of each sibling's golden files."""

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "what?"
"""To it and :func:`photo`, :func:`speaking_model` answers with varied text: ids 243, 262, 30, 294, 256, 294, 256 ..."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first: at the end, what is left is short, and several workers share it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def bundle_with(source: Path, folder: Path, **changes: object) -> Path:
    """A copy of a bundle in ``folder``, whose manifest has other fields."""
    shutil.copytree(source, folder)
    write_manifest(replace(read_manifest(source), **changes), folder)
    return folder


def spoil(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file but not its size, with a manifest that vouches for it: as for weights, too large to be hashed."""
    data = (bundle / name).read_bytes()
    changed = change(data)
    assert len(changed) == len(data) and changed != data
    (bundle / name).write_bytes(changed)
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    was, now = (hashlib.sha256(content).hexdigest() for content in (data, changed))
    (bundle / MANIFEST).write_text(text.replace(was, now), encoding="utf-8")


def heed_interrupts() -> None:
    """For a process that gets Ctrl-C in a test: a shell's background job, which a test run may be, ignores it.

    What is ignored is handed on to other processes.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def plain_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment for another one, with an own home, and without what speaks to tinygptv.

    ``CI`` goes as well: onnxruntime's telemetry is off where it is set, and a test of it could not fail.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TINYGPTV_", "ORT_", "XDG_", "PYTHON", "LC_", "LANG")) and name != "CI"
    }
    return kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | more


def export_arguments(files: dict[str, str], output: Path, *more: str) -> list[str]:
    """Arguments of ``tinygptv-export``."""
    return [*(text for option in files.items() for text in option), "-o", str(output), *more]


def open_published(files: dict[str, str]) -> Model:
    """The model in files that options name."""
    return open_model(
        **{name.removeprefix("--"): value for name, value in files.items()} | {"stage": int(files["--stage"])}
    )


def golden_checkpoint(stage: int) -> Model:
    """The tensors of a golden stage, read as they are asked for."""
    return open_published(published_files(stage))


def computed(
    networks: Mapping[str, Network],
    tensors: Mapping[str, Tensor],
    graph: str,
    x: Tensor,
    observe: Observe = lambda name, x: None,
) -> Tensor:
    """What the torch twin of a graph makes of its input."""
    return networks[graph].part.run(TorchOps(tensors, observe), networks[graph].sizes, Value(x)).data


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Bundle of a golden stage at a precision, exported once a test session by the command; ``int8 cache`` is int8 with
    such a KV cache."""
    made: dict[tuple[int, str], Path] = {}

    def bundle(stage: int, precision: str) -> Path:
        if (stage, precision) not in made:
            output = tmp_path_factory.mktemp("golden bundles é") / f"stage{stage}-{precision}"
            how = ("--kv-cache", "int8") if precision == "int8 cache" else ("--precision", precision)
            arguments = export_arguments(published_files(stage), output, *how)
            assert export_main(arguments) == 0
            made[stage, precision] = output
        return made[stage, precision]

    return bundle


@pytest.fixture(scope="session")
def sibling_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Bundle of a family's layout at a precision, exported once a test session by the command; named as the family."""
    made: dict[tuple[str, str, str], Path] = {}

    def bundle(family: str, layout: str | None = None, precision: str = "fp32") -> Path:
        key = (family, layout or PUBLISHED[family], precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("sibling é")
            files = write_layout(*key[:2], folder)
            assert export_main(export_arguments(files, folder / family, "--precision", precision)) == 0
            made[key] = folder / family
        return made[key]

    return bundle


@pytest.fixture(scope="session")
def expected() -> Callable[[int], dict[str, np.ndarray]]:
    """What the published code computed for a golden stage."""

    def load(stage: int) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"stage{stage}" / "expected.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """The stage 4 golden model in fp32: random weights, a 320-word vocabulary, a context of 256."""
    with TinyGPTV.load(golden_bundle(4, "fp32")) as model:
        yield model


@pytest.fixture(scope="session")
def speaking_model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """The stage 3 golden model in fp32, whose texts vary more."""
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gradient, 60 x 40 pixels, under a name with a space and an accent."""
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 255 // 60, y * 255 // 40, 255 - x * 255 // 60], axis=2).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "un été.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions the decoder was given, one number a run; what was computed before is kept."""
    counts: list[int] = []
    run = DecoderState.run

    def counting(state: DecoderState, inputs_embeds: np.ndarray, *arguments: Any, **named: Any) -> np.ndarray:
        counts.append(inputs_embeds.shape[1])
        return run(state, inputs_embeds, *arguments, **named)

    monkeypatch.setattr(DecoderState, "run", counting)
    return counts


@pytest.fixture
def fed(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As ``runs``, but what an earlier test asked the same model is no part of this one."""
    monkeypatch.setattr(PrefixCache, "take", lambda cache, wanted: None)
    return runs


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Exports by the command and returns the one line that it must be refused with."""

    def export(files: dict[str, str], *more: str, begun: bool = False) -> str:
        output = tmp_path / "made here" / "bundle"
        output.parent.mkdir(exist_ok=True)
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert export_main(export_arguments(files, output, *more)) == 1
        assert warned == [], "they would be further lines on stderr"
        captured = capsys.readouterr()
        *progress, message = captured.err.splitlines()
        assert captured.out == ""
        assert captured.err.endswith(f"{message}\n")
        assert message.startswith("tinygptv-export: ")
        assert "Traceback" not in captured.err
        assert bool(progress) == begun, "whether progress was shown before the error"
        assert list(output.parent.iterdir()) == []
        return message

    return export


@pytest.fixture
def golden() -> Published:
    """What is in the published files of the stage 4 golden checkpoint, to be altered and written out."""
    return Published.golden(4)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: no build/ of earlier versions gets into it, or is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "golden")
    source = shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built
