"""The ViT-g of TinyGPT-V in torch, from transformers' stock class and the published files, for peers that need it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel
from vision_input import PATCH, SIZE, TOKENS, WIDTH

EVA_FILE, BLIP2_FILE = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"
LAYERS, HEADS, INTERMEDIATE = 39, 16, 6144
"""In use: the file holds one block more."""
BLOCK_EPS, OUTPUT_EPS = 1e-6, 1e-5
PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class VisionEncoder(nn.Module):
    """pixel_values [batch, 3, 448, 448] to image_features [batch, 1025, 1408]."""

    def __init__(self) -> None:
        """Without weights, which ``load_state_dict(…, assign=True)`` brings; drawing random ones takes a minute."""
        super().__init__()
        config = Blip2VisionConfig(
            hidden_size=WIDTH,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=SIZE,
            patch_size=PATCH,
            hidden_act="gelu",
            layer_norm_eps=BLOCK_EPS,
            qkv_bias=True,
            attn_implementation="sdpa",
        )
        with torch.device("meta"):
            self.model = Blip2VisionModel(config).eval()
        self.model.post_layernorm.eps = OUTPUT_EPS

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model(pixel_values).last_hidden_state
        return features


def read_vision_encoder(checkpoint: Path) -> VisionEncoder:
    """Build the encoder, in float32, from ``eva_vit_g.pth`` and the ``ln_vision`` of BLIP-2's file.

    Raises:
        RuntimeError: A weight is missing, unknown or of the wrong shape; the message names each.
    """
    encoder = VisionEncoder()
    state = {name: tensor.float() for name, tensor in _state(checkpoint).items()}
    encoder.model.load_state_dict(state, strict=True, assign=True)
    return encoder


def _state(checkpoint: Path) -> dict[str, Tensor]:
    eva = torch.load(checkpoint / EVA_FILE, mmap=True, weights_only=True)
    blip2 = torch.load(checkpoint / BLIP2_FILE, mmap=True, weights_only=True)["model"]
    state = {
        "embeddings.class_embedding": eva["cls_token"],
        "embeddings.position_embedding": _positions(eva["pos_embed"]),
    }
    for parameter in ("weight", "bias"):
        state[f"embeddings.patch_embedding.{parameter}"] = eva[f"patch_embed.proj.{parameter}"]
        state[f"post_layernorm.{parameter}"] = blip2[f"ln_vision.{parameter}"]
    for i in range(LAYERS):
        block, layer = f"blocks.{i}", f"encoder.layers.{i}"
        for published, name in PARTS.items():
            state[f"{layer}.{name}.weight"] = eva[f"{block}.{published}.weight"]
            if published != "attn.qkv":
                state[f"{layer}.{name}.bias"] = eva[f"{block}.{published}.bias"]
        q, v = (eva[f"{block}.attn.{part}_bias"] for part in "qv")
        state[f"{layer}.self_attn.qkv.bias"] = torch.cat((q, torch.zeros_like(q), v))  # the published k has no bias
    return state


def _positions(table: Tensor) -> Tensor:
    """The position table [1, 257, 1408] of 224 px, its patch rows resized to 448 px as the published code does."""
    side, wanted = (round((tokens - 1) ** 0.5) for tokens in (table.shape[1], TOKENS))
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
