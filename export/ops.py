"""The verbs that a part's ``run`` is written in.

:class:`.graph_ops.GraphOps` writes the nodes of an ONNX graph, :class:`.torch_ops.TorchOps` computes the same in
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
"""GELU, exact; its tanh form; x * sigmoid(1.702 x)."""
LEAST: dict[Activation, float] = {"erf": -0.17, "tanh": -0.1701, "quick": -0.1637}
"""Just below the least value of each: no output needs a step of int8 for less."""


@dataclass(frozen=True)
class Rotary:
    """Rotary positions on the leading dimensions of each head, half-split (Su et al. 2021, section 3.2.2)."""

    dim: int
    theta: float
    positions: int
    """The context."""

    def angles(self, length: int) -> torch.Tensor:
        """Position * theta^(-2j / dim), float32 [length, dim / 2]."""
        # In float32 as Phi's published code has it: at position 2000 the last digits of a float64 product differ.
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim
        return torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / (self.theta**exponents))


class Ops(Protocol[T]):
    """What a network is made of. ``T`` is a tensor: its name in a graph, or its value."""

    def layers(self, count: int) -> Iterator[int]:
        """0 to ``count`` - 1, one a layer: progress is counted by it."""

    def tap(self, row: str, x: T) -> None:
        """Mark a tensor, so that ``verify`` compares it with the oracle's under the name ``row``."""

    def patches(self, pixel_values: T, name: str, size: int) -> T:
        """Convolution with kernel and stride ``size``: [batch, 3, side, side] to [batch, patches, width]."""

    def class_token(self, x: T, name: str) -> T:
        """The tensor ``name`` [1, 1, width] before the first token of each picture."""

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
        """The sum."""

    def add_norm(self, x: T, update: T, name: str, epsilon: float) -> tuple[T, T]:
        """(x + update, its LayerNorm)."""

    def linear(self, x: T, name: str) -> T:
        """X @ weight.T + bias; without a bias where the part has no ``name.bias``."""

    def split_linear(self, x: T, name: str, parts: int) -> tuple[T, ...]:
        """The same, cut into equal parts along the last axis."""

    def wide_linear(self, x: T, name: str, parts: int) -> T:
        """The same as ``linear``, for so many outputs that a graph computes them in parts."""

    def activation(self, x: T, kind: Activation, name: str) -> T:
        """GELU of one kind."""

    def chunked(self, x: T, name: str, sizes: tuple[int, int], body: Callable[[T], T]) -> T:
        """``body`` of x [batch, *sizes] with sizes (tokens, width), some tokens at a time where that pays."""

    def attention(self, q: T, k: T, v: T, name: str, heads: int) -> T:
        """softmax(q k^T / sqrt(head_dim)) v, each token seeing all of the context k, v."""

    def rotate(self, x: T, name: str, heads: int, rotary: Rotary) -> T:
        """Rotary positions."""

    def causal_attention(self, q: T, k: T, v: T, layer: int, name: str, heads: int) -> T:
        """The same as ``attention``, each token seeing itself and those before it, those in the KV cache included."""

    def last_positions(self, x: T) -> T:
        """The positions whose logits are wanted."""
