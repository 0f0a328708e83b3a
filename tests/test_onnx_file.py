"""ONNX files changed without the onnx package: weights in the graph that multiplies by them, and as uint8."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from tinygptv.export.graph import GraphWriter
from tinygptv.export.linear import Linears
from tinygptv.export.precision import PerChannel
from tinygptv.runtime.bundle.manifest import Axis, TensorSpec
from tinygptv.runtime.bundle.onnx_file import has_subgraphs, with_uint8_weights, with_weights_in_subgraphs
from tinygptv.runtime.bundle.sessions import open_session


def test_weights_of_a_loop_are_copied_into_it(tmp_path: Path) -> None:
    """They refer to the same data, and the results are the same; once there, nothing is left to copy."""
    random = torch.Generator().manual_seed(0)
    tensors = {"up.weight": torch.randn(32, 32, generator=random), "up.bias": torch.zeros(32)}
    axes = (Axis("batch", None), Axis("tokens", 12), Axis("width", 32))
    with GraphWriter(tmp_path, "loop") as writer:
        writer.contract([TensorSpec("x", "float32", axes)], [TensorSpec("y", "float32", axes)], working_bytes=0)
        linear = Linears(writer, tensors)
        result = writer.by_chunks("x", "all", (12, 32), 4, lambda x: linear(x, "up", ["up"], PerChannel())[0])
        writer.rename_output(result, "y")
        graph, _ = writer.finish()
    before = (tmp_path / graph.file).read_bytes()
    assert has_subgraphs(before)
    changed = with_weights_in_subgraphs(before)
    assert changed is not None
    (scan,) = (node for node in onnx.load_from_string(changed).graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    (weight,) = body.initializer
    (outer,) = (tensor for tensor in onnx.load_from_string(before).graph.initializer if tensor.data_type == 3)
    assert [*weight.external_data] == [*outer.external_data] and weight.dims == outer.dims
    assert sum(weight.name in node.input for node in body.node) == 1
    x = torch.randn(2, 12, 32, generator=random).numpy()
    found = [open_session(tmp_path, graph, 1, model).run(["y"], {"x": x})[0] for model in (None, changed)]
    assert np.array_equal(*found) and found[0].any()
    assert with_weights_in_subgraphs(changed) is None


def test_what_has_no_loops() -> None:
    demo = Path(__file__).parents[1] / "runtime" / "demo"
    assert not has_subgraphs((demo / "projector.onnx").read_bytes())
    assert with_weights_in_subgraphs((demo / "projector.onnx").read_bytes()) is None
    with pytest.raises(ValueError, match="expected an ONNX file"):
        with_weights_in_subgraphs(b"nothing")


@pytest.mark.parametrize("use", ["another operator", "a zero point", "twice", "within the file"])
def test_weights_that_stay_int8(use: str, tmp_path: Path) -> None:
    """All but those that are only weights of products; a file with weights of both kinds still has its products."""
    random = np.random.default_rng(0)
    stays, goes = (random.integers(-128, 128, (16, 8), np.int8) for _ in range(2))
    parts = {
        "stays": stays,
        "goes": goes,
        "step": np.float32(0.01),
        "zero": np.uint8(3),
        "shift": np.int8(0),
    }
    domain = "com.microsoft"
    inputs = ["a", "stays", "step", "step", "zero", *(["shift"] if use == "a zero point" else [])]
    product = partial(helper.make_node, "MatMulIntegerToFloat", domain=domain)
    nodes = [
        product(["a", "goes", "step", "step", "zero"], ["x"]),
        product(["a", "goes", "step", "step", "zero"], ["z"]),
        product(inputs, ["y"]),
    ]
    results = ["x", "y", "z"]
    if use == "another operator":
        nodes.append(helper.make_node("DequantizeLinear", ["stays", "step"], ["w"]))
    elif use == "twice":
        nodes.append(product(["a", "stays", "step", "step", "zero", "shift"], ["w"]))
    kinds = onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("a", kinds.UINT8, [2, 16])],
        [helper.make_tensor_value_info(name, kinds.FLOAT, None) for name in results],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in parts.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    for place, tensor in enumerate(graph.initializer[:2]):
        if not (tensor.name == "stays" and use == "within the file"):
            set_external_data(file.graph.initializer[place], "data", offset=128 * place, length=128)
            file.graph.initializer[place].ClearField("raw_data")
    before = file.SerializeToString()
    data = bytearray(stays.tobytes() + goes.tobytes())
    moves = []

    def move(offset: int, length: int) -> int:
        moves.append((offset, length))
        data[offset : offset + length] = bytes(byte ^ 0x80 for byte in data[offset : offset + length])
        return offset

    def run(model: bytes) -> list[np.ndarray]:
        (tmp_path / "data").write_bytes(data)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(results, {"a": np.arange(32, dtype=np.uint8).reshape(2, 16)})
        return found

    expected = run(before)
    changed = with_uint8_weights(before, move)
    assert moves == [(128, 128)]
    types = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(changed).graph.initializer}
    assert types["stays"] == kinds.INT8 and types["goes"] == kinds.UINT8
    for one, other in zip(expected, run(changed), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="expected an ONNX file"):
        with_uint8_weights(b"nothing", move)
