"""4 bits with error compensation: exact where nothing can be compensated, and never worse than rounding each value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tinygptv.export import gptq
from tinygptv.export.gptq import PACKED_INT4, SCALES_INT4, hessians, quantize_gptq
from tinygptv.export.graph import GraphWriter
from tinygptv.export.linear import Linears
from tinygptv.export.precision import GroupWise
from tinygptv.export.rounding import quantize_groups_int4, round_groups
from tinygptv.runtime.bundle.manifest import Axis, Quantization, TensorSpec
from tinygptv.runtime.bundle.sessions import open_session
from torch import Tensor

GROUP_SIZES = (16, 32, 128)


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, columns: int, seed: int) -> Tensor:
    """Inputs as layers have them: few directions hold most of what varies, and some channels are loud."""
    mixed = some(tokens, columns // 4, seed=seed) @ some(columns // 4, columns, seed=seed + 1)
    return (mixed + some(tokens, columns, seed=seed + 2)) * some(columns, seed=seed + 3).exp()


def dequantised(packed: Tensor, scales: Tensor, columns: int) -> Tensor:
    """float32 [rows, columns], by what the operator's documentation says of its layout."""
    values = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(2).float() - 8
    return (values * scales.unsqueeze(2)).flatten(1)[:, :columns]


def error(x: Tensor, weight: Tensor, rounded: Tensor) -> float:
    return float(((rounded - weight) @ x.t()).norm())


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("columns", [1, 37, 128, 200])
def test_uncorrelated_inputs_compensate_nothing(columns: int, group_size: int) -> None:
    weight = some(24, columns)
    found = quantize_gptq(weight, [3 * torch.eye(columns)], group_size)
    for of_gptq, nearest in zip(found, quantize_groups_int4(weight, group_size), strict=True):
        assert torch.equal(of_gptq, nearest)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_correlated_inputs_lose_less(group_size: int, seed: int) -> None:
    """Also with fewer tokens than columns, on inputs that were not calibrated with, and by a good part."""
    x, weight = correlated(600, 160, seed), some(48, 160, seed=seed + 9)
    for shown in (100, 300):
        compensated = dequantised(*quantize_gptq(weight, hessians(x[:shown]), group_size), 160)
        nearest = dequantised(*quantize_groups_int4(weight, group_size), 160)
        assert error(x[:shown], weight, compensated) < 0.8 * error(x[:shown], weight, nearest)
        assert error(x[300:], weight, compensated) < 0.9 * error(x[300:], weight, nearest)


def test_columns_are_compensated_one_after_another() -> None:
    """As the paper has it: each column's error times the inverse Hessian's row is taken off the columns after it."""
    x, weight = correlated(500, 48, 3), some(20, 48)
    packed, scales = quantize_gptq(weight, hessians(x), 16)
    hessian = (x.t() @ x).double()
    hessian.diagonal().add_(gptq.DAMPING * hessian.diagonal().mean())
    left = weight.double()
    for j in range(48):
        scale = scales[:, j // 16].double()
        step = (left[:, j] / scale).round().clamp(-8, 7)
        assert torch.equal(step, (torch.stack((packed & 15, packed >> 4), -1).flatten(1)[:, j].double() - 8))
        inverse = torch.linalg.inv(hessian[j:, j:])
        left[:, j:] -= torch.outer((left[:, j] - step * scale) / inverse[0, 0], inverse[0])


def test_blocks_of_columns_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "HESSIAN_COLUMNS", 64)
    x, weight = correlated(300, 150, 5), some(20, 150)
    whole = quantize_gptq(weight, hessians(x), 32)
    parts = [
        quantize_gptq(weight[:, i : i + 64].contiguous(), hessians(x[:, i : i + 64]), 32) for i in range(0, 150, 64)
    ]
    for found, tensors in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(found, torch.cat(tensors, dim=1))


def test_what_was_never_seen_is_rounded_to_the_nearest() -> None:
    weight = some(24, 64)
    found = quantize_gptq(weight, hessians(torch.zeros(10, 64)), 32)
    for of_gptq, nearest in zip(found, quantize_groups_int4(weight, 32), strict=True):
        assert torch.equal(of_gptq, nearest)


def test_rows_of_zeros_and_outliers() -> None:
    weight = some(6, 64)
    weight[2] = 0
    weight[3, 10] = 1e20
    weight[4] *= 1e-20
    rounded = dequantised(*quantize_gptq(weight, hessians(correlated(100, 64, 2)), 32), 64)
    assert rounded.isfinite().all()
    assert torch.equal(rounded[2], weight[2])
    assert abs(rounded[3, 10] / 1e20 - 1) < 0.4
    assert (rounded[4] - weight[4]).norm() < 0.3 * weight[4].norm()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_onnxruntime_reads_the_layout(group_size: int, parts: int, tmp_path: Path) -> None:
    """A graph with the packed tensors computes what they stand for; the weight itself is not rounded again."""
    columns, rows = 200, 24
    x, weight = correlated(80, columns, 7), some(rows, columns)
    packed, scales = quantize_gptq(weight, hessians(x), group_size)
    tensors = {"y.weight": weight, f"y.{PACKED_INT4}": packed, f"y.{SCALES_INT4}": scales}
    x_axes, y_axes = ((Axis("tokens", None), Axis("width", width)) for width in (columns, rows))
    with GraphWriter(tmp_path, "layer") as writer:
        writer.contract([TensorSpec("x", "float32", x_axes)], [TensorSpec("y", "float32", y_axes)], working_bytes=0)
        outputs = [f"y{part}" for part in range(parts)]
        Linears(writer, tensors)("x", "y", outputs, GroupWise(group_size, bits=4))
        writer.op("Concat", outputs, name="y", axis=-1)
        graph, _ = writer.finish()
    assert graph.precision == "int4"
    assert graph.quantization == (Quantization(4, group_size, True, "MatMulNBits", parts),)
    (found,) = open_session(tmp_path, graph, threads=1).run(["y"], {"x": x.numpy()})
    wanted = round_groups(x, group_size) @ dequantised(packed, scales, columns).t()
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
