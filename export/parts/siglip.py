"""SigLIP's vision transformer, without the blocks, norm and head after the chosen hidden state."""

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
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""Defaults of SiglipVisionConfig, for fields that files leave out."""
KNOWN = {
    "google/siglip-so400m-patch14-384": DEFAULTS
    | {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
"""Published towers whose sizes need no configuration."""
MEAN = STD = (0.5, 0.5, 0.5)
CROPS = False
"""Its processor resizes straight to a square."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tower; field names are those of ``transformers``' SiglipVisionConfig."""

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
    """Whether the projector gets the first patch: TinyLLaVA drops it as if it were a class token."""

    @property
    def sequence(self) -> int:
        """Number of patches, row by row; pixels beyond the last complete patch are ignored."""
        return (self.image_size // self.patch_size) ** 2

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
        "visual.patch_embed.proj.weight": (width, 3, patch, patch),
        "visual.patch_embed.proj.bias": (width,),
        "visual.pos_embed": (1, sizes.sequence, width),
        **dict(vit.tensors(sizes)),
    }


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """Readers for the keys of ``transformers``' SiglipVisionModel."""
    width, patch = sizes.hidden_size, sizes.patch_size
    positions = weights.take(f"{NAME}.embeddings.position_embedding.weight", (sizes.sequence, width))
    return {
        "visual.patch_embed.proj.weight": weights.take(
            f"{NAME}.embeddings.patch_embedding.weight", (width, 3, patch, patch)
        ),
        "visual.patch_embed.proj.bias": weights.take(f"{NAME}.embeddings.patch_embedding.bias", (width,)),
        "visual.pos_embed": lambda: positions()[None],
        **dict(vit.read_transformers_blocks(weights, sizes)),
    }


def unused(sizes: Sizes) -> Iterable[str]:
    """Patterns of blocks after the last used one, final norm, pooling head, and the rest of a complete SigLIP."""
    yield from vit.unused_by_transformers(sizes.stored_layers, sizes)
    yield r"tower\.vision_model\.head\..+"
    yield r"tower\.logit_bias"


def example_input(sizes: Sizes) -> Shape:
    """Shape of pixel_values."""
    return 1, 3, sizes.image_size, sizes.image_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute image_features [batch, tokens, width] from pixel_values [batch, 3, size, size]."""
    x = ops.patches(x, "visual.patch_embed.proj", sizes.patch_size)
    x = ops.add_positions(x, "visual.pos_embed", "visual.embeddings")
    ops.tap("embeddings", x)
    x = vit.run(ops, sizes, x, sizes.hidden_act)
    return x if sizes.keep_first else ops.without_first(x, "visual.patches")
