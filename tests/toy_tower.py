"""A part that no published model has: a vision tower unlike the others, in the one file that a new part is.

Its MLP reads the output of a norm that is added up as well; its q, k and v have no biases, and read an RMSNorm's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinygptv.export.ops import Ops, T
from tinygptv.export.parts import Read, Shape, Weights

EXACT = frozenset({"toy.0.mlp.down"})


@dataclass(frozen=True)
class Sizes:
    image_size: int = 40
    patch_size: int = 10
    hidden_size: int = 24
    intermediate_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    epsilon: float = 0.02

    @property
    def sequence(self) -> int:
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        return self.sequence - 1


def tensors(sizes: Sizes) -> dict[str, Shape]:
    width, mlp = sizes.hidden_size, sizes.intermediate_size
    shapes: dict[str, Shape] = {
        "toy.first": (1, 1, width),
        "toy.patches.weight": (width, 3, sizes.patch_size, sizes.patch_size),
    }
    for i in range(sizes.num_hidden_layers):
        shapes |= {
            f"toy.{i}.qkv.weight": (3 * width, width),
            f"toy.{i}.out.weight": (width, width),
            f"toy.{i}.out.bias": (width,),
            f"toy.{i}.norm.weight": (width,),
            f"toy.{i}.norm.bias": (width,),
            f"toy.{i}.rms.weight": (width,),
            f"toy.{i}.mlp.up.weight": (mlp, width),
            f"toy.{i}.mlp.down.weight": (width, mlp),
        }
    return shapes


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    return {name: weights.take(f"tower.{name}", shape) for name, shape in tensors(sizes).items()}


def unused(sizes: Sizes) -> Iterable[str]:
    yield r"tower\.toy\.head\..+"


def example_input(sizes: Sizes) -> Shape:
    return 1, 3, sizes.image_size, sizes.image_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    x = ops.class_token(ops.patches(x, "toy.patches", sizes.patch_size), "toy.first")
    for i in ops.layers(sizes.num_hidden_layers):
        layer = f"toy.{i}"
        q, k, v = ops.split_linear(ops.rms_norm(x, f"{layer}.rms", sizes.epsilon), f"{layer}.qkv", 3)
        mixed = ops.linear(ops.attention(q, k, v, f"{layer}.attention", sizes.num_attention_heads), f"{layer}.out")
        _, x = ops.add_norm(x, mixed, f"{layer}.norm", sizes.epsilon)
        h = ops.linear(x, f"{layer}.mlp.up")
        h = ops.linear(ops.activation(h, "quick", f"{layer}.gelu"), f"{layer}.mlp.down")
        x = ops.add(x, h, f"{layer}.output")
        ops.tap(f"layer {i}", x)
    return ops.without_first(x, "toy.output")
