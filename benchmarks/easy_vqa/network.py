"""The small TinyGPT-V that is trained here: its sizes, how its weights start, and the throwaway vision heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import COLOURS, SHAPES, SIZE, Scene
from tinygptv.export.parts import clip, eva_clip, phi, qformer
from tinygptv.export.sources.model import Network
from tinygptv.export.verify.oracle import Oracle
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor, nn

VISION = eva_clip.Sizes(
    image_size=SIZE,
    patch_size=8,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
)
LANGUAGE = phi.Sizes(
    vocab_size=640,
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=6,
    max_position_embeddings=512,
    rotary_dim=16,
    rope_theta=10000.0,
    qk_norm=True,
    post_norm=True,
)
QFORMER = qformer.Sizes(
    num_query_tokens=8,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    projection_size=256,
    encoder_tokens=VISION.tokens,
    encoder_hidden_size=VISION.hidden_size,
    output_size=LANGUAGE.hidden_size,
)
NETWORKS = {
    VISION_ENCODER: Network(eva_clip, VISION),
    PROJECTOR: Network(qformer, QFORMER),
    DECODER: Network(phi, LANGUAGE),
}


def pixel_values(pixels: NDArray[np.uint8]) -> Tensor:
    """Normalises pictures of the model's own size: [batch, height, width, 3] -> f32 [batch, 3, height, width]."""
    scaled = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.MEAN, clip.STD))
    return (scaled - mean) / std


def build_model() -> Oracle:
    """Builds the model with random weights that suit its small widths.

    Stock initial weights suit widths of thousands. Here every product keeps its input's scale, and the branches that
    add to the residual stream start small: Phi's post_layernorm would otherwise drown the token embeddings.
    """
    model = Oracle(NETWORKS)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    nn.init.normal_(model.projector.query_tokens, std=1.0)
    nn.init.normal_(model.vision.model.embeddings.position_embedding, std=0.5)
    for block in model.vision.model.encoder.layers:
        block.self_attn.projection.weight.data.mul_(0.35)
        block.mlp.fc2.weight.data.mul_(0.35)
    nn.init.normal_(model.language.model.embed_tokens.weight, std=1.0)
    for layer in model.language.model.layers:
        nn.init.constant_(layer.self_attn.dense.post_layernorm.weight, 0.35)
        layer.mlp.fc2.weight.data.mul_(0.35)
    nn.init.normal_(model.language.lm_head.weight, std=0.02)
    return model


class VisionHeads(nn.Module):
    """Reads one attribute off each of the first image tokens: shape, colour, and the box's four edges.

    They give the vision part something to learn before the language model knows what to ask, and keep it from
    forgetting that afterwards. They aren't saved with the model.
    """

    def __init__(self) -> None:
        super().__init__()
        hidden_size = LANGUAGE.hidden_size
        classes = (len(SHAPES), len(COLOURS), *4 * (SIZE + 1,))
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, count) for count in classes)

    def forward(self, image_embeds: Tensor) -> list[Tensor]:
        """Gives each attribute's logits, [batch, classes], from [batch, queries, hidden]."""
        tokens = self.norm(image_embeds)
        return [head(tokens[:, index]) for index, head in enumerate(self.heads)]

    def loss(self, image_embeds: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Cross-entropy, averaged over attributes and pictures."""
        labels = vision_labels(scenes)
        losses = [
            nn.functional.cross_entropy(logits.float(), labels[:, index])
            for index, logits in enumerate(self(image_embeds))
        ]
        return torch.stack(losses).mean()


def vision_labels(scenes: Sequence[Scene]) -> Tensor:
    """Gives the heads' classes, int64 [batch, 6]."""
    return torch.tensor([(SHAPES.index(scene.shape), COLOURS.index(scene.colour), *scene.box) for scene in scenes])
