"""Rotations that spread a linear layer's outlier channels over many, so that one int8 scale fits all of them.

y = W x stays the same where x is multiplied by an orthogonal matrix and W by its transpose (Chee et al. 2023, QuIP,
https://arxiv.org/abs/2307.13304; Ashkboos et al. 2024, QuaRot, https://arxiv.org/abs/2404.00456). The matrix is
block-diagonal, the same block all along. Where the input is what an attention mixes, a block is a head and folds into
v's rows, at no cost; elsewhere the graph multiplies by it: 2 x :data:`BLOCK` operations a value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 64
"""Maximum number of channels that an outlier is spread over."""


def block_of(width: int) -> int:
    """The block size for inputs of a width: its largest divisor up to :data:`BLOCK`; 1 (no rotation) for a prime.

    2560, 1408, 6144, 1152 and their like have 64; SigLIP's 4304 = 16 x 269 has 16.
    """
    return next(size for size in range(min(BLOCK, width), 0, -1) if width % size == 0)


def orthogonal(size: int) -> Tensor:
    """A fixed orthogonal matrix whose entries are alike in magnitude, float32 [size, size].

    The Kronecker product of Sylvester's Hadamard matrix, of the largest power of two in ``size``, and the orthonormal
    discrete cosine transform of the odd rest.
    """
    odd = size
    while odd % 2 == 0:
        odd //= 2
    row, column = torch.arange(odd, dtype=torch.float64)[:, None], torch.arange(odd, dtype=torch.float64)
    matrix = torch.cos(math.pi * (column + 0.5) * row / odd) * math.sqrt(2 / odd)
    matrix[0] /= math.sqrt(2)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix) / math.sqrt(2)
    return matrix.float()


def rotate(x: Tensor, block: Tensor) -> Tensor:
    """Split the last axis of x [..., width] into blocks, and multiply each by ``block`` [size, size]."""
    return (x.unflatten(-1, (-1, len(block))) @ block).flatten(-2)
