"""The torch counterpart of the graph writer: computes a part in float32, one layer's weights at a time.

Calibration watches the input of every linear layer with it. Run on the meta device it computes nothing, and shows
which linear layers read the same tensor and where that tensor comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .ops import LEAST, Activation, Rotary


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor, as far as smoothing can use it."""

    norm: str = ""
    """The norm whose output it is."""
    norm_has_bias: bool = True
    values: str = ""
    """The linear layer whose last third are the values v that an attention mixes: the tensor is the mixture."""
    heads: int = 0
    """Number of heads of that attention."""
    least: float | None = None
    """Lower bound of the values."""


UNKNOWN = Origin()


@dataclass(frozen=True, eq=False)
class Value:
    """An intermediate tensor of a network; two are the same only if they are one object."""

    data: Tensor
    origin: Origin = UNKNOWN


Observe = Callable[[str, Value], object]
"""Called with the name and the input of each linear layer, in the order of computation."""
OnCache = Callable[[str, Value, Value, int], object]
"""Called for each causal attention with its name, the keys and values in its KV cache, and its number of heads."""


class TorchOps:
    """Implements :class:`.ops.Ops` by computing in torch.

    Args:
        tensors: The part's, by name; float32.
        observe: Called before each linear layer.
        on_cache: Called before each causal attention.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        observe: Observe = lambda name, x: None,
        on_cache: OnCache = lambda name, keys, values, heads: None,
    ) -> None:
        self._tensors = tensors
        self._observe, self._on_cache = observe, on_cache

    def layers(self, count: int) -> Iterator[int]:
        return iter(range(count))

    def tap(self, row: str, x: Value) -> None:
        pass

    def patches(self, pixel_values: Value, name: str, size: int) -> Value:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        return Value(functional.conv2d(pixel_values.data, weight, bias, stride=size).flatten(2).transpose(1, 2))

    def class_token(self, x: Value, name: str) -> Value:
        token = self._tensors[name].expand(len(x.data), -1, -1)
        return Value(torch.cat((token, x.data), dim=1))

    def add_positions(self, x: Value, name: str, output: str) -> Value:
        return Value(x.data + self._tensors[name])

    def without_first(self, x: Value, name: str) -> Value:
        return Value(x.data[:, 1:])

    def queries(self, name: str, norm: str, epsilon: float, like: Value) -> Value:
        return self.layer_norm(Value(self._tensors[name].expand(len(like.data), -1, -1)), norm, epsilon)

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        weight = self._tensors[f"{name}.weight"]
        data = functional.layer_norm(x.data, weight.shape, weight, self._tensors[f"{name}.bias"], epsilon)
        return Value(data, Origin(norm=name))

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        weight = self._tensors[f"{name}.weight"]
        return Value(functional.rms_norm(x.data, weight.shape, weight, epsilon), Origin(norm=name, norm_has_bias=False))

    def head_norm(self, x: Value, name: str, heads: int, epsilon: float) -> Value:
        by_head = Value(x.data.unflatten(-1, (heads, -1)))
        return Value(self.layer_norm(by_head, name, epsilon).data.flatten(-2))

    def add(self, x: Value, y: Value, name: str) -> Value:
        return Value(x.data + y.data)

    def add_norm(self, x: Value, update: Value, name: str, epsilon: float) -> tuple[Value, Value]:
        total = Value(x.data + update.data)
        return total, self.layer_norm(total, name, epsilon)

    def linear(self, x: Value, name: str) -> Value:
        self._observe(name, x)
        return Value(functional.linear(x.data, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")))

    def split_linear(self, x: Value, name: str, parts: int) -> tuple[Value, ...]:
        *others, last = self.linear(x, name).data.chunk(parts, dim=-1)
        return (*(Value(part) for part in others), Value(last, Origin(values=name)))

    def wide_linear(self, x: Value, name: str, parts: int) -> Value:
        return self.linear(x, name)

    def activation(self, x: Value, kind: Activation, name: str) -> Value:
        if kind == "quick":
            data = x.data * torch.sigmoid(1.702 * x.data)
        else:
            data = functional.gelu(x.data, approximate="tanh" if kind == "tanh" else "none")
        return Value(data, Origin(least=LEAST[kind]))

    def chunked(self, x: Value, name: str, sizes: tuple[int, int], body: Callable[[Value], Value]) -> Value:
        return body(x)

    def attention(self, q: Value, k: Value, v: Value, name: str, heads: int) -> Value:
        return self._attention(q, k, v, heads, causal=False)

    def rotate(self, x: Value, name: str, heads: int, rotary: Rotary) -> Value:
        angles = rotary.angles(x.data.shape[1]).to(x.data.device)[:, None]  # [sequence, 1, dim / 2]
        cos, sin, half = angles.cos(), angles.sin(), rotary.dim // 2
        by_head = x.data.unflatten(-1, (heads, -1))
        first, second, rest = by_head[..., :half], by_head[..., half : 2 * half], by_head[..., 2 * half :]
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
        return Value(rotated.flatten(-2))

    def causal_attention(self, q: Value, k: Value, v: Value, layer: int, name: str, heads: int) -> Value:
        self._on_cache(name, k, v, heads)
        return self._attention(q, k, v, heads, causal=True)

    def last_positions(self, x: Value) -> Value:
        return x

    def _attention(self, q: Value, k: Value, v: Value, heads: int, causal: bool) -> Value:
        # [batch, sequence, heads * head_dim] to [batch, heads, sequence, head_dim]
        query, key, value = (part.data.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        origin = replace(v.origin, heads=heads) if v.origin.values else v.origin
        return Value(mixed.transpose(1, 2).flatten(2), origin)
