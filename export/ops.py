"""The operations that a part's ``run`` is written in.

:class:`.graph_ops.GraphOps` writes them as nodes of an ONNX graph, :class:`.torch_ops.TorchOps` computes them in
torch. Names are those of the part's ``tensors``: a linear layer ``name`` has ``name.weight`` and ``name.bias``.
Activations are [batch, sequence, width] unless a verb says otherwise; heads lie side by side in the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch

T = TypeVar("T")

Activation = Literal["erf", "tanh", "quick"]
"""Variants of GELU: exact; the tanh approximation; x * sigmoid(1.702 x)."""
LEAST: dict[Activation, float] = {"erf": -0.17, "tanh": -0.1701, "quick": -0.1637}
"""Lower bound of each variant: int8 steps need not cover lower outputs."""


@dataclass(frozen=True)
class Rotary:
    """Rotary positions on the leading dimensions of each head, half-split (Su et al. 2021, section 3.2.2)."""

    dim: int
    theta: float
    positions: int
    """Number of positions in the context."""

    def angles(self, length: int) -> torch.Tensor:
        """Position * theta^(-2j / dim), float32 [length, dim / 2]."""
        # In float32 as Phi's published code has it: at position 2000 the last digits of a float64 product differ.
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim
        return torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / (self.theta**exponents))


class Ops(Protocol[T]):
    """The operations of a network. ``T`` is a tensor: its name in a graph, or its value."""

    def layers(self, count: int) -> Iterator[int]:
        """Iterate over 0 to ``count`` - 1, one for each layer; used to report progress."""

    def tap(self, row: str, x: T) -> None:
        """Mark a tensor for ``verify``, which compares it with the oracle's under the name ``row``."""

    def patches(self, pixel_values: T, name: str, size: int) -> T:
        """Convolution with kernel and stride ``size``: [batch, 3, side, side] to [batch, patches, width]."""

    def class_token(self, x: T, name: str) -> T:
        """Insert the tensor ``name`` [1, 1, width] before the first token of each picture."""

    def add_positions(self, x: T, name: str, output: str) -> T:
        """The sum of x and the tensor ``name`` [1, sequence, width]."""

    def without_first(self, x: T, name: str) -> T:
        """All tokens but the first."""

    def queries(self, name: str, norm: str, epsilon: float, like: T) -> T:
        """LayerNorm of the tensor ``name`` [1, sequence, width], for each picture of the batch of ``like``."""

    def layer_norm(self, x: T, name: str, epsilon: float) -> T:
        """LayerNorm over the last axis."""

    def rms_norm(self, x: T, name: str, epsilon: float) -> T:
        """RMSNorm over the last axis: no bias."""

    def head_norm(self, x: T, name: str, heads: int, epsilon: float) -> T:
        """LayerNorm over each head's dimensions, with one weight and bias for all heads."""

    def add(self, x: T, y: T, name: str) -> T:
        """The sum of both."""

    def add_norm(self, x: T, update: T, name: str, epsilon: float) -> tuple[T, T]:
        """The sum x + update, and its LayerNorm."""

    def linear(self, x: T, name: str) -> T:
        """``x @ weight.T + bias``; without a bias if the part has no ``name.bias``."""

    def split_linear(self, x: T, name: str, parts: int) -> tuple[T, ...]:
        """Like ``linear``, split into equal parts along the last axis."""

    def wide_linear(self, x: T, name: str, parts: int) -> T:
        """Like ``linear``, for so many outputs that a graph computes them in parts."""

    def activation(self, x: T, kind: Activation, name: str) -> T:
        """GELU of the given variant."""

    def chunked(self, x: T, name: str, sizes: tuple[int, int], body: Callable[[T], T]) -> T:
        """``body`` of x [batch, *sizes] with sizes (tokens, width), applied to chunks of tokens if that is faster."""

    def attention(self, q: T, k: T, v: T, name: str, heads: int) -> T:
        """softmax(q k^T / sqrt(head_dim)) v, each token seeing all of the context k, v."""

    def rotate(self, x: T, name: str, heads: int, rotary: Rotary) -> T:
        """Apply rotary positions."""

    def causal_attention(self, q: T, k: T, v: T, layer: int, name: str, heads: int) -> T:
        """Like ``attention``, but each token attends to itself and those before it, including those in the KV cache."""

    def last_positions(self, x: T) -> T:
        """The last positions, whose logits are requested."""
