"""int8 blocks, and that onnxruntime reads them as they are meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinygptv.export import quantize
from tinygptv.export.graph import GraphWriter
from tinygptv.export.quantize import ZERO_POINT, quantize_blocks
from tinygptv.runtime.manifest import Axis, TensorSpec
from tinygptv.runtime.session import open_session
from torch import Tensor

BLOCK_SIZES = (16, 32, 128)
VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False).filter(lambda x: abs(x) > 1e-30),
)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 150)), elements=VALUES)


def dequantised(packed: Tensor, scales: Tensor, columns: int) -> Tensor:
    """float64 [rows, columns]."""
    blocks = (packed.double() - ZERO_POINT) * scales.double().unsqueeze(2)
    return blocks.flatten(1)[:, :columns]


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(BLOCK_SIZES))
@example(np.zeros((2, 40), np.float32), 16)
@example(np.full((1, 1), -3e38, np.float32), 128)
def test_quantised_blocks(matrix: np.ndarray, block_size: int) -> None:
    weight = torch.from_numpy(matrix)
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    packed, scales = quantize_blocks(weight, block_size)
    assert (packed.dtype, scales.dtype) == (torch.uint8, torch.float32)
    assert packed.shape == (rows, blocks, block_size)
    assert scales.shape == (rows, blocks)
    padded = torch.nn.functional.pad(weight, (0, blocks * block_size - columns)).unflatten(1, (blocks, block_size))

    torch.testing.assert_close(scales, padded.abs().amax(2) / 127)
    assert packed.flatten(1)[:, columns:].eq(ZERO_POINT).all(), "padding is zero"
    assert packed[padded == 0].eq(ZERO_POINT).all(), "zero stays zero"
    assert packed.ge(1).all(), "symmetric: 0 would be -128"
    error = (dequantised(packed, scales, columns) - weight.double()).abs()
    allowed = (scales / 2).repeat_interleave(block_size, dim=1)[:, :columns]
    # float32 rounds scales and quotients: the half has that much room.
    assert (error <= allowed.double() * 1.0001).all()
    largest = padded.abs() == padded.abs().amax(2, keepdim=True)
    assert ((packed[largest].int() - ZERO_POINT).abs().eq(127) | padded[largest].eq(0)).all(), "the range is used"


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(BLOCK_SIZES))
def test_quantised_values_survive_another_round(matrix: np.ndarray, block_size: int) -> None:
    packed, scales = quantize_blocks(torch.from_numpy(matrix), block_size)
    again, _ = quantize_blocks(dequantised(packed, scales, matrix.shape[1]).float(), block_size)
    assert torch.equal(again, packed)


@pytest.mark.parametrize("chunk", [1, 128, 300, 10**9])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(9, 100, generator=torch.Generator().manual_seed(1))
    expected = quantize_blocks(weight, 32)
    monkeypatch.setattr(quantize, "CHUNK_VALUES", chunk)
    found = quantize_blocks(weight, 32)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("columns", "block_size"), [(128, 128), (128, 16), (40, 16), (96, 128), (200, 32)])
def test_onnxruntime_reads_what_is_written(columns: int, block_size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = 24
    weight = torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32))
    weight[3] = 0  # a row of zero blocks
    bias = torch.from_numpy(rng.standard_normal(rows).astype(np.float32))
    # Of one sign, so that a wrong zero point adds up instead of averaging out.
    x = rng.random((2, 3, columns), dtype=np.float32)
    axes = (Axis("batch", None), Axis("sequence", None))
    with GraphWriter(tmp_path, "layer", "int8", block_size) as writer:
        writer.contract(
            [TensorSpec("x", "float32", (*axes, Axis("columns", columns)))],
            [TensorSpec("y", "float32", (*axes, Axis("rows", rows)))],
        )
        writer.linear("x", "y", weight, bias)
        graph, _ = writer.finish()
    session = open_session(tmp_path, graph, layers=0, threads=1)
    (found,) = session.run(["y"], {"x": x})
    whole = dequantised(*quantize_blocks(weight, block_size), columns).numpy()
    expected = x.astype(np.float64) @ whole.T + bias.numpy()
    # onnxruntime rounds activations to int8 by blocks: each is off by at most half of largest / 127.
    allowed = np.abs(whole).sum(1) * x.max() / 254 + 1e-5
    assert (np.abs(found - expected) <= allowed).all()
    np.testing.assert_allclose(found[..., 3], np.broadcast_to(bias.numpy()[3], found.shape[:2]), atol=1e-6)
    assert np.abs(found - expected).std() < 0.01 * expected.std()
