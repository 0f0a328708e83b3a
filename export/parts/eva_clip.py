"""EVA-CLIP's vision transformer as BLIP-2 uses it, and BLIP-2's ``ln_vision``: TinyGPT-V's tower."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from ..ops import Ops, T
from . import Read, Shape, Weights, vit

EXACT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tower; field names are those of ``transformers``' configuration classes."""

    image_size: int
    """Side of the square input, in pixels."""
    patch_size: int
    """Side of a square patch, in pixels."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    """Number of blocks that are used."""
    num_attention_heads: int
    layer_norm_eps: float = 1e-6
    output_norm_eps: float = 1e-5
    """Epsilon of ``ln_vision``, which differs from the blocks' own."""

    @property
    def sequence(self) -> int:
        """Tokens per picture: one class token and the patches, row by row."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Number of tokens per picture that the projector gets: all of them."""
        return self.sequence


def tensors(sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every tensor."""
    width, patch = sizes.hidden_size, sizes.patch_size
    return {
        "visual.cls_token": (1, 1, width),
        "visual.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual.patch_embed.proj.bias": (width,),
        "visual.pos_embed": (1, sizes.tokens, width),
        **dict(vit.tensors(sizes)),
        "ln_vision.weight": (width,),
        "ln_vision.bias": (width,),
    }


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """Readers by published key; qkv's bias is joined as (q_bias, 0, v_bias), and the positions are resized."""
    width = sizes.hidden_size
    reads: dict[str, Read] = {}
    for name, shape in tensors(sizes).items():
        if name == "visual.pos_embed":
            stored = weights.shape(name) if weights.has(name) else shape
            side = round(max(1, stored[1] - 1) ** 0.5) if len(stored) == 3 else 1
            positions = weights.take(name, (1, 1 + side * side, width))
            reads[name] = partial(_resized, positions, sizes.tokens)
        elif name.endswith(".attn.qkv.bias"):
            q, v = (weights.take(name.replace("qkv.bias", f"{part}_bias"), (width,)) for part in "qv")
            reads[name] = partial(_qkv_bias, q, v)
        else:
            reads[name] = weights.take(name, shape)
    return reads


def unused(sizes: Sizes) -> Iterable[str]:
    """Norm and head after the last block, and the block after the last used one (40 on disk, 39 used)."""
    return r"visual\.(norm|head)\.(weight|bias)", rf"visual\.blocks\.{sizes.num_hidden_layers}\..+"


def example_input(sizes: Sizes) -> Shape:
    """Shape of pixel_values."""
    return 1, 3, sizes.image_size, sizes.image_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute image_features [batch, tokens, width] from pixel_values [batch, 3, size, size]."""
    x = ops.patches(x, "visual.patch_embed.proj", sizes.patch_size)
    x = ops.add_positions(ops.class_token(x, "visual.cls_token"), "visual.pos_embed", "visual.embeddings")
    ops.tap("embeddings", x)
    return vit.run(ops, sizes, x, "erf", ("ln_vision", sizes.output_norm_eps))


def resize_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resize a ViT's position table [1, 1 + side^2, width] to ``tokens`` rows.

    Patch rows only, bicubic with ``align_corners=False`` as the published code does; the class token's row is kept.
    """
    if table.shape[1] == tokens:
        return table
    old, new = round((table.shape[1] - 1) ** 0.5), round((tokens - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def _resized(positions: Read, tokens: int) -> torch.Tensor:
    return resize_positions(positions(), tokens)


def _qkv_bias(q: Read, v: Read) -> torch.Tensor:
    """The bias of q, k and v as one tensor; k's is zero."""
    query = q()
    return torch.cat((query, torch.zeros_like(query), v()))
