"""Sibling folders that cannot be exported: one line that names the thing, and no bundle."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal
from sibling_layouts import LAYOUTS, build, one_folder
from siblings import Files, Sibling, write

Change = Callable[[Files], object]
CONFIG, ADAPTER, ADAPTER_CONFIG = "model/config.json", "model/adapter_model.safetensors", "model/adapter_config.json"


def set_field(path: str, *keys: str, value: Any) -> Change:
    """Set a field of a document, which may lie in others."""

    def change(files: Files) -> None:
        document = files[path]
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def refused(files: Files, folder: Path, refusal: Refusal, *names: str) -> None:
    message = refusal(write(files, folder / "files")).replace(".base_layer", "")
    for name in names:
        assert name.lower() in message.lower(), message


LLAVA_TOWER = ("vision_config", "vision_tower")
LLAVA_PROJECTOR = ("vision_config", "mm_projector", "mm_projector_type")
VARIANTS: tuple[tuple[str, tuple[str, ...], Any, str], ...] = (
    ("bunny", ("use_s2",), True, "use_s2"),
    ("bunny", ("mm_vision_tower",), "QuanSun/EVA02_CLIP_L_336_psz14_s6B", "EVA"),
    ("bunny", ("mm_projector_type",), "minigpt", "minigpt"),
    ("bunny", ("mm_projector_type",), "spp", "spp"),
    ("bunny", ("mm_projector_type",), "ldp", "ldp"),
    ("bunny", ("model_type",), "bunny-phi3", "bunny-phi3"),
    ("bunny", ("model_type",), "bunny-stablelm", "bunny-stablelm"),
    ("llava-phi", ("image_aspect_ratio",), "anyres", "anyres"),
    ("llava-phi", LLAVA_PROJECTOR, "qformer", "qformer"),
    ("llava-phi", LLAVA_PROJECTOR, "resampler", "resampler"),
    ("llava-phi", (*LLAVA_TOWER, "mm_vision_select_feature"), "cls", "'cls'"),
    ("llava-phi", (*LLAVA_TOWER, "mm_vision_select_layer"), -9, "-9"),
    ("llava-phi", ("mm_use_im_start_end",), True, "mm_use_im_start_end"),
    ("llava-phi", ("qk_layernorm",), True, "qk_layernorm"),
    ("llava-phi", ("rope_scaling",), {"type": "linear", "factor": 2.0}, "rope_scaling"),
    ("llava-phi", ("num_key_value_heads",), 2, "num_key_value_heads"),
    ("llava-phi", ("hidden_act",), "silu", "silu"),
    ("llava-phi", ("tie_word_embeddings",), True, "tie_word_embeddings"),
    ("llava-phi", ("model_type",), "llava", "llava"),
    ("llava-phi", ("architectures",), ["LlavaLlamaForCausalLM"], "LlavaLlamaForCausalLM"),
    ("mipha", ("architectures",), ["MiphaGemmaForCausalLM"], "MiphaGemmaForCausalLM"),
    ("mipha", ("model_type",), "mipha_gemma", "mipha_gemma"),
    ("mipha", ("model_type",), "mipha_phi3", "mipha_phi3"),
    ("mipha", (*LLAVA_TOWER, "vision_model_name_or_path"), "facebook/dinov2-large", "dinov2"),
    ("mipha", LLAVA_PROJECTOR, "ldpnet", "ldpnet"),
    ("tinyllava", ("image_aspect_ratio",), "anyres", "anyres"),
    ("tinyllava", ("connector_type",), "resampler", "resampler"),
    ("tinyllava", ("connector_type",), "qformer", "qformer"),
    ("tinyllava", ("connector_type",), "mof_mlp", "mof_mlp"),
    ("tinyllava", ("vision_model_name_or_path",), "facebook/dinov2-large", "dinov2"),
    ("tinyllava", ("vision_model_name_or_path",), "mof:openai/clip-vit-large-patch14", "mof"),
    ("tinyllava", ("llm_model_name_or_path",), "google/gemma-2b-it", "gemma"),
    ("tinyllava", ("text_config", "model_type"), "gemma", "gemma"),
    ("tinyllava", ("text_config", "model_type"), "phi3", "phi3"),
    ("tinyllava", ("vision_feature_select_strategy",), "cls", "'cls'"),
    ("tinyllava", ("vision_feature_layer",), [-2, -5], "vision_feature_layer"),
)


@pytest.mark.parametrize(("family", "field", "value", "named"), VARIANTS)
def test_variant_is_refused(
    family: str, field: tuple[str, ...], value: Any, named: str, tmp_path: Path, refusal: Refusal
) -> None:
    files = one_folder(Sibling.golden(family))
    set_field(CONFIG, *field, value=value)(files)
    refused(files, tmp_path, refusal, named)


def without(path: str, *more: str) -> Change:
    """Without these files, or all below these folders."""

    def change(files: Files) -> None:
        for name in [name for name in files if name.startswith((path, *more))]:
            del files[name]

    return change


@pytest.mark.parametrize(
    ("family", "layout", "change", "named"),
    [
        ("bunny", "merged", without("tower/"), "--tower"),
        ("bunny", "LoRA", without("tower/"), "--tower"),
        ("bunny", "LoRA", without("phi/"), "--phi"),
        ("tinyllava", "legacy", without("tower/"), "--tower"),
        ("bunny", "LoRA", without("model/non_lora_trainables.bin"), "non_lora_trainables.bin"),
        ("bunny", "LoRA", without(ADAPTER), "adapter_model"),
        ("bunny", "LoRA", without("tower/config.json"), "config.json"),
        ("tinyllava", "recipe", without("model/connector/"), "connector"),
        ("tinyllava", "recipe", without("model/vision_tower/"), "vision_tower"),
        ("tinyllava", "LoRA recipe", without(ADAPTER_CONFIG), "adapter_config.json"),
        ("tinyllava", "LoRA recipe", without(ADAPTER), "adapter_model"),
        ("llava-phi", "one file", without(CONFIG), "config.json"),
        ("llava-phi", "one file", without("model/vocab.json", "model/tokenizer.json"), "vocab.json"),
        ("llava-phi", "fused bf16", without("model/model-00002"), "model-00002-of-00002.safetensors"),
    ],
)
def test_what_is_needed_and_not_there(
    family: str, layout: str, change: Change, named: str, tmp_path: Path, refusal: Refusal
) -> None:
    files = build(family, layout)
    change(files)
    refused(files, tmp_path, refusal, named)


@pytest.mark.parametrize(
    ("family", "layout", "option"),
    [
        ("llava-phi", "one file", "tower"),
        ("llava-phi", "one file", "phi"),
        ("mipha", "fp16", "tower"),
        ("mipha", "fp16", "phi"),
        ("tinyllava", "one folder", "tower"),
        ("tinyllava", "one folder", "phi"),
        ("tinyllava", "recipe", "tower"),
        ("tinyllava", "LoRA recipe", "phi"),
        ("tinyllava", "legacy", "phi"),
        ("bunny", "merged", "phi"),
    ],
)
def test_what_is_given_and_not_needed(family: str, layout: str, option: str, tmp_path: Path, refusal: Refusal) -> None:
    given = {path: content for path, content in build("bunny", "LoRA").items() if path.startswith(f"{option}/")}
    refused(build(family, layout) | given, tmp_path, refusal, f"--{option}")


def test_small_tower_under_the_published_name(tmp_path: Path, refusal: Refusal) -> None:
    """The published tower's number of heads would give other numbers without a word."""
    files = build("bunny", "merged")
    without("tower/")(files)
    refused(files, tmp_path, refusal, "google/siglip-so400m-patch14-384", "64", "--tower")


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 48), ("crop_size", 48), ("resample", 2), ("do_resize", False), ("do_normalize", False)],
)
def test_processor_that_is_not_the_towers(field: str, value: Any, tmp_path: Path, refusal: Refusal) -> None:
    files = build("llava-phi", "sizes as dictionaries")
    files["model/preprocessor_config.json"][field] = value
    refused(files, tmp_path, refusal, "preprocessor_config.json", field)


