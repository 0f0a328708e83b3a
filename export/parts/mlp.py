"""LLaVA's projector: linear layers with an exact GELU between, from image_features to image_embeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ops import Ops, T
from . import Read, Shape, Weights

EXACT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sizes:
    """``mlpKx_gelu``, or ``linear`` where ``num_hidden_layers`` is 1."""

    tokens: int
    input_size: int
    hidden_size: int
    """Hidden size of the language model."""
    num_hidden_layers: int
    numbered: bool
    """Whether keys contain the layer's index in a Sequential: 0, 2, 4 ..."""


def tensors(sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every tensor."""
    shapes: dict[str, Shape] = {}
    for i in range(sizes.num_hidden_layers):
        shapes[f"projector.{i}.weight"] = (sizes.hidden_size, sizes.hidden_size if i else sizes.input_size)
        shapes[f"projector.{i}.bias"] = (sizes.hidden_size,)
    return shapes


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """Readers for the layers; in the published Sequential only even indices are linear layers."""
    reads = {}
    for name, shape in tensors(sizes).items():
        _, number, kind = name.split(".")
        reads[name] = weights.take(
            f"projector.{2 * int(number)}.{kind}" if sizes.numbered else f"projector.{kind}", shape
        )
    return reads


def unused(sizes: Sizes) -> Iterable[str]:
    """No patterns: all keys are used."""
    return ()


def example_input(sizes: Sizes) -> Shape:
    """Shape of image_features."""
    return 1, sizes.tokens, sizes.input_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute image_embeds [batch, tokens, hidden] from image_features [batch, tokens, width]."""
    for i in ops.layers(sizes.num_hidden_layers):
        if i:
            x = ops.activation(x, "erf", f"projector.{i}.gelu")
        x = ops.linear(x, f"projector.{i}")
        if i + 1 < sizes.num_hidden_layers:
            ops.tap(f"layer {i}", x)
    return x
