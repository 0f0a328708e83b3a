"""ONNX files changed without the onnx package: weights in the graph that multiplies by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tinygptv.export.graph import GraphWriter
from tinygptv.export.linear import Linears
from tinygptv.export.precision import PerChannel
from tinygptv.runtime.bundle.manifest import Axis, TensorSpec
from tinygptv.runtime.bundle.onnx_file import has_subgraphs, with_weights_in_subgraphs
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
