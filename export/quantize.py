"""int8: the one place where a float becomes an integer, and what that rounding does to a product.

Two schemes. Blocks share a scale along the input dimension, of the weights and of the activations alike: what
MatMulNBits computes, fastest for one token at a time. Rows share one scale for each output's weights and one for each
token's activations: what MatMulIntegerToFloat computes, fastest for many tokens at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

ZERO_POINT = 128
"""What MatMulNBits takes for zero where a graph gives no zero points (8 bits); ours for a token's uint8 values too."""
LARGEST = 127
LARGEST_UNSIGNED = 255
CHUNK_VALUES = 16 << 20
"""float32 values quantised at a time: bounds the temporaries to a few times 64 MiB whatever the matrix."""
SMALLEST_STEP = 1e-30
"""A row of zeros has no scale; any step quantises it to zeros."""


def quantize_blocks(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantise a matrix symmetrically in blocks along its input dimension.

    Each block's scale is its largest magnitude / 127, so that ``weight ~ (packed - 128) * scale`` with an error of at
    most half a scale. A last, shorter block is padded with zeros, as MatMulNBits expects.

    Args:
        weight: float32 [rows, columns].
        block_size: Values that share a scale.

    Returns:
        packed: uint8 [rows, blocks, block_size].
        scales: float32 [rows, blocks].
    """
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    packed = torch.empty((rows, blocks, block_size), dtype=torch.uint8)
    scales = torch.empty((rows, blocks), dtype=torch.float32)
    step = max(1, CHUNK_VALUES // (blocks * block_size))
    for start in range(0, rows, step):
        chunk, scale = _scaled(_in_blocks(weight[start : start + step], block_size))
        packed[start : start + step] = chunk.round_().clamp_(-LARGEST, LARGEST).add_(ZERO_POINT).to(torch.uint8)
        scales[start : start + step] = scale.squeeze(2)
    return packed, scales


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
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


def round_blocks(x: Tensor, block_size: int) -> Tensor:
    """What is left of float32 [rows, columns] after quantising in blocks: weights or activations of MatMulNBits."""
    scaled, scale = _scaled(_in_blocks(x, block_size))
    return (scaled.round_() * scale).flatten(1)[:, : x.shape[1]]


def round_rows(x: Tensor) -> Tensor:
    """The same for one symmetric scale a row: weights, or activations of a token."""
    scaled, scale = _scaled(x)
    return scaled.round_() * scale


def round_rows_above(x: Tensor, minimum: Tensor) -> Tensor:
    """The same for activations of which nothing is below ``minimum`` [columns]: all 256 steps from there up."""
    step = (x - minimum).amax(dim=1, keepdim=True).clamp_min(SMALLEST_STEP) / LARGEST_UNSIGNED
    return ((x - minimum) / step).round_() * step + minimum


def _in_blocks(x: Tensor, block_size: int) -> Tensor:
    """[rows, columns] to [rows, blocks, block_size], padded with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % block_size)).unflatten(1, (-1, block_size))


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` in steps of its scale, -127 to 127, along the last axis; and the scales, of size 1 there."""
    scale = x.abs().amax(dim=-1, keepdim=True) / LARGEST
    # All zeros have scale 0 and are zeros by any divisor.
    return x / torch.where(scale > 0, scale, torch.ones_like(scale)), scale
