"""What ONNX files say of packed weights: read as the onnx package reads it, and added without touching the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tinygptv.runtime.bundle.manifest import GRAPHS, read_manifest
from tinygptv.runtime.bundle.onnx_file import with_uint8_weights
from tinygptv.runtime.bundle.sessions import products_saturate
from tinygptv.runtime.tuning.find import FOLDER
from tinygptv.runtime.tuning.make import tune
from tinygptv.runtime.tuning.packed_weights import Buffer, Packed, packed_weights, with_packed_weights

ADDED = [
    Packed("prepacked_0", "MatMul+1", (Buffer(4096, 10, "0"), Buffer(8192, 20, "64"))),
    Packed("prepacked_1", "Gemm+2", ()),
]


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


def test_graphs_are_read_as_onnx_reads_them(bundle: Path) -> None:
    tune(bundle, read_manifest(bundle))
    for name in GRAPHS:
        portable = (bundle / f"{name}.onnx").read_bytes()
        assert onnx.load_from_string(with_packed_weights(portable, {})) == onnx.load_from_string(portable)
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
        here = with_uint8_weights(portable, lambda offset, _: offset) if products_saturate() else portable
        original = onnx.load_from_string(here)
        for tensor in original.graph.initializer:
            del tensor.external_data[:]
        assert model == original  # nothing else was touched


def test_all_else_of_a_graph_stays(tmp_path: Path) -> None:
    """Nodes, attributes, graphs inside graphs, inline weights, fields that onnx itself does not know."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"], alpha=0.5, name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.arange(2, dtype=np.float32), "w")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch),
            helper.make_node("Odd", ["y"], ["é"], domain="own", texts=["a", "b"], numbers=[1, -2], doc_string="why"),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("é", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(3, np.int8), name) for name in ("w", "v é")],
        "documented",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("own", 1)])
    helper.set_model_props(model, {"key": "value"})
    model.graph.initializer[1].external_data.add(key="location", value="there")
    unknown = bytes.fromhex("ba3e03") + b"new"  # field 999 of the model
    written = with_packed_weights(model.SerializeToString() + unknown, {"v é": ADDED, "nowhere": ADDED})
    assert unknown in written
    assert packed_weights(written) == {"w": (), "v é": tuple(ADDED)}
    changed = onnx.load_from_string(written)
    entries = changed.graph.initializer[1].external_data
    assert [(entry.key, entry.value) for entry in entries] == [
        ("location", "there"),
        ("prepacked_0", "MatMul+1|4096;10;0|8192;20;64"),
        ("prepacked_1", "Gemm+2"),
    ]
    del entries[1:]
    changed.DiscardUnknownFields()
    assert changed == model


def test_what_is_no_graph_is_refused(bundle: Path) -> None:
    data = (bundle / "decoder.onnx").read_bytes()
    for wrong in (data[:-1], data[: len(data) // 2], b"\xff" * 20, b"\x0f"):
        for read in (packed_weights, lambda data: with_packed_weights(data, {})):
            with pytest.raises(ValueError, match=r"expected an ONNX file"):
                read(wrong)
