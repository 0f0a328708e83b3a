"""Linear layers as onnxruntime computes them, against what the rounding in torch says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinygptv.export.graph import GraphWriter
from tinygptv.export.graph_ops import chunk_size
from tinygptv.export.linear import Linears
from tinygptv.export.ops import LEAST
from tinygptv.export.precision import GroupWise, PerChannel, Scheme
from tinygptv.export.rotation import block_of, orthogonal, rotate
from tinygptv.export.smoothing import INPUT_FACTOR, INPUT_ROTATION
from tinygptv.runtime.bundle.manifest import Axis, Graph, Quantization, TensorSpec
from tinygptv.runtime.bundle.sessions import open_session
from torch import Tensor

MINIMUM = LEAST["erf"]
SHAPES = [(1, 1), (1, 7), (3, 2)]
"""[batch, sequence]: one token, several, and several of several."""
SCHEMES = (PerChannel(), PerChannel(MINIMUM), GroupWise(16), GroupWise(32), GroupWise(128), GroupWise(32, bits=4), None)
TIGHT = 1e-5
"""Of what float32 sums of both sides may differ by, relative to the sum of the products' magnitudes."""


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(columns: int, rows: int, factor: Tensor | None = None, name: str = "y") -> dict[str, Tensor]:
    """Random weights and bias of a layer, with the factor of its input where there is one."""
    tensors = {f"{name}.weight": some(rows, columns, seed=2), f"{name}.bias": some(rows, seed=3)}
    if factor is not None:
        tensors[f"{name}.{INPUT_FACTOR}"] = factor
    return tensors


def run(
    folder: Path, tensors: dict[str, Tensor], scheme: Scheme | None, x: Tensor, parts: int = 1
) -> tuple[Tensor, Graph]:
    """What onnxruntime makes of the layer ``y``, computed in parts, and ``x`` [batch, sequence, columns]."""
    axes = (Axis("batch", None), Axis("sequence", None))
    rows, columns = tensors["y.weight"].shape
    with GraphWriter(folder, "layer") as writer:
        writer.contract(
            [TensorSpec("x", "float32", (*axes, Axis("columns", columns)))],
            [TensorSpec("y", "float32", (*axes, Axis("rows", rows)))],
            working_bytes=0,
        )
        outputs = ["y"] if parts == 1 else [f"y{part}" for part in range(parts)]
        assert Linears(writer, tensors)("x", "y", outputs, scheme) == outputs
        if parts > 1:
            writer.op("Concat", outputs, name="y", axis=-1)
        graph, _ = writer.finish()
    session = open_session(folder, graph, threads=1)
    (found,) = session.run(["y"], {"x": x.numpy()})
    return torch.from_numpy(found), graph


def rounded(x: Tensor, tensors: dict[str, Tensor], scheme: Scheme | None) -> tuple[Tensor, Tensor, Tensor]:
    """Input and weights as the scheme rounds them, float64, flat; and each output's sum of magnitudes."""
    flat, weight = x.flatten(0, -2), tensors["y.weight"]
    factor = 1 / tensors.get(f"y.{INPUT_FACTOR}", torch.ones(x.shape[-1]))
    if scheme is not None:
        flat, weight = scheme.round_input(flat / factor, factor), scheme.round_weight(weight)
    else:
        flat = flat / factor
    flat, weight = flat.double(), weight.double()
    return flat, weight, flat.abs() @ weight.abs().t()


def assert_as_rounded(found: Tensor, x: Tensor, tensors: dict[str, Tensor], scheme: Scheme | None) -> None:
    flat, weight, size = rounded(x, tensors, scheme)
    wanted = flat @ weight.t() + tensors["y.bias"].double()
    assert found.shape == (*x.shape[:-1], len(weight))
    assert ((found.flatten(0, -2).double() - wanted).abs() <= TIGHT * (size + tensors["y.bias"].abs())).all()


