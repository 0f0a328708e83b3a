"""The pre-norm transformer shared by all vision towers, with EVA-CLIP's names for its tensors.

With h = norm1(x): x = x + attn(h); then x = x + mlp(norm2(x)) (Dosovitskiy et al. 2020, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from tinygptv.runtime.errors import ExportError

from ..documents import Config
from ..ops import Activation, Ops, T
from . import Read, Shape, Weights

BLOCK = "visual.blocks"
FLOAT_BYTES = 4
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
}
"""Activations by their names in ``transformers``."""
FIRST_QKV = frozenset({f"{BLOCK}.0.attn.qkv"})
"""What is rounded there, every later block inherits: in int8 it cost CLIP and SigLIP towers more than all other layers
together (golden models, worst token: cosine 0.998, 0.9995 without), and it is a fiftieth of a tower's products."""


class Sizes(Protocol):
    """Sizes of the blocks; field names are those of ``transformers``' configuration classes."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks that are used."""

    @property
    def num_attention_heads(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def sequence(self) -> int:
        """Number of tokens that the blocks process."""


def tensors(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    """Name and shape of the blocks' tensors; q, k and v are one matrix with rows in that order."""
    width, mlp = sizes.hidden_size, sizes.intermediate_size
    for i in range(sizes.num_hidden_layers):
        block = f"{BLOCK}.{i}"
        for norm in ("norm1", "norm2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
        for linear, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", mlp, width),
            ("mlp.fc2", width, mlp),
        ):
            yield f"{block}.{linear}.weight", (rows, columns)
            yield f"{block}.{linear}.bias", (rows,)


def run(ops: Ops[T], sizes: Sizes, x: T, activation: Activation, final_norm: tuple[str, float] | None = None) -> T:
    """Run all blocks on x [batch, sequence, width], then the final norm (name, epsilon) if there is one."""
    heads, epsilon, count = sizes.num_attention_heads, sizes.layer_norm_eps, sizes.num_hidden_layers
    normed = ops.layer_norm(x, f"{BLOCK}.0.norm1", epsilon)
    for i in ops.layers(count):
        block = f"{BLOCK}.{i}"
        q, k, v = ops.split_linear(normed, f"{block}.attn.qkv", 3)
        attention = ops.linear(ops.attention(q, k, v, f"{block}.attn", heads), f"{block}.attn.proj")
        x, normed = ops.add_norm(x, attention, f"{block}.norm2", epsilon)

        def mlp(h: T, block: str = block) -> T:
            inner = ops.activation(ops.linear(h, f"{block}.mlp.fc1"), activation, f"{block}.mlp.gelu")
            return ops.linear(inner, f"{block}.mlp.fc2")

        update = ops.chunked(normed, f"{block}.mlp", (sizes.sequence, sizes.hidden_size), mlp)
        following = (f"{BLOCK}.{i + 1}.norm1", epsilon) if i + 1 < count else final_norm
        if following is None:
            x = ops.add(x, update, f"{block}.output")
        else:
            x, normed = ops.add_norm(x, update, *following)
        ops.tap(f"block {i}", x)
    return x if final_norm is None else normed


def sizes_from(config: Config, select_layer: int) -> dict[str, Any]:
    """Sizes of a tower, from its configuration in ``transformers``' form.

    Args:
        config: The tower's, with its class's defaults.
        select_layer: The hidden state that goes on to the projector: 0 is the input of the first block, k the output of
            block k; a negative one counts from the end, -1 is the last block's.

    Raises:
        ExportError: A field is missing or out of range, or asks for what the blocks do not have.
    """
    config.expect("num_channels", 3)
    config.expect("hidden_act", *ACTIVATIONS)
    width, heads, blocks = (
        config.integer(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    if width % heads:
        raise ExportError(f"{config.label}: width {width} is not divisible by {heads} heads")
    used = blocks + 1 + select_layer if select_layer < 0 else select_layer
    if not 1 <= used <= blocks:
        raise ExportError(
            f"{config.label}: hidden state {select_layer} is selected, of a tower with {blocks} blocks; "
            "expected one after a block, such as -2"
        )
    return {
        "image_size": config.integer("image_size"),
        "patch_size": config.integer("patch_size"),
        "hidden_size": width,
        "intermediate_size": config.integer("intermediate_size"),
        "num_hidden_layers": used,
        "stored_layers": blocks,
        "num_attention_heads": heads,
        "hidden_act": ACTIVATIONS[config.text("hidden_act")],
        "layer_norm_eps": config.number("layer_norm_eps"),
    }


def read_transformers_blocks(weights: Weights, sizes: Sizes) -> Iterator[tuple[str, Read]]:
    """Readers for the blocks from the keys of ``transformers``' CLIP and SigLIP, ``tower.vision_model.encoder.…``."""
    shapes = dict(tensors(sizes))
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    for name, shape in shapes.items():
        number, _, rest = name.removeprefix(f"{BLOCK}.").partition(".")
        layer, (module, _, kind) = f"tower.vision_model.encoder.layers.{number}", rest.rpartition(".")
        if module == "attn.qkv":
            third = (shape[0] // 3, *shape[1:])
            reads = [weights.take(f"{layer}.self_attn.{part}_proj.{kind}", third) for part in "qkv"]
            yield name, partial(_stacked, reads)
        else:
            yield name, weights.take(f"{layer}.{names.get(module, module)}.{kind}", shape)


def _stacked(reads: Sequence[Read]) -> torch.Tensor:
    return torch.cat([read() for read in reads])


def unused_by_transformers(stored_layers: int, sizes: Sizes) -> Iterator[str]:
    """Patterns of unused keys of ``transformers``' CLIP and SigLIP: blocks after the last used one, and the text half.

    Args:
        stored_layers: Blocks that the files may hold.
        sizes: The tower's.
    """
    later = "|".join(str(i) for i in range(sizes.num_hidden_layers, stored_layers))
    yield rf"tower\.vision_model\.encoder\.layers\.({later})\..+"
    yield r"tower\.vision_model\.(post_layernorm\.(weight|bias)|embeddings\.position_ids)"
    yield r"tower\.(text_model\..+|logit_scale)"


def working_bytes(sizes: Sizes) -> int:
    """Estimated memory of encoding one picture: attention's products and the MLP's inner tensor, twice."""
    return 2 * FLOAT_BYTES * sizes.sequence * (sizes.num_attention_heads * sizes.sequence + sizes.intermediate_size)
