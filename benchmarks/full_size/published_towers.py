"""The siblings' vision towers and projector: sizes, and which tensors there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from random_tensors import Tensor, linear_tensors, norm_tensors, patch_tensor


@dataclass(frozen=True)
class TowerSizes:
    """What sets the shapes of a CLIP or SigLIP tower's tensors."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int = 14
    projection_size: int | None = None
    """Of CLIP's visual_projection, which config.json names and no file holds."""

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


CLIP_L_336 = TowerSizes(
    hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, image_size=336, projection_size=768
)
SIGLIP_SO400M_384 = TowerSizes(hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16, image_size=384)


def clip_tensors(sizes: TowerSizes, dtype: torch.dtype, prefix: str) -> Iterator[Tensor]:
    """OpenAI's CLIP, all of its vision half but visual_projection."""
    width, embeddings = sizes.hidden_size, f"{prefix}embeddings"
    yield Tensor(f"{embeddings}.class_embedding", (width,), dtype)
    yield patch_tensor(f"{embeddings}.patch_embedding.weight", width, sizes.patch_size, dtype)
    yield Tensor(f"{embeddings}.position_embedding.weight", (1 + sizes.patches, width), dtype, std=0.5)
    yield from norm_tensors(f"{prefix}pre_layrnorm", width, dtype)
    yield from _blocks(sizes, sizes.num_layers, dtype, prefix)
    yield from norm_tensors(f"{prefix}post_layernorm", width, dtype)


def siglip_tensors(
    sizes: TowerSizes, dtype: torch.dtype, prefix: str, blocks: int | None = None, head: bool = True
) -> Iterator[Tensor]:
    """Google's SigLIP, its vision half; ``blocks`` of them if not all, with the pooling head or without."""
    width, embeddings = sizes.hidden_size, f"{prefix}embeddings"
    yield patch_tensor(f"{embeddings}.patch_embedding.weight", width, sizes.patch_size, dtype)
    yield Tensor(f"{embeddings}.patch_embedding.bias", (width,), dtype, std=0.02)
    yield Tensor(f"{embeddings}.position_embedding.weight", (sizes.patches, width), dtype, std=0.5)
    yield from _blocks(sizes, blocks or sizes.num_layers, dtype, prefix)
    yield from norm_tensors(f"{prefix}post_layernorm", width, dtype)
    if head:
        yield Tensor(f"{prefix}head.probe", (1, 1, width), dtype)
        yield Tensor(f"{prefix}head.attention.in_proj_weight", (3 * width, width), dtype, std=1 / math.sqrt(width))
        yield Tensor(f"{prefix}head.attention.in_proj_bias", (3 * width,), dtype, std=0.02)
        yield from linear_tensors(f"{prefix}head.attention.out_proj", width, width, dtype)
        yield from norm_tensors(f"{prefix}head.layernorm", width, dtype)
        yield from linear_tensors(f"{prefix}head.mlp.fc1", sizes.intermediate_size, width, dtype)
        yield from linear_tensors(f"{prefix}head.mlp.fc2", width, sizes.intermediate_size, dtype)


def _blocks(sizes: TowerSizes, count: int, dtype: torch.dtype, prefix: str) -> Iterator[Tensor]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    residual_gain = 1 / math.sqrt(2 * sizes.num_layers)
    for i in range(count):
        layer = f"{prefix}encoder.layers.{i}"
        yield from norm_tensors(f"{layer}.layer_norm1", width, dtype)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from linear_tensors(f"{layer}.self_attn.{name}", width, width, dtype)
        yield from linear_tensors(f"{layer}.self_attn.out_proj", width, width, dtype, gain=residual_gain)
        yield from norm_tensors(f"{layer}.layer_norm2", width, dtype)
        yield from linear_tensors(f"{layer}.mlp.fc1", inner, width, dtype)
        yield from linear_tensors(f"{layer}.mlp.fc2", width, inner, dtype, gain=residual_gain)


def projector_tensors(tower_width: int, width: int, dtype: torch.dtype, prefix: str) -> Iterator[Tensor]:
    """mlp2x_gelu: two linear layers, of which the GELU between them takes the number 1."""
    yield from linear_tensors(f"{prefix}0", width, tower_width, dtype)
    yield from linear_tensors(f"{prefix}2", width, width, dtype)