def plain(key: str) -> str:
    """A key without what LoRA puts before and into it: a message may name it with or without."""
    return key.replace(".base_layer", "").removeprefix("base_model.model.")


def tensor_files(files: Files) -> list[str]:
    """The model's own before Phi-2's and the tower's."""
    return sorted(path for path in files if path.endswith((".safetensors", ".bin")))


TOWER_LAYOUTS = ("LoRA", "LoRA .bin")
"""Those that have no tower in the model's own folder."""


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_unknown_key(family: str, layout: str, tmp_path: Path, refusal: Refusal) -> None:
    """In any of a layout's files, beside one that is used."""
    for path in tensor_files(build(family, layout)):
        if path.startswith("tower/") and layout not in TOWER_LAYOUTS:
            continue  # given for its config.json alone
        files = build(family, layout)
        used = next(key for key in sorted(files[path]) if re.search(r"(layers|connector|projector)\.[01]\.", key))
        if used.startswith("text_model."):
            used = "vision_model.encoder.layers.0.mlp.fc1.weight"
        surprise = used.rpartition(".")[0] + ".surprise"
        files[path][surprise] = torch.ones(2)
        refused(files, tmp_path / path.replace("/", " "), refusal, plain(surprise))


LANGUAGE = ("model.embed_tokens.weight", "model.layers.1.mlp.fc2.weight", "model.final_layernorm.bias")
TOWER = (
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.1.self_attn.out_proj.bias",
    "encoder.layers.1.layer_norm2.weight",
)
CLIP_TOWER = ("embeddings.class_embedding", "pre_layrnorm.bias")
PROJECTOR = (r"(connector|projector)\.0\.weight", r"(connector|projector)\.2\.bias")
NEEDED = (
    ("llava-phi", "fused bf16", (*LANGUAGE, *TOWER, *CLIP_TOWER, *PROJECTOR, "self_attn.query_key_value.bias")),
    ("llava-phi", "separate bf16", ("self_attn.k_proj.bias", "lm_head.bias")),
    ("mipha", "separate bf16", (*LANGUAGE, *TOWER, *PROJECTOR, "patch_embedding.bias", "lm_head.bias")),
    ("tinyllava", "one folder", (*LANGUAGE, *TOWER, *PROJECTOR, "patch_embedding.bias", "lm_head.bias")),
    ("tinyllava", "recipe", (*LANGUAGE, *TOWER, *PROJECTOR)),
    ("tinyllava", "LoRA recipe", ("self_attn.q_proj.base_layer.weight", "fc1.lora_B.weight", "fc1.lora_A.weight")),
    ("tinyllava", "legacy", (*LANGUAGE, *TOWER, *PROJECTOR)),
    ("bunny", "merged", (*LANGUAGE, *TOWER, *PROJECTOR, "lm_head.weight")),
    ("bunny", "LoRA", (*LANGUAGE, *TOWER, *PROJECTOR, "dense.lora_B.weight", "dense.lora_A.weight")),
)


