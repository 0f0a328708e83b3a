"""int8 blocks: the one place where a float becomes an integer."""

from __future__ import annotations

import torch

ZERO_POINT = 128
"""What MatMulNBits takes for zero where a graph gives no zero points (8 bits)."""
LARGEST = 127
CHUNK_VALUES = 16 << 20
"""float32 values quantised at a time: bounds the temporaries to a few times 64 MiB whatever the matrix."""


def quantize_blocks(weight: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
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
        chunk = torch.nn.functional.pad(weight[start : start + step], (0, blocks * block_size - columns))
        chunk = chunk.unflatten(1, (blocks, block_size))
        scale = chunk.abs().amax(dim=2) / LARGEST
        # An all-zero block has scale 0 and quantises to zeros by any divisor.
        divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        quantised = (chunk / divisor.unsqueeze(2)).round_().clamp_(-LARGEST, LARGEST).add_(ZERO_POINT)
        packed[start : start + step] = quantised.to(torch.uint8)
        scales[start : start + step] = scale
    return packed, scales
