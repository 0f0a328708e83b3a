"""Groups and channels of int8: their range is used, and no value is off by more than half a step of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinygptv.export import rounding
from tinygptv.export.rounding import (
    SMALLEST_STEP,
    ZERO_POINT,
    pack_int4,
    quantize_channels,
    quantize_groups,
    quantize_groups_int4,
    round_groups,
    round_groups_int4,
    round_rows,
    round_rows_above,
)
from torch import Tensor

GROUP_SIZES = (16, 32, 128)
VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False).filter(lambda x: abs(x) > 1e-30),
)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 150)), elements=VALUES)


def dequantised(packed: Tensor, scales: Tensor, columns: int) -> Tensor:
    """float64 [rows, columns]."""
    groups = (packed.double() - ZERO_POINT) * scales.double().unsqueeze(2)
    return groups.flatten(1)[:, :columns]


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(GROUP_SIZES))
@example(np.zeros((2, 40), np.float32), 16)
@example(np.full((1, 1), -3e38, np.float32), 128)
def test_quantised_groups(matrix: np.ndarray, group_size: int) -> None:
    weight = torch.from_numpy(matrix)
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    packed, scales = quantize_groups(weight, group_size)
    assert (packed.dtype, scales.dtype) == (torch.uint8, torch.float32)
    assert packed.shape == (rows, groups, group_size)
    assert scales.shape == (rows, groups)
    padded = torch.nn.functional.pad(weight, (0, groups * group_size - columns)).unflatten(1, (groups, group_size))

    torch.testing.assert_close(scales, padded.abs().amax(2) / 127)
    assert packed.flatten(1)[:, columns:].eq(ZERO_POINT).all(), "padding is zero"
    assert packed[padded == 0].eq(ZERO_POINT).all(), "zero stays zero"
    assert packed.ge(1).all(), "symmetric: 0 would be -128"
    error = (dequantised(packed, scales, columns) - weight.double()).abs()
    allowed = (scales / 2).repeat_interleave(group_size, dim=1)[:, :columns]
    # float32 rounds scales and quotients: the half has that much room.
    assert (error <= allowed.double() * 1.0001).all()
    largest = padded.abs() == padded.abs().amax(2, keepdim=True)
    assert ((packed[largest].int() - ZERO_POINT).abs().eq(127) | padded[largest].eq(0)).all(), "the range is used"


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(GROUP_SIZES))
def test_quantised_values_survive_another_round(matrix: np.ndarray, group_size: int) -> None:
    packed, scales = quantize_groups(torch.from_numpy(matrix), group_size)
    again, _ = quantize_groups(dequantised(packed, scales, matrix.shape[1]).float(), group_size)
    assert torch.equal(again, packed)


@settings(deadline=None, max_examples=50)
@given(MATRICES)
@example(np.zeros((2, 40), np.float32))
@example(np.full((1, 1), -3e38, np.float32))
def test_quantised_channels(matrix: np.ndarray) -> None:
    weight = torch.from_numpy(matrix)
    packed, scales = quantize_channels(weight)
    assert (packed.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert packed.shape == weight.shape
    assert scales.shape == (len(weight),)
    torch.testing.assert_close(scales, weight.abs().amax(1) / 127)
    assert packed[weight == 0].eq(0).all(), "zero stays zero"
    assert packed.ge(-127).all(), "symmetric: there is no -128"
    error = (packed.double() * scales.double().unsqueeze(1) - weight.double()).abs()
    assert (error <= (scales / 2).double().unsqueeze(1) * 1.0001).all()
    largest = weight.abs() == weight.abs().amax(1, keepdim=True)
    assert (packed[largest].abs().eq(127) | weight[largest].eq(0)).all(), "the range is used"
    again, _ = quantize_channels((packed.double() * scales.double().unsqueeze(1)).float())
    assert torch.equal(again, packed), "quantised values survive another round"


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(GROUP_SIZES))
@example(np.full((1, 2), [1, 1e-45], np.float32), 16)
def test_rounding_is_what_quantising_leaves(matrix: np.ndarray, group_size: int) -> None:
    weight = torch.from_numpy(matrix)
    expected = dequantised(*quantize_groups(weight, group_size), weight.shape[1])
    torch.testing.assert_close(round_groups(weight, group_size).double(), expected, rtol=1e-6, atol=0)
    packed, scales = quantize_channels(weight)
    expected = packed.double() * scales.double().unsqueeze(1)
    torch.testing.assert_close(round_rows(weight).double(), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.sampled_from(GROUP_SIZES))
@example(np.zeros((2, 40), np.float32), 16)
@example(np.full((1, 1), -3e38, np.float32), 128)
@example(np.full((1, 2), [1, 1e-45], np.float32), 16)
def test_groups_of_4_bits(matrix: np.ndarray, group_size: int) -> None:
    """No scale that was tried would have lost less, least of all the one that loses nothing at the range's end."""
    weight = torch.from_numpy(matrix)
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    packed, scales = quantize_groups_int4(weight, group_size)
    assert (packed.dtype, scales.dtype) == (torch.uint8, torch.float32)
    assert packed.shape == (rows, groups, group_size // 2)
    assert scales.shape == (rows, groups)
    steps = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(2).double() - 8
    assert steps.flatten(1)[:, columns:].eq(0).all(), "padding is zero"
    left = (steps * scales.double().unsqueeze(2)).flatten(1)[:, :columns]
    torch.testing.assert_close(round_groups_int4(weight, group_size).double(), left, rtol=1e-6, atol=0)

    padded = torch.nn.functional.pad(weight, (0, groups * group_size - columns)).unflatten(1, (groups, group_size))
    padded = padded.double()
    reach = padded.gather(2, padded.abs().argmax(2, keepdim=True)).squeeze(2) / -8
    lost = (steps * scales.double().unsqueeze(2) - padded).square().sum(2)
    for shrunk in (1.0, 0.9, 0.8, 0.7):
        scale = (reach * shrunk).unsqueeze(2)
        tried = (padded / scale.where(scale != 0, torch.tensor(1.0).double())).round().clamp(-8, 7) * scale
        # Steps and sums of squares in float32: beyond its range all scales are alike.
        room = 1e-5 * padded.square().sum(2) + 1e-37
        assert (lost <= (tried - padded).square().sum(2) + room).logical_or(padded.abs().amax(2) > 1e18).all()


def test_two_values_of_4_bits_in_a_byte() -> None:
    assert pack_int4(torch.tensor([[-8.0, 7.0, 0.0, -1.0]])).tolist() == [[0xF0, 0x78]]


@settings(deadline=None, max_examples=50)
@given(MATRICES, st.data())
@example(np.zeros((2, 40), np.float32), None)
@example(np.full((1, 1), -1 + 2.0**-24, np.float32), None)
def test_rows_above_a_minimum(matrix: np.ndarray, data: st.DataObject | None) -> None:
    """Each column has its own minimum; the 256 steps of a token begin there, whichever column is the highest."""
    x = torch.from_numpy(matrix)
    minimum = -torch.ones(x.shape[1])
    if data is not None:
        distances = data.draw(hnp.arrays(np.float32, x.shape[1], elements=st.floats(0, 2.0**30, width=32)))
        minimum = torch.from_numpy(distances).neg() + x.amin(0)
    found = round_rows_above(x, minimum)
    assert found.isfinite().all()
    assert (found >= minimum).all()
    reach = (x.double() - minimum).amax(1, keepdim=True)
    # float32 loses up to a ten millionth of the largest number that it adds, too.
    slack = 1e-6 * torch.maximum(x.abs(), minimum.abs()).amax(1, keepdim=True)
    assert ((found - x).abs() <= reach / 255 / 2 + slack).all()
    steps = (found.double() - minimum) / (reach.clamp_min(SMALLEST_STEP) / 255)
    # Where one step is more than what float32 has lost, and no step is made larger.
    told = (reach > 1000 * slack) & (reach >= SMALLEST_STEP)
    assert ((steps - steps.round()).abs() < 0.01).logical_or(~told).all()
    assert steps.amax(1, keepdim=True).round().eq(255).logical_or(~told).all(), "the range is used"


@pytest.mark.parametrize("chunk", [1, 128, 300, 10**9])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(9, 100, generator=torch.Generator().manual_seed(1))
    expected = *quantize_groups(weight, 32), *quantize_groups_int4(weight, 32), *quantize_channels(weight)
    monkeypatch.setattr(rounding, "CHUNK_VALUES", chunk)
    found = *quantize_groups(weight, 32), *quantize_groups_int4(weight, 32), *quantize_channels(weight)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
