"""What ONNX files say of packed weights: read as the onnx package reads it, and added without touching the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tinygptv.runtime.bundle.manifest import GRAPHS, read_manifest
from tinygptv.runtime.tuning.find import FOLDER
from tinygptv.runtime.tuning.make import tune
from tinygptv.runtime.tuning.packed_weights import packed_weights, with_packed_weights


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


def test_graphs_are_read_as_onnx_reads_them(bundle: Path) -> None:
    tune(bundle, read_manifest(bundle))
    for name in GRAPHS:
        portable = (bundle / f"{name}.onnx").read_bytes()
        assert with_packed_weights(portable, {}) == portable
        model = onnx.load_from_string((bundle / FOLDER / f"{name}.onnx").read_bytes())
        found = packed_weights(model.SerializeToString())
        assert list(found) == [tensor.name for tensor in model.graph.initializer]
        entries = {
            tensor.name: {entry.key for entry in tensor.external_data if entry.key.startswith("prepacked")}
            for tensor in model.graph.initializer
        }
        assert {name: {one.entry for one in packed} for name, packed in found.items()} == entries
        assert any(entries.values())
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
        original = onnx.load_from_string(portable)
        for tensor in original.graph.initializer:
            del tensor.external_data[:]
        assert model == original  # nothing else was touched


def test_what_is_no_graph_is_refused(bundle: Path) -> None:
    data = (bundle / "decoder.onnx").read_bytes()
    for wrong in (data[:-1], data[: len(data) // 2], b"\xff" * 20, b"\x0f"):
        with pytest.raises(ValueError, match=r"expected an ONNX file|ends (at|within)"):
            packed_weights(wrong)
