"""4-bit quantisation with error compensation: later columns compensate the rounding errors of earlier ones.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) keeps the error of a layer's products small for the inputs
X seen in calibration: ||X (W - Q)^T||^2 = trace((W - Q) H (W - Q)^T) with H = X^T X, a column at a time. It is done
here in the equal form of Chee et al. 2023 (QuIP, https://arxiv.org/abs/2307.13304, section 4.1 and theorem 6): where
H = U D U^T with U unit upper triangular, column j becomes the step nearest to W_j + sum_{i<j} (W - Q)_i U_ij. That
takes one Cholesky factor and no inverse, and D_j is what a squared error of column j costs in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rounding import best_scales_int4, pack_int4, steps_int4

PACKED_INT4, SCALES_INT4 = "packed_int4", "scales_int4"
"""Suffixes of the tensors that :func:`quantize_gptq` makes of a linear layer's weight."""
DAMPING = 1.0
"""Fraction of the Hessian's mean diagonal added to its diagonal. 100 times the paper's, as earlier layers err too, in
all directions, and so that a small calibration set is not overfitted. On a language model KL was 0.084 with
4,096 tokens and 0.094 with 1,024; with 0.01 it was 0.100 and 0.158."""
HESSIAN_COLUMNS = 2560
"""Columns whose errors compensate each other, at most. More would cost the cube of it, and gained nothing: what is far
apart in an MLP's inner layer is hardly correlated."""


def hessians(x: Tensor) -> list[Tensor]:
    """X^T X of the observed inputs, float32 [tokens, columns], for each block of :data:`HESSIAN_COLUMNS` columns."""
    return [part.t() @ part for part in x.split(HESSIAN_COLUMNS, dim=1)]


def quantize_gptq(weight: Tensor, hessian: Sequence[Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    """Quantise a matrix to 4 bits in groups along its input dimension, as MatMulNBits stores it.

    ``weight ~ (packed - 8) * scale``; a scale may be negative, as the code -8 has no counterpart +8. A last, shorter
    group is padded with zeros.

    Args:
        weight: float32 [rows, columns].
        hessian: Hessian of its input, from :func:`hessians`.
        group_size: Number of values that share a scale; it divides :data:`HESSIAN_COLUMNS`.

    Returns:
        packed: uint8 [rows, groups, group_size / 2], the even column in the low four bits.
        scales: float32 [rows, groups].
    """
    parts = [
        _compensated(columns, gram, group_size)
        for columns, gram in zip(weight.split(HESSIAN_COLUMNS, dim=1), hessian, strict=True)
    ]
    steps, scales = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return pack_int4(steps), scales


def _compensated(weight: Tensor, hessian: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantised values int8 [rows, groups, group_size] from -8 to 7, and scales float32 [rows, groups]."""
    rows, columns = weight.shape
    upper, cost = _factors(hessian)
    # By column, since a column at a time is what is worked on.
    wanted = weight.t().contiguous()
    errors = torch.zeros_like(wanted)
    groups = -(-columns // group_size)
    steps = torch.zeros((groups * group_size, rows), dtype=torch.int8)
    scales = torch.empty((groups, rows))
    for number, start in enumerate(range(0, columns, group_size)):
        end = min(start + group_size, columns)
        target = wanted[start:end] + upper[:start, start:end].t() @ errors[:start]
        scale = scales[number] = best_scales_int4(target, cost[start:end])
        for i in range(end - start):
            step = steps_int4(target[i], scale)
            error = torch.sub(wanted[start + i], step * scale, out=errors[start + i])
            target[i + 1 :].addr_(upper[start + i, start + i + 1 : end], error)
            steps[start + i] = step
    return steps.t().unflatten(1, (groups, group_size)), scales.t().contiguous()


def _factors(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """U, unit upper triangular, and the diagonal of D, with U D U^T = H, damped."""
    damped = hessian.flip(0, 1)
    mean = float(hessian.diagonal().mean())
    # Inputs that were all zeros leave any rounding as good as another.
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    upper = torch.linalg.cholesky(damped).flip(0, 1)
    root = upper.diagonal().clone()
    return upper.div_(root), root.square()
