"""The siblings in torch, of transformers' stock classes: another way to the golden numbers, to make mistakes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from siblings import Sibling, Tensors, cast
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PhiConfig,
    PhiForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

Array = NDArray[np.float32]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
TOWER_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
PHI_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "partial_rotary_factor",
    "rope_theta",
    "layer_norm_eps",
)


class Reference:
    """One sibling. Its parts are plain modules, and its choices plain attributes, for a test to change."""

    def __init__(self, sibling: Sibling) -> None:
        sizes, text, config = sibling.tower_config, sibling.text_config, sibling.config
        self.is_clip = "vision_model.pre_layrnorm.weight" in sibling.tower
        blocks = 1 + max(int(k.split(".")[3]) for k in sibling.tower if k.startswith("vision_model.encoder.layers."))
        tower_config = {name: sizes[name] for name in TOWER_SIZES if name in sizes} | {"num_hidden_layers": blocks}
        if self.is_clip:
            self.tower = CLIPVisionModel(CLIPVisionConfig(**tower_config))
        else:
            self.tower = SiglipVisionModel(SiglipVisionConfig(**tower_config, vision_use_head=False))
        # transformers 4.57 puts the normed output into the last of hidden_states, which the published code did not.
        self.post_layernorm = self.tower.vision_model.post_layernorm
        self.tower.vision_model.post_layernorm = nn.Identity()
        tower = {k: v for k, v in sibling.tower.items() if "post_layernorm" not in k and ".head." not in k}
        self._load(self.tower, tower)
        norm = {k.rpartition(".")[2]: v for k, v in sibling.tower.items() if "post_layernorm" in k}
        self._load(self.post_layernorm, norm)

        tower_fields = config.get("vision_config", {}).get("vision_tower", config)
        select_layer = config.get("vision_feature_layer", tower_fields.get("mm_vision_select_layer", -2))
        self.blocks = sizes["num_hidden_layers"] + 1 + select_layer
        """How many blocks are run."""
        feature = config.get("vision_feature_select_strategy", tower_fields.get("mm_vision_select_feature"))
        drops = self.is_clip or sibling.family == "tinyllava"
        self.tokens = slice(1 if drops and feature == "patch" else 0, None)
        """Which of the tower's tokens are handed on."""
        self.projector = _projector(sibling.projector)
        self._load(self.projector, sibling.projector)
        self.language = PhiForCausalLM(PhiConfig(**{name: text[name] for name in PHI_SIZES if name in text}))
        self._load(self.language, sibling.phi | no_bias(sibling))

    @staticmethod
    def _load(module: nn.Module, tensors: Tensors) -> None:
        module.load_state_dict(cast(tensors, torch.float32))
        module.eval()

    @torch.no_grad()
    def image_features(self, pixel_values: Array) -> Array:
        hidden = self.tower(torch.from_numpy(pixel_values), output_hidden_states=True).hidden_states[self.blocks]
        return hidden[:, self.tokens].numpy()

    @torch.no_grad()
    def image_embeds(self, image_features: Array) -> Array:
        return self.projector(torch.from_numpy(image_features)).numpy()

    @torch.no_grad()
    def logits(self, inputs_embeds: Array) -> Array:
        """Of all positions."""
        return self.language(inputs_embeds=torch.from_numpy(inputs_embeds)).logits.numpy()

    @torch.no_grad()
    def embed(self, ids: NDArray[np.int64]) -> Array:
        return self.language.get_input_embeddings()(torch.from_numpy(ids))[None].numpy()

    def run(self, expected: dict[str, NDArray[Any]]) -> dict[str, Array]:
        """Everything from the pixel values on; each stage reads what the one before it gave."""
        features = self.image_features(expected["pixel_values"])
        embeds = self.image_embeds(features)
        before, after, ids = (
            self.embed(expected[f"{n}"]) for n in ("input_ids_before", "input_ids_after", "greedy_ids")
        )
        logits = self.logits(np.concatenate((before, embeds, after, ids), axis=1))
        prompt = logits.shape[1] - ids.shape[1]
        return {
            "image_features": features,
            "image_embeds": embeds,
            "prefill_logits": logits[:, :prompt],
            "step_logits": logits[0, prompt - 1 :],
        }


def _projector(tensors: Tensors) -> nn.Module:
    """Linear layers with an exact GELU between them, at 0, 2, 4 ..., or a single one without a number."""
    weights = {key.rpartition(".")[0]: tensor for key, tensor in tensors.items() if key.endswith("weight")}
    linears = [nn.Linear(*reversed(weights[name].shape)) for name in sorted(weights)]
    if set(weights) == {""}:
        return linears[0]
    return nn.Sequential(*(module for linear in linears for module in (linear, nn.GELU())))[:-1]


def no_bias(sibling: Sibling) -> Tensors:
    """Bunny's head has no bias, which the stock class cannot do without."""
    return {"lm_head.bias": torch.zeros(sibling.text_config["vocab_size"])} if sibling.family == "bunny" else {}


def pixel_values(
    picture: Path,
    size: int,
    fit: str,
    clip: bool,
    color: tuple[int, int, int] | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Array:
    """A picture as the published processors prepare it: ``fit`` is pad, squash or crop."""
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (HALF, HALF)
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if fit == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), color or tuple(int(255 * value) for value in mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square.resize((size, size), resample)
    elif fit == "squash":
        # Rows first, as Pillow before 13 does by itself.
        image = image.resize((size, height), resample).resize((size, size), resample)
    else:
        width, height = (int(size * length / min(image.size)) for length in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), resample).crop((left, top, left + size, top + size))
    values = (np.asarray(image, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return values.transpose(2, 0, 1)[None]
