"""LoRA on the language model's attention, as the published training puts it there.

The published model's adapters sit on Phi-2's fused query_key_value matrix and on dense. Fused, q, k and v share the
factor A and have each their rows of B, which is what is trained here on the separate matrices.
"""

from __future__ import annotations

import math

import torch
from tinygptv.export.verify.oracle import Oracle
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 4
ALPHA = 16


class LowRankUpdate(nn.Module):
    """Adds (alpha / rank) B A to a weight, [rows, columns]; B starts at zero."""

    def __init__(self, rows: int, factor_a: nn.Parameter) -> None:
        super().__init__()
        self.factor_a = factor_a
        self.factor_b = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA / RANK * (self.factor_b @ self.factor_a)


def add_adapters(model: Oracle) -> None:
    """Puts adapters onto the attention of every layer; what they add to is frozen."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.language.model.layers:
        attention = layer.self_attn
        for linears in ((attention.q_proj, attention.k_proj, attention.v_proj), (attention.dense.linear,)):
            columns = linears[0].in_features
            factor_a = nn.Parameter(torch.randn(RANK, columns, generator=generator) / math.sqrt(columns))
            for linear in linears:
                linear.weight.requires_grad_(False)
                parametrize.register_parametrization(linear, "weight", LowRankUpdate(linear.out_features, factor_a))


def adapter_of(linear: nn.Linear) -> LowRankUpdate:
    """Gives what is added to a linear layer's weight."""
    return linear.parametrizations.weight[0]