def gelu_like(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x * 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("columns", [1, 37, 40, 64, 200])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_onnxruntime_computes_what_was_simulated(
    scheme: Scheme | None, columns: int, shape: tuple[int, int], tmp_path: Path
) -> None:
    x = some(*shape, columns)
    if scheme == PerChannel(MINIMUM):
        x = gelu_like(x)
    tensors = layer(columns, 24)
    found, _ = run(tmp_path, tensors, scheme, x)
    assert_as_rounded(found, x, tensors, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_smoothed_inputs(scheme: Scheme | None, tmp_path: Path) -> None:
    """The factor multiplies; a least value moves with it, each channel's on its own."""
    x = some(2, 5, 48)
    x[..., 3] *= 90
    x = gelu_like(x)
    factor = torch.exp(some(48, seed=4))
    tensors = layer(48, 24, factor)
    found, _ = run(tmp_path, tensors, scheme, x)
    assert_as_rounded(found, x, tensors, scheme)
    exact = (x * factor) @ tensors["y.weight"].t() + tensors["y.bias"]
    error = (found - exact).std() / exact.std()
    largest = 0.15 if scheme == GroupWise(32, bits=4) else 0.03
    assert error < 1e-6 if scheme is None else 1e-4 < error < largest


@pytest.mark.parametrize("columns", [40, 128, 96])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rotated_inputs(scheme: Scheme | None, columns: int, tmp_path: Path) -> None:
    """After the factor; a least value is of no use then, and outliers of one token cost the others nothing."""
    x = some(2, 5, columns)
    x[..., 3] *= 90
    x = gelu_like(x)
    factor, block = torch.exp(some(columns, seed=4)), orthogonal(block_of(columns))
    tensors = layer(columns, 24, factor) | {f"y.{INPUT_ROTATION}": block}
    found, _ = run(tmp_path, tensors, scheme, x)
    turned = rotate(x * factor, block)
    plain = {name: tensors[name] for name in ("y.weight", "y.bias")}
    symmetric = PerChannel() if isinstance(scheme, PerChannel) else scheme
    flat, weight, size = rounded(turned, plain, symmetric)
    wanted = flat @ weight.t() + plain["y.bias"].double()
    error = (found.flatten(0, -2).double() - wanted).abs()
    # What torch rotates to just below half a step, onnxruntime may rotate to just above.
    assert (error <= TIGHT * (size + plain["y.bias"].abs())).float().mean() > 0.9
    assert error.std() / wanted.std() < 1e-3
    exact = turned @ plain["y.weight"].t() + plain["y.bias"]
    left = (found - exact).std() / exact.std()
    largest = 0.15 if scheme == GroupWise(32, bits=4) else 0.03
    assert left < 1e-5 if scheme is None else 1e-4 < left < largest


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_layer_without_a_bias(scheme: Scheme | None, parts: int, tmp_path: Path) -> None:
    """A bias of zeros gives the same numbers; there is none in the graph."""
    x = gelu_like(some(2, 5, 40))
    tensors = layer(40, 24)
    tensors["y.bias"] = torch.zeros(24)
    (tmp_path / "zeros").mkdir()
    zeros, _ = run(tmp_path / "zeros", tensors, scheme, x)
    del tensors["y.bias"]
    found, graph = run(tmp_path, tensors, scheme, x, parts)
    torch.testing.assert_close(found, zeros, rtol=0, atol=1e-6)
    model = onnx.load(tmp_path / graph.file, load_external_data=False)
    # What comes from a least value that is not 0 is a bias.
    assert any("bias" in tensor.name for tensor in model.graph.initializer) == (scheme == PerChannel(MINIMUM))


VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
    st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 4), st.just(11)), elements=VALUES),
    scheme=st.sampled_from([PerChannel(), PerChannel(MINIMUM), GroupWise(16)]),
)
@example(array=np.full((1, 2, 11), 1e30, np.float32), scheme=PerChannel())
@example(array=np.full((1, 2, 11), 1e-30, np.float32), scheme=PerChannel())
@example(array=np.full((1, 2, 11), MINIMUM, np.float32), scheme=PerChannel(MINIMUM))
def test_any_tokens(array: np.ndarray, scheme: Scheme, tmp_path: Path) -> None:
    """Huge, tiny and zero values side by side: each token's error is what its own range allows, and no more."""
    x = torch.from_numpy(array)
    if scheme == PerChannel(MINIMUM):
        x = x.clamp_min(MINIMUM)
    tensors = layer(11, 6)
    found, _ = run(tmp_path, tensors, scheme, x)
    flat, weight, size = rounded(x, tensors, scheme)
    wanted = flat @ weight.t() + tensors["y.bias"]
    # Halfway between two steps float32's last bit decides: a value there may be a step off.
    least, steps = (MINIMUM, 255) if scheme == PerChannel(MINIMUM) else (0.0, 127)
    above = x.flatten(0, -2).double() - least
    step = (above.abs().amax(1, keepdim=True) / steps).clamp_min(1e-300)
    halfway = ((above / step).frac().abs() - 0.5).abs() < 1e-3
    allowed = TIGHT * (size + tensors["y.bias"].abs()) + (halfway * step) @ weight.abs().t()
    assert ((found.flatten(0, -2) - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros(scheme: Scheme | None, tmp_path: Path) -> None:
    """A row of zero weights gives its bias and nothing else, and so do tokens of zeros."""
    tensors = layer(40, 24)
    tensors["y.weight"][5] = 0
    x = some(2, 3, 40).abs()
    x[1, 2] = 0
    found, _ = run(tmp_path, tensors, scheme, x)
    bias = tensors["y.bias"]
    assert torch.equal(found[..., 5], bias[5].expand(2, 3))
    if scheme == PerChannel(MINIMUM):  # zero is 0.17 above its least value, and hence some number of steps
        torch.testing.assert_close(found[1, 2], bias, rtol=0, atol=1e-5)
    else:
        assert torch.equal(found[1, 2], bias)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("scheme", [PerChannel(), GroupWise(16), None], ids=str)
def test_huge_and_tiny_weights(scheme: Scheme | None, scale: float, tmp_path: Path) -> None:
    tensors = layer(40, 24)
    tensors["y.weight"] *= scale
    tensors["y.bias"] *= scale
    x = some(1, 3, 40)
    found, _ = run(tmp_path, tensors, scheme, x)
    assert_as_rounded(found, x, tensors, scheme)


def test_each_token_has_its_own_scale(tmp_path: Path) -> None:
    """A loud one costs its neighbours nothing."""
    tensors = layer(64, 24)
    x = some(1, 3, 64)
    alone, _ = run(tmp_path, tensors, PerChannel(), x[:, :1])
    x[:, 1] *= 1e6
    found, _ = run(tmp_path, tensors, PerChannel(), x)
    torch.testing.assert_close(found[:, :1], alone, rtol=0, atol=1e-6)


# Several layers of a graph


def test_layers_in_parts_and_what_the_manifest_says(tmp_path: Path) -> None:
    """Layers of each scheme after one another, some of them cut into parts that are not all as long."""
    scheme_of: dict[str, Scheme | None] = {
        "parted": GroupWise(16),
        "groups": GroupWise(32),
        "more": GroupWise(16),
        "channels": PerChannel(),
        "parted channels": PerChannel(),
        "exact": None,
        "parted exact": None,
    }
    tensors = {key: value for name in scheme_of for key, value in layer(40, 40, name=name).items()}
    tensors["parted channels.input_factor"] = 1 + some(40, seed=9).abs()
    axes = (Axis("batch", None), Axis("sequence", None), Axis("columns", 40))
    with GraphWriter(tmp_path, "layers") as writer:
        writer.contract([TensorSpec("x", "float32", axes)], [TensorSpec("y", "float32", axes)], working_bytes=0)
        linear = Linears(writer, tensors)
        hidden = "x"
        for name, scheme in scheme_of.items():
            if name.startswith("parted"):
                outputs = [f"{name} {part}" for part in range(3)]
                assert linear(hidden, name, outputs, scheme) == outputs
                hidden = writer.op("Concat", outputs, name=f"{name} again", axis=-1)
            else:
                (hidden,) = linear(hidden, name, [name], scheme)
        writer.rename_output(hidden, "y")
        graph, _ = writer.finish()
    assert graph.precision == "int8"
    assert set(graph.quantization) == {
        Quantization(bits=8, block_size=16, symmetric=True, operator="MatMulNBits", layers=4),
        Quantization(bits=8, block_size=32, symmetric=True, operator="MatMulNBits", layers=1),
        Quantization(bits=8, block_size=None, symmetric=True, operator="MatMulIntegerToFloat", layers=4),
    }
    assert len(graph.quantization) == 3
    x = some(1, 4, 40)
    (found,) = open_session(tmp_path, graph, threads=1).run(["y"], {"x": x.numpy()})
    wanted = x.flatten(0, -2)
    for name, scheme in scheme_of.items():
        weight = tensors[f"{name}.weight"]
        factor = 1 / tensors.get(f"{name}.{INPUT_FACTOR}", torch.ones(40))
        wanted = wanted / factor
        if scheme is not None:
            wanted, weight = scheme.round_input(wanted, factor), scheme.round_weight(weight)
        wanted = wanted @ weight.t() + tensors[f"{name}.bias"]
    torch.testing.assert_close(torch.from_numpy(found).flatten(0, -2), wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("scheme", [PerChannel(), PerChannel(MINIMUM)], ids=str)
def test_layers_with_one_input_share_its_rounding(scheme: Scheme, tmp_path: Path) -> None:
    """And its rotation."""
    tensors = layer(64, 24, name="a") | layer(64, 24, name="b") | {f"a.{INPUT_ROTATION}": orthogonal(64)}
    tensors[f"b.{INPUT_ROTATION}"] = tensors[f"a.{INPUT_ROTATION}"]
    axes = (Axis("batch", None), Axis("sequence", None))
    with GraphWriter(tmp_path, "layer") as writer:
        writer.contract(
            [TensorSpec("x", "float32", (*axes, Axis("columns", 64)))],
            [TensorSpec("y", "float32", (*axes, Axis("rows", 24)))],
            working_bytes=0,
        )
        linear = Linears(writer, tensors)
        outputs = [linear("x", name, [name], scheme)[0] for name in "ab"]
        writer.op("Sub", outputs, name="y")
        graph, _ = writer.finish()
    kinds = [node.op_type for node in onnx.load(tmp_path / graph.file, load_external_data=False).graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("MatMul") == 1
    assert kinds.count("MatMulIntegerToFloat") == 2
    found = open_session(tmp_path, graph, threads=1).run(["y"], {"x": some(1, 3, 64).numpy()})[0]
    assert not found.any(), "both have the same weights"


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_tokens_by_chunks_are_the_same_to_the_bit(scheme: Scheme | None, rotated: bool, tmp_path: Path) -> None:
    """Two layers for 12 tokens of each of two rows: at once, and 4 tokens at a time."""
    tensors = layer(40, 48, name="up") | layer(48, 40, name="down")
    if rotated:
        tensors |= {f"up.{INPUT_ROTATION}": orthogonal(40), f"down.{INPUT_ROTATION}": orthogonal(48)}
    axes = (Axis("batch", None), Axis("tokens", 12), Axis("width", 40))
    x, found = some(2, 12, 40), []
    for name in ("whole", "chunks"):
        with GraphWriter(tmp_path, name) as writer:
            writer.contract([TensorSpec("x", "float32", axes)], [TensorSpec("y", "float32", axes)], working_bytes=0)
            linear = Linears(writer, tensors)

            def both(x: str, linear: Linears = linear) -> str:
                return linear(*linear(x, "up", ["up"], scheme), "down", ["down"], scheme)[0]

            result = both("x") if name == "whole" else writer.by_chunks("x", "all", (12, 40), 4, both)
            writer.rename_output(result, "y")
            graph, _ = writer.finish()
        found.append(open_session(tmp_path, graph, threads=1).run(["y"], {"x": x.numpy()})[0])
    assert found[1].shape == (2, 12, 40)
    assert np.array_equal(*found)


@pytest.mark.parametrize(("tokens", "chunk"), [(1025, 205), (257, 257), (1, 1), (256, 256), (512, 256), (785, 157)])
def test_chunks_of_an_image(tokens: int, chunk: int) -> None:
    assert chunk_size(tokens) == chunk


def test_a_graph_without_rounding_is_fp32(tmp_path: Path) -> None:
    tensors = layer(40, 24)
    found, graph = run(tmp_path, tensors, None, some(1, 4, 40))
    assert (graph.precision, graph.quantization) == ("fp32", ())
    model = onnx.load(tmp_path / graph.file, load_external_data=False)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]
    torch.testing.assert_close(found, some(1, 4, 40) @ tensors["y.weight"].t() + tensors["y.bias"])
