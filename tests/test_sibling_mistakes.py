"""Mistakes that the siblings' golden numbers must tell: each is made on purpose, and is too far off to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_runs import TOLERANCE, deviation
from numpy.typing import NDArray
from PIL import Image
from sibling_layouts import build
from sibling_reference import Reference, pixel_values
from siblings import FAMILIES, SIBLINGS, Sibling, fused, golden_numbers, matrices, split_lora
from torch import Tensor, nn

ARRAYS = ("image_features", "image_embeds", "prefill_logits", "step_logits")
CLIP = ("llava-phi",)
SIGLIP = ("mipha", "tinyllava", "bunny")
PADDED = ("llava-phi", "mipha", "bunny")
LORA = ("tinyllava", "bunny")
FURTHER = 2
"""A mistake must be so many tolerances off: the smallest are 5e-4 of the standard deviation."""


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_without_a_mistake(family: str) -> None:
    expected = golden_numbers(family)
    found = Reference(Sibling.golden(family)).run(expected)
    assert {name: deviation(found[name], expected[name]) < TOLERANCE / 10 for name in ARRAYS} == dict.fromkeys(
        ARRAYS, True
    )
    assert found["step_logits"].argmax(-1)[:-1].tolist() == expected["greedy_ids"].tolist()


def last_block(sibling: Sibling) -> Reference:
    """The last block's output, not that of the one before it."""
    if sibling.family == "bunny":
        stored = sibling.siglip["tower/model.safetensors"]
        sibling.tower |= {key: stored[key] for key in stored if ".encoder.layers.3." in key}
    reference = Reference(sibling)
    reference.blocks += 1
    return reference


def depth_by_the_file(sibling: Sibling) -> Reference:
    """Counting from the last block that is stored, where config.json's depth counts."""
    reference = Reference(sibling)
    reference.blocks -= 1
    return reference


def post_layernorm(sibling: Sibling) -> Reference:
    reference = Reference(sibling)
    features = reference.image_features
    norm = reference.post_layernorm
    reference.image_features = lambda pixels: norm(torch.from_numpy(features(pixels))).detach().numpy()
    return reference


def another_gelu(sibling: Sibling) -> Reference:
    """The exact one in the tower."""
    sibling.tower_config["hidden_act"] = "gelu"
    return Reference(sibling)


def no_pre_layernorm(sibling: Sibling) -> Reference:
    reference = Reference(sibling)
    reference.tower.vision_model.pre_layrnorm = nn.Identity()
    return reference


def no_token_dropped(sibling: Sibling) -> Reference:
    reference = Reference(sibling)
    reference.tokens = slice(0, None)
    return reference


def last_token_dropped(sibling: Sibling) -> Reference:
    reference = Reference(sibling)
    reference.tokens = slice(0, -1)
    return reference


def clip_rule_for_patches(sibling: Sibling) -> Reference:
    """The first token dropped, where SigLIP has no class token and only TinyLLaVA drops one all the same."""
    reference = Reference(sibling)
    reference.tokens = slice(1, None)
    return reference


def tanh_in_projector(sibling: Sibling) -> Reference:
    reference = Reference(sibling)
    reference.projector[1] = nn.GELU(approximate="tanh")
    return reference


def fused_rows_by_thirds(sibling: Sibling) -> Reference:
    """query_key_value's rows taken for q, then k, then v, where each head has its own three."""
    for key, rows in fused(sibling.phi, sibling.text_config["num_attention_heads"]).items():
        if ".query_key_value." in key:
            for name, third in zip("qkv", rows.chunk(3), strict=True):
                sibling.phi[key.replace("query_key_value", f"{name}_proj")] = third
    return Reference(sibling)


def no_head_bias(sibling: Sibling) -> Reference:
    sibling.phi["lm_head.bias"] = torch.zeros_like(sibling.phi["lm_head.bias"])
    return Reference(sibling)


def head_bias_kept(sibling: Sibling) -> Reference:
    """Phi-2's, as it stands in the base folder of Bunny's LoRA layout."""
    base = build("bunny", "LoRA .bin")["phi/model.safetensors"]
    reference = Reference(sibling)
    reference.language.lm_head.bias.data = base["lm_head.bias"][: sibling.config["vocab_size"]]
    return reference


def lora_left_out(sibling: Sibling) -> Reference:
    sibling.phi = split_lora(sibling.phi, matrices(sibling.phi)).base
    return Reference(sibling)


def lora_unscaled(sibling: Sibling) -> Reference:
    """B A added once, not alpha / r times."""
    lora = split_lora(sibling.phi, matrices(sibling.phi))
    sibling.phi = lora.base
    for name in lora.names:
        a, b = (lora.adapters[f"{name}.lora_{part}.weight"] for part in "AB")
        sibling.phi[f"{name}.weight"] = lora.base[f"{name}.weight"] + b @ a
    return Reference(sibling)


class Norms(nn.Module):
    """dense, and TinyGPT-V's RMSNorm of weight 1 after it."""

    def __init__(self, dense: nn.Module, width: int) -> None:
        super().__init__()
        self.dense, self.norm = dense, nn.RMSNorm(width, eps=1e-6)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(self.dense(states))


def tinygptv_norms(sibling: Sibling) -> Reference:
    """TinyGPT-V's post norm with weight 1, as if that changed nothing."""
    reference = Reference(sibling)
    for layer in reference.language.model.layers:
        layer.self_attn.dense = Norms(layer.self_attn.dense, sibling.text_config["hidden_size"])
    return reference


