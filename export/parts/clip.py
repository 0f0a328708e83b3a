"""CLIP's vision transformer, without the blocks and the norm after the chosen hidden state: LLaVA-Phi's tower."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..documents import Config
from ..ops import Activation, Ops, T
from . import Read, Shape, Weights, vit

NAME = "tower.vision_model"
EXACT = vit.FIRST_QKV
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Defaults of CLIPVisionConfig, for fields that files leave out."""
KNOWN: dict[str, dict[str, Any]] = {}
"""Published towers whose sizes need no configuration."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CROPS = True
"""Its processor resizes the shorter side and cuts the middle out."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tower; field names are those of ``transformers``' CLIPVisionConfig."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    """Number of blocks that are used."""
    stored_layers: int
    """Maximum number of blocks in the files."""
    num_attention_heads: int
    hidden_act: Activation
    layer_norm_eps: float
    keep_first: bool
    """Whether the projector also gets the class token (``cls_patch``)."""

    @property
    def sequence(self) -> int:
        """Number of tokens: one class token and the patches, row by row."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Number of tokens per picture that the projector gets."""
        return self.sequence - (not self.keep_first)


def sizes_from(config: Config, select_layer: int, keep_first: bool) -> Sizes:
    """See :func:`.vit.sizes_from`."""
    return Sizes(**vit.sizes_from(config, select_layer), keep_first=keep_first)


def tensors(sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every tensor."""
    width, patch = sizes.hidden_size, sizes.patch_size
    return {
        "visual.cls_token": (1, 1, width),
        "visual.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual.pos_embed": (1, sizes.sequence, width),
        "visual.pre_norm.weight": (width,),
        "visual.pre_norm.bias": (width,),
        **dict(vit.tensors(sizes)),
    }


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """Readers for the keys of ``transformers``' CLIPVisionModel."""
    width, patch = sizes.hidden_size, sizes.patch_size
    token = weights.take(f"{NAME}.embeddings.class_embedding", (width,))
    positions = weights.take(f"{NAME}.embeddings.position_embedding.weight", (sizes.sequence, width))
    return {
        "visual.cls_token": lambda: token()[None, None],
        "visual.patch_embed.proj.weight": weights.take(
            f"{NAME}.embeddings.patch_embedding.weight", (width, 3, patch, patch)
        ),
        "visual.pos_embed": lambda: positions()[None],
        "visual.pre_norm.weight": weights.take(f"{NAME}.pre_layrnorm.weight", (width,)),
        "visual.pre_norm.bias": weights.take(f"{NAME}.pre_layrnorm.bias", (width,)),
        **dict(vit.read_transformers_blocks(weights, sizes)),
    }


def unused(sizes: Sizes) -> Iterable[str]:
    """Patterns of blocks after the last used one, the final norm, and the rest of a complete CLIP."""
    yield from vit.unused_by_transformers(sizes.stored_layers, sizes)
    yield r"tower\.(visual|text)_projection\.weight"


def example_input(sizes: Sizes) -> Shape:
    """Shape of pixel_values."""
    return 1, 3, sizes.image_size, sizes.image_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute image_features [batch, tokens, width] from pixel_values [batch, 3, size, size]."""
    x = ops.patches(x, "visual.patch_embed.proj", sizes.patch_size)
    x = ops.add_positions(ops.class_token(x, "visual.cls_token"), "visual.pos_embed", "visual.embeddings")
    x = ops.layer_norm(x, "visual.pre_norm", sizes.layer_norm_eps)
    ops.tap("embeddings", x)
    x = vit.run(ops, sizes, x, sizes.hidden_act)
    return x if sizes.keep_first else ops.without_first(x, "visual.patches")
