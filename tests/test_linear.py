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
from tinygptv.export.linear import Linears
from tinygptv.export.quantize import round_blocks, round_rows
from tinygptv.export.schemes import GELU_MINIMUM, Blocks, Rows, Scheme, schemes
from tinygptv.export.smoothing import INPUT_FACTOR
from tinygptv.export.vision_encoder import chunk_size
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Axis, Graph, Quantization, TensorSpec
from tinygptv.runtime.bundle.sessions import open_session
from torch import Tensor

SHAPES = [(1, 1), (1, 7), (3, 2)]
"""[batch, sequence]: one token, several, and several of several."""
SCHEMES = (Rows(), Rows(GELU_MINIMUM), Blocks(16), Blocks(32), Blocks(128), None)
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


def run(folder: Path, tensors: dict[str, Tensor], scheme: Scheme | None, x: Tensor) -> tuple[Tensor, Graph]:
    """What onnxruntime makes of the layer ``y`` and ``x`` [batch, sequence, columns]."""
    axes = (Axis("batch", None), Axis("sequence", None))
    rows, columns = tensors["y.weight"].shape
    with GraphWriter(folder, "layer") as writer:
        writer.contract(
            [TensorSpec("x", "float32", (*axes, Axis("columns", columns)))],
            [TensorSpec("y", "float32", (*axes, Axis("rows", rows)))],
        )
        Linears(writer, tensors, lambda name: scheme)("x", "y")
        graph, _ = writer.finish()
    session = open_session(folder, graph, layers=0, threads=1)
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
    if scheme == Rows(GELU_MINIMUM):
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
    assert error < 1e-6 if scheme is None else 1e-4 < error < 0.03


VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
    st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 4), st.just(11)), elements=VALUES),
    scheme=st.sampled_from([Rows(), Rows(GELU_MINIMUM), Blocks(16)]),
)
@example(array=np.full((1, 2, 11), 1e30, np.float32), scheme=Rows())
@example(array=np.full((1, 2, 11), 1e-30, np.float32), scheme=Rows())
@example(array=np.full((1, 2, 11), GELU_MINIMUM, np.float32), scheme=Rows(GELU_MINIMUM))
def test_any_tokens(array: np.ndarray, scheme: Scheme, tmp_path: Path) -> None:
    """Huge, tiny and zero values side by side: each token's error is what its own range allows, and no more."""
    x = torch.from_numpy(array)
    if scheme == Rows(GELU_MINIMUM):
        x = x.clamp_min(GELU_MINIMUM)
    tensors = layer(11, 6)
    found, _ = run(tmp_path, tensors, scheme, x)
    flat, weight, size = rounded(x, tensors, scheme)
    wanted = flat @ weight.t() + tensors["y.bias"]
    # Halfway between two steps float32's last bit decides: a value there may be a step off.
    least, steps = (GELU_MINIMUM, 255) if scheme == Rows(GELU_MINIMUM) else (0.0, 127)
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
    if scheme == Rows(GELU_MINIMUM):  # zero is 0.17 above its least value, and hence some number of steps
        torch.testing.assert_close(found[1, 2], bias, rtol=0, atol=1e-5)
    else:
        assert torch.equal(found[1, 2], bias)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("scheme", [Rows(), Blocks(16), None], ids=str)
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
    alone, _ = run(tmp_path, tensors, Rows(), x[:, :1])
    x[:, 1] *= 1e6
    found, _ = run(tmp_path, tensors, Rows(), x)
    torch.testing.assert_close(found[:, :1], alone, rtol=0, atol=1e-6)


# Several layers of a graph


