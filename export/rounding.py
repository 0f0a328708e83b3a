"""Rounding floats to integers of 8 and 4 bits: weights as kernels take them, and floats after rounding and back."""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_POINT = 128
"""Default zero point of MatMulNBits (8 bits); also used for a token's uint8 values."""
LARGEST = 127
LARGEST_UNSIGNED = 255
INT4_ZERO_POINT, LEAST_INT4, LARGEST_INT4 = 8, -8, 7
"""Zero point of MatMulNBits with 4 bits if a graph gives none, and the range of values around it."""
SHRINKING = (1.0, 0.9, 0.8, 0.7)
"""Scales tried for a group of 4 bits, relative to the one that reaches its largest magnitude: clipping that one value
makes the steps of all others finer."""
CHUNK_VALUES = 16 << 20
"""Number of float32 values quantised at a time: limits temporaries to a few times 64 MiB for any matrix."""
SMALLEST_STEP = 1e-30
"""A row of zeros has no scale; any step quantises it to zeros."""


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantise a matrix symmetrically in groups along its input dimension.

    Each group's scale is its largest magnitude / 127, so that ``weight ~ (packed - 128) * scale`` with an error of at
    most half a scale. A last, shorter group is padded with zeros, as MatMulNBits expects.

    Args:
        weight: float32 [rows, columns].
        group_size: Values that share a scale.

    Returns:
        packed: uint8 [rows, groups, group_size].
        scales: float32 [rows, groups].
    """
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    packed = torch.empty((rows, groups, group_size), dtype=torch.uint8)
    scales = torch.empty((rows, groups), dtype=torch.float32)
    step = max(1, CHUNK_VALUES // (groups * group_size))
    for start in range(0, rows, step):
        chunk, scale = _scaled(_in_groups(weight[start : start + step], group_size))
        packed[start : start + step] = chunk.round_().clamp_(-LARGEST, LARGEST).add_(ZERO_POINT).to(torch.uint8)
        scales[start : start + step] = scale.squeeze(2)
    return packed, scales


def quantize_groups_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantise a matrix to 4 bits in groups along its input dimension, each value to the nearest step.

    ``weight ~ (packed - 8) * scale``. Each group's scale is the best of :data:`SHRINKING`; it is negative where the
    group's largest magnitude is that of a positive value, as there is a step -8 and none +8.

    Args:
        weight: float32 [rows, columns].
        group_size: Values that share a scale.

    Returns:
        packed: uint8 [rows, groups, group_size / 2]; of two values, the first is in the low four bits.
        scales: float32 [rows, groups].
    """
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    packed = torch.empty((rows, groups, group_size // 2), dtype=torch.uint8)
    scales = torch.empty((rows, groups), dtype=torch.float32)
    count = max(1, CHUNK_VALUES // (groups * group_size))
    for start in range(0, rows, count):
        values = _in_groups(weight[start : start + count], group_size).movedim(2, 0)
        scale = scales[start : start + count] = best_scales_int4(values, torch.ones(group_size))
        packed[start : start + count] = pack_int4(steps_int4(values, scale).movedim(0, 2))
    return packed, scales


def best_scales_int4(values: Tensor, cost: Tensor) -> Tensor:
    """The scale of each group, of those of :data:`SHRINKING`, whose rounding costs least.

    Args:
        values: float32 [group_size, ...], groups along the first axis.
        cost: Weight of each value's squared error in a group, float32 [group_size].

    Returns:
        float32 [...]; of a group of zeros 0.
    """
    reach = values.gather(0, values.abs().argmax(dim=0, keepdim=True)).squeeze(0) / LEAST_INT4
    best, least = reach, torch.full_like(reach, torch.inf)
    for shrunk in SHRINKING:
        scale = reach * shrunk
        lost = torch.tensordot(cost, steps_int4(values, scale).mul_(scale).sub_(values).square_(), dims=1)
        best, least = torch.where(lost < least, scale, best), torch.minimum(lost, least)
    return best


def steps_int4(values: Tensor, scale: Tensor) -> Tensor:
    """``values`` in steps of ``scale``, rounded to integers from -8 to 7, as float32."""
    # All zeros have scale 0 and are zeros by any divisor.
    return (values / torch.where(scale == 0, 1.0, scale)).round_().clamp_(LEAST_INT4, LARGEST_INT4)


def pack_int4(steps: Tensor) -> Tensor:
    """Steps from -8 to 7, [..., size], two in a byte: uint8 [..., size / 2], the first of two in the low four bits."""
    low, high = (steps + INT4_ZERO_POINT).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | high << 4


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix symmetrically with one scale a row (output channel): ``weight ~ packed * scale``.

    Args:
        weight: float32 [rows, columns].

    Returns:
        packed: int8 [rows, columns].
        scales: float32 [rows].
    """
    rows, columns = weight.shape
    packed = torch.empty((rows, columns), dtype=torch.int8)
    scales = torch.empty(rows, dtype=torch.float32)
    step = max(1, CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        chunk, scale = _scaled(weight[start : start + step])
        packed[start : start + step] = chunk.round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
        scales[start : start + step] = scale.squeeze(1)
    return packed, scales


def round_groups(x: Tensor, group_size: int) -> Tensor:
    """Float32 [rows, columns] after group-wise quantisation and back: weights or activations of MatMulNBits."""
    scaled, scale = _scaled(_in_groups(x, group_size))
    return (scaled.round_() * scale).flatten(1)[:, : x.shape[1]]


def round_groups_int4(x: Tensor, group_size: int) -> Tensor:
    """Weights after group-wise quantisation to 4 bits and back."""
    groups = _in_groups(x, group_size).movedim(2, 0)
    scale = best_scales_int4(groups, torch.ones(group_size))
    return steps_int4(groups, scale).mul_(scale).movedim(0, 2).flatten(1)[:, : x.shape[1]]


def round_rows(x: Tensor) -> Tensor:
    """Values after quantisation with one symmetric scale a row, and back: weights, or activations per-token."""
    scaled, scale = _scaled(x)
    return scaled.round_() * scale


def round_rows_above(x: Tensor, minimum: Tensor) -> Tensor:
    """Activations that are never below ``minimum`` [columns], after quantisation from there up, and back."""
    step = (x - minimum).amax(dim=1, keepdim=True).clamp_min(SMALLEST_STEP) / LARGEST_UNSIGNED
    return ((x - minimum) / step).round_() * step + minimum


def _in_groups(x: Tensor, group_size: int) -> Tensor:
    """Reshape [rows, columns] to [rows, groups, group_size], padded with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % group_size)).unflatten(1, (-1, group_size))


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` in steps of its scale along the last axis, from -127 to 127; and the scales, with size 1 on that axis."""
    scale = x.abs().amax(dim=-1, keepdim=True) / LARGEST
    # All zeros have scale 0 and are zeros by any divisor.
    return x / torch.where(scale > 0, scale, torch.ones_like(scale)), scale