def wider_rotary(sibling: Sibling) -> Reference:
    """PhiConfig's default, half of a head."""
    sibling.text_config["partial_rotary_factor"] = 0.5
    return Reference(sibling)


MISTAKES: tuple[tuple[str, Callable[[Sibling], Reference], tuple[str, ...]], ...] = (
    ("image_features", last_block, FAMILIES),
    ("image_features", depth_by_the_file, ("bunny",)),
    ("image_features", post_layernorm, FAMILIES),
    ("image_features", another_gelu, FAMILIES),
    ("image_features", no_pre_layernorm, CLIP),
    ("image_features", no_token_dropped, ("llava-phi", "tinyllava")),
    ("image_features", last_token_dropped, ("llava-phi", "tinyllava")),
    ("image_features", clip_rule_for_patches, ("mipha", "bunny")),
    ("image_embeds", tanh_in_projector, FAMILIES),
    ("prefill_logits", fused_rows_by_thirds, FAMILIES),
    ("prefill_logits", no_head_bias, ("llava-phi", "mipha", "tinyllava")),
    ("prefill_logits", head_bias_kept, ("bunny",)),
    ("prefill_logits", lora_left_out, LORA),
    ("prefill_logits", lora_unscaled, LORA),
    ("prefill_logits", tinygptv_norms, FAMILIES),
    ("prefill_logits", wider_rotary, FAMILIES),
)


@pytest.mark.parametrize(
    ("array", "mistake", "family"),
    [
        pytest.param(array, mistake, family, id=f"{mistake.__name__}-{family}")
        for array, mistake, families in MISTAKES
        for family in families
    ],
)
def test_mistake_is_too_far_off(array: str, mistake: Callable[[Sibling], Reference], family: str) -> None:
    expected = golden_numbers(family)
    found = mistake(Sibling.golden(family)).run(expected)
    assert deviation(found[array], expected[array]) > FURTHER * TOLERANCE


def test_epsilon_shows_where_activations_are_small() -> None:
    """In the golden SigLIP towers another epsilon is 4e-5 off; test_sibling_fields has one where it is more."""
    sibling, expected = Sibling.golden("mipha"), golden_numbers("mipha")
    sibling.tower_config["layer_norm_eps"] = 1e-5
    found = Reference(sibling).image_features(expected["pixel_values"])
    assert deviation(found, expected["image_features"]) < TOLERANCE


PIXEL_MISTAKES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("black padding", {"fit": "pad", "color": (0, 0, 0)}, PADDED),
    ("padding rounded up", {"fit": "pad", "color": (123, 117, 105)}, CLIP),
    ("grey one too light", {"fit": "pad", "color": (128, 128, 128)}, ("mipha", "bunny")),
    ("crop for pad", {"fit": "crop"}, PADDED),
    ("squash for pad", {"fit": "squash"}, PADDED),
    ("pad for squash", {"fit": "pad"}, ("tinyllava",)),
    ("crop for squash", {"fit": "crop"}, ("tinyllava",)),
    ("bilinear", {"resample": Image.Resampling.BILINEAR}, FAMILIES),
    ("the other tower's mean and std", {"clip": None}, FAMILIES),
    ("size of the patches alone", {"size": 56}, SIGLIP),
)


def prepared(family: str, **changes: Any) -> NDArray[np.float32]:
    """picture.png's pixel values, by the family's own rules but for the changes."""
    sibling, clip = Sibling.golden(family), family in CLIP
    rules = {"size": sibling.tower_config["image_size"], "fit": "pad" if family in PADDED else "squash", "clip": clip}
    if changes.get("clip", clip) is None:
        changes["clip"] = not clip
    return pixel_values(SIBLINGS / family / "picture.png", **rules | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_without_a_mistake(family: str) -> None:
    expected = golden_numbers(family)
    assert np.array_equal(prepared(family), expected["pixel_values"])
    if "pixel_values_demo" in expected:
        demo = prepared(family, fit="crop" if family in CLIP else "squash")
        assert np.array_equal(demo, expected["pixel_values_demo"])


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        pytest.param(changes, family, id=f"{name}-{family}")
        for name, changes, families in PIXEL_MISTAKES
        for family in families
    ],
)
def test_mistaken_pixels_are_too_far_off(changes: dict[str, Any], family: str) -> None:
    """In image_embeds: test_siblings compares those of the picture itself."""
    expected, reference = golden_numbers(family), Reference(Sibling.golden(family))
    found = reference.image_embeds(reference.image_features(prepared(family, **changes)))
    assert deviation(found, expected["image_embeds"]) > FURTHER * TOLERANCE


def test_rows_past_the_tokenizer_would_win() -> None:
    """In the base folder of Bunny's LoRA layout, if they were neither cut off nor masked."""
    sibling, expected = Sibling.golden("bunny"), golden_numbers("bunny")
    base = build("bunny", "LoRA .bin")["phi/model.safetensors"]
    head = base["lm_head.weight"]
    logits = expected["prefill_logits"]
    hidden = (
        Reference(sibling).language.model(inputs_embeds=torch.from_numpy(expected["inputs_embeds"])).last_hidden_state
    )
    longer = (hidden.detach() @ head.float().T).numpy()
    assert deviation(longer[..., : logits.shape[-1]], logits) < TOLERANCE
    assert longer[0, -1].argmax() >= sibling.config["vocab_size"]