def find(files: Files, ending: str) -> tuple[str, str]:
    """The file and the whole key of a tensor, by a pattern of the key's end; of several, the first."""
    found = ((path, key) for path in tensor_files(files) for key in sorted(files[path]))
    return next((path, key) for path, key in found if re.search(f"{ending}$", key) and "text_model" not in key)


@pytest.mark.parametrize(
    ("family", "layout", "ending"), [(family, layout, ending) for family, layout, keys in NEEDED for ending in keys]
)
def test_missing_key(family: str, layout: str, ending: str, tmp_path: Path, refusal: Refusal) -> None:
    files = build(family, layout)
    path, key = find(files, ending)
    del files[path][key]
    for index in (content for name, content in files.items() if name.endswith("index.json")):
        index["weight_map"].pop(key, None)
    refused(files, tmp_path, refusal, plain(key))


@pytest.mark.parametrize(
    ("family", "layout", "ending"), [(family, layout, ending) for family, layout, keys in NEEDED for ending in keys[:1]]
)
def test_misshapen_tensor(family: str, layout: str, ending: str, tmp_path: Path, refusal: Refusal) -> None:
    files = build(family, layout)
    path, key = find(files, ending)
    files[path][key] = files[path][key][..., :-1]
    refused(files, tmp_path, refusal, plain(key))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("use_rslora", True, "use_rslora"),
        ("use_dora", True, "use_dora"),
        ("bias", "all", "bias"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("rank_pattern", {"fc1": 8}, "rank_pattern"),
        ("alpha_pattern", {"fc1": 8}, "alpha_pattern"),
        ("fan_in_fan_out", True, "fan_in_fan_out"),
        ("peft_type", "LOHA", "LOHA"),
        ("r", 8, "lora_"),
        ("lora_alpha", None, "lora_alpha"),
    ],
)
@pytest.mark.parametrize(("family", "layout"), [("tinyllava", "LoRA recipe"), ("bunny", "LoRA")])
def test_adapter_of_another_kind(
    family: str, layout: str, field: str, value: Any, named: str, tmp_path: Path, refusal: Refusal
) -> None:
    files = build(family, layout)
    set_field(ADAPTER_CONFIG, field, value=value)(files)
    refused(files, tmp_path, refusal, named)


@pytest.mark.parametrize(("family", "layout"), [("tinyllava", "LoRA recipe"), ("bunny", "LoRA")])
def test_adapter_of_a_layer_that_is_not_there(family: str, layout: str, tmp_path: Path, refusal: Refusal) -> None:
    files = build(family, layout)
    files[ADAPTER] = {key.replace(".layers.2.", ".layers.9."): tensor for key, tensor in files[ADAPTER].items()}
    refused(files, tmp_path, refusal, "layers.9.")


def test_trained_tower_that_is_not_there(tmp_path: Path, refusal: Refusal) -> None:
    """The one in the tower's folder is not it."""
    files = build("bunny", "LoRA")
    set_field(CONFIG, "unfreeze_vision_tower", value=True)(files)
    refused(files, tmp_path, refusal, "unfreeze_vision_tower")


def test_base_of_another_size(tmp_path: Path, refusal: Refusal) -> None:
    """A Phi-2 folder that the adapters do not fit."""
    files = build("bunny", "LoRA .bin")
    base = files["phi/model.safetensors"]
    for key in [key for key in base if ".layers.2." in key]:
        del base[key]
    files["phi/config.json"]["num_hidden_layers"] = 2
    refused(files, tmp_path, refusal, "layers.2.")