def test_layers_in_parts_and_what_the_manifest_is_told(tmp_path: Path) -> None:
    """Layers of each scheme after one another, some of them cut into parts that are not all as long."""
    scheme_of: dict[str, Scheme | None] = {
        "parted": Blocks(16),
        "blocks": Blocks(32),
        "more": Blocks(16),
        "rows": Rows(),
        "parted rows": Rows(),
        "exact": None,
        "parted exact": None,
    }
    tensors = {key: value for name in scheme_of for key, value in layer(40, 40, name=name).items()}
    tensors["parted rows.input_factor"] = 1 + some(40, seed=9).abs()
    axes = (Axis("batch", None), Axis("sequence", None), Axis("columns", 40))
    with GraphWriter(tmp_path, "layers") as writer:
        writer.contract([TensorSpec("x", "float32", axes)], [TensorSpec("y", "float32", axes)])
        linear = Linears(writer, tensors, scheme_of.__getitem__)
        hidden = "x"
        for name in scheme_of:
            if name.startswith("parted"):
                parts = linear.parts(hidden, name, 3)
                assert len(parts) == 3
                hidden = writer.op("Concat", parts, name=f"{name} again", axis=-1)
            else:
                hidden = linear(hidden, name)
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
    (found,) = open_session(tmp_path, graph, layers=0, threads=1).run(["y"], {"x": x.numpy()})
    wanted = x.flatten(0, -2)
    for name, scheme in scheme_of.items():
        weight = tensors[f"{name}.weight"]
        factor = 1 / tensors.get(f"{name}.{INPUT_FACTOR}", torch.ones(40))
        wanted = wanted / factor
        if scheme is not None:
            wanted, weight = scheme.round_input(wanted, factor), scheme.round_weight(weight)
        wanted = wanted @ weight.t() + tensors[f"{name}.bias"]
    torch.testing.assert_close(torch.from_numpy(found).flatten(0, -2), wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_tokens_by_chunks_are_the_same_to_the_bit(scheme: Scheme | None, tmp_path: Path) -> None:
    """Two layers for 12 tokens of each of two rows: at once, and 4 tokens at a time."""
    tensors = layer(40, 48, name="up") | layer(48, 40, name="down")
    axes = (Axis("batch", None), Axis("tokens", 12), Axis("width", 40))
    x, found = some(2, 12, 40), []
    for name in ("whole", "chunks"):
        with GraphWriter(tmp_path, name) as writer:
            writer.contract([TensorSpec("x", "float32", axes)], [TensorSpec("y", "float32", axes)])
            linear = Linears(writer, tensors, lambda name: scheme)

            def both(x: str, linear: Linears = linear) -> str:
                return linear(linear(x, "up"), "down")

            result = both("x") if name == "whole" else writer.by_chunks("x", "all", (12, 40), 4, both)
            writer.rename_output(result, "y")
            graph, _ = writer.finish()
        found.append(open_session(tmp_path, graph, layers=0, threads=1).run(["y"], {"x": x.numpy()})[0])
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


# Which layer is rounded how


def test_gelu_is_never_below_its_minimum() -> None:
    x = torch.linspace(-3, 0, 100_001, dtype=torch.float64)
    least = torch.nn.functional.gelu(x).min()
    assert GELU_MINIMUM < least < GELU_MINIMUM + 1e-4


def test_what_rounding_leaves() -> None:
    x, factor = some(6, 32), torch.exp(some(32, seed=2))
    assert torch.equal(Blocks(16).round_weight(x), round_blocks(x, 16))
    assert torch.equal(Blocks(16).round_input(x, factor), round_blocks(x, 16))
    assert torch.equal(Rows().round_weight(x), round_rows(x))
    assert torch.equal(Rows().round_input(x, factor), round_rows(x))
    above = gelu_like(x) / factor
    error = (Rows(GELU_MINIMUM).round_input(above, factor) - above).abs()
    assert error.max() > 0
    assert (error <= (above - GELU_MINIMUM / factor).amax(1, keepdim=True) / 255 / 2 * 1.001).all()


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_schemes_of_int8(block_size: int) -> None:
    scheme_of = schemes("int8", block_size)
    assert set(scheme_of) == {VISION_ENCODER, PROJECTOR, DECODER}
    assert scheme_of[PROJECTOR]("llama_proj") == Blocks(min(block_size, 32))
    vision, decoder = scheme_of[VISION_ENCODER], scheme_of[DECODER]
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert vision(f"visual.blocks.1.{name}") == Rows(GELU_MINIMUM if name == "mlp.fc2" else None)
    for name in ("self_attn.qkv", "self_attn.dense", "mlp.fc1", "mlp.fc2"):
        assert decoder(f"model.layers.2.{name}") == Blocks(block_size)
    assert decoder("lm_head") == Blocks(16)


def test_schemes_of_fp32() -> None:
    for scheme_of in schemes("fp32", 128).values():
        assert scheme_of("visual.blocks.0.mlp.fc2") is None and scheme_of("lm_head") is None
