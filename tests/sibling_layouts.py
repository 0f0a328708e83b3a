"""Every layout in which a golden sibling checkpoint may come, as files in memory.

A builder takes a :class:`Sibling` and gives its :data:`Files`; :data:`LAYOUTS` names them all, :func:`build` and
:func:`write_layout` make one. The numbers are those of the golden checkpoint: to the bit, or with LoRA to some 1e-7 of
each matrix's largest value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from sibling_documents import PHI_CONFIG, adapter_config, phi_config
from siblings import (
    BUNNY,
    PREFIXES,
    Files,
    Prefixes,
    Sibling,
    Tensors,
    cast,
    fused,
    in_shards,
    matrices,
    prefixed,
    split_lora,
    write,
)
from variants import TOKENIZER_FILES

WEIGHTS = "model/model.safetensors"
BASE_ROWS = 320
"""Rows of the vocabulary in the Phi-2 folder that Bunny's LoRA folder needs; its tokenizer has 300."""


def one_folder(
    sibling: Sibling,
    prefixes: Prefixes | None = None,
    dtype: torch.dtype | None = None,
    fuse: bool = False,
    shards: int = 2,
) -> Files:
    """Everything in one folder: in the precision of the golden files, and under the family's keys, if not said."""
    prefixes = prefixes or PREFIXES[sibling.family]
    phi = fused(sibling.phi, sibling.text_config["num_attention_heads"]) if fuse else sibling.phi
    tensors = {
        **prefixed(phi, prefixes.phi),
        **prefixed(sibling.tower, prefixes.tower),
        **prefixed(sibling.projector, prefixes.projector),
    }
    config = copy.deepcopy(sibling.config)
    if dtype is not None:
        tensors = cast(tensors, dtype)
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    files = {"model/config.json": config, WEIGHTS: tensors, **others(sibling), **copy.deepcopy(sibling.siglip)}
    return in_shards(files, WEIGHTS, shards) if shards > 1 else files


def others(sibling: Sibling) -> Files:
    return {f"model/{name}": content for name, content in sibling.others.items()}


def used_only(sibling: Sibling) -> Files:
    """Without the tensors that are never used: the last block, post_layernorm, SigLIP's head."""
    last = sibling.tower_config["num_hidden_layers"] - 1
    unused = tuple(f"vision_model.{name}." for name in (f"encoder.layers.{last}", "post_layernorm", "head"))
    return one_folder(replace(sibling, tower={k: v for k, v in sibling.tower.items() if not k.startswith(unused)}))


def old_buffers(sibling: Sibling) -> Files:
    """With what older releases of transformers saved as well: position_ids and inv_freq."""
    files = one_folder(sibling, shards=1)
    prefixes, positions = PREFIXES[sibling.family], sibling.tower["vision_model.embeddings.position_embedding.weight"]
    files[WEIGHTS][f"{prefixes.tower}vision_model.embeddings.position_ids"] = torch.arange(len(positions))[None]
    for i in range(sibling.text_config["num_hidden_layers"]):
        files[WEIGHTS][f"{prefixes.phi}model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return files


def defaults_left_out(sibling: Sibling) -> Files:
    """Without fields of config.json whose default is what they say."""
    files = one_folder(sibling)
    config = files["model/config.json"]
    text = config.get("text_config", config)
    for name in PHI_CONFIG.keys() - {"architectures", "partial_rotary_factor"} | {"num_key_value_heads"}:
        text.pop(name, None)
    if sibling.family == "llava-phi":
        for name in ("hidden_act", "layer_norm_eps", "mm_vision_select_layer", "mm_vision_select_feature"):
            del config["vision_config"]["vision_tower"][name]
    return files


def sizes_as_dictionaries(sibling: Sibling) -> Files:
    """With the two sizes of preprocessor_config.json as later releases of transformers write them."""
    side = sibling.tower_config["image_size"]
    document = json.loads(sibling.others["preprocessor_config.json"])
    document |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return one_folder(sibling) | {"model/preprocessor_config.json": document}


def recipe(sibling: Sibling, adapted: tuple[str, ...] = (), adapter_file: str = "adapter_model.safetensors") -> Files:
    """TinyLLaVA's folders, one a network; with LoRA on the networks named (``phi``, ``tower``, ``projector``)."""
    folders = {
        "phi": ("language_model", sibling.phi, "language_model."),
        "tower": ("vision_tower", sibling.tower, "vision_tower._vision_tower."),
        "projector": ("connector", prefixed(sibling.projector, "_connector."), "connector."),
    }
    files = {"model/config.json": copy.deepcopy(sibling.config), **others(sibling)}
    files["model/language_model/config.json"] = phi_config(sibling)
    files["model/vision_tower/config.json"] = {"attention_dropout": 0.0, "num_channels": 3, **sibling.tower_config}
    adapters: Tensors = {}
    for part, (folder, tensors, prefix) in folders.items():
        if part in adapted:
            lora = split_lora(tensors, matrices(tensors))
            adapters |= prefixed(lora.adapters, f"base_model.model.{prefix}")
            tensors = lora.base
            for name in lora.names:
                for key in (f"{name}.weight", f"{name}.bias"):
                    tensors[key.replace(name, f"{name}.base_layer")] = tensors.pop(key)
        files[f"model/{folder}/pytorch_model.bin"] = tensors
    if adapted:
        targets = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in adapters}
        files["model/adapter_config.json"] = adapter_config(sorted(targets), base=None)
        files[f"model/{adapter_file}"] = adapters
    return files


def legacy(sibling: Sibling) -> Files:
    """The layout of bczhou/TinyLLaVA-3.1B. It does not say the tower's sizes: small ones need the tower's folder."""
    files = one_folder(sibling, BUNNY)
    fields = {
        "architectures": ["TinyLlavaPhiForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": sibling.config["image_aspect_ratio"],
        "mm_hidden_size": sibling.config["vision_hidden_size"],
        "mm_projector_type": sibling.config["connector_type"],
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": sibling.config["vision_feature_select_strategy"],
        "mm_vision_select_layer": sibling.config["vision_feature_layer"],
        "mm_vision_tower": "bczhou/TinyLLaVA-3.1B-SigLIP",
        "model_type": "tiny_llava_phi",
        "pad_token": "<|endoftext|>",
        "tokenizer_model_max_length": sibling.config["tokenizer_model_max_length"],
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    files["model/config.json"] = phi_config(sibling) | fields
    return files | tower_folder(sibling)


def tower_folder(sibling: Sibling) -> Files:
    """A folder of the tower as google/siglip-so400m-patch14-384 is one: fp32, with a text half."""
    vision = {name: value for name, value in sibling.tower_config.items() if not name.startswith("model_name")}
    for name in ("hidden_act", "layer_norm_eps"):  # written only where it differs from the class's own default
        vision.pop(name)
    text = {
        "text_model.embeddings.token_embedding.weight": torch.ones(40, 64),
        "text_model.final_layer_norm.weight": torch.ones(64),
        "logit_scale": torch.ones(1),
        "logit_bias": torch.ones(1),
    }
    return {
        "tower/config.json": {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "text_config": {"hidden_size": 64, "model_type": "siglip_text_model", "num_attention_heads": 4},
            "torch_dtype": "float32",
            "vision_config": vision,
        },
        "tower/model.safetensors": cast(sibling.tower, torch.float32) | text,
    }


def all_blocks(sibling: Sibling) -> Files:
    """Bunny as today's merging script writes it: with the last block and the head of its tower."""
    tower = sibling.siglip["tower/model.safetensors"]
    rest = {key: tower[key].half() for key in tower if key.startswith("vision_model.") and key not in sibling.tower}
    return one_folder(replace(sibling, tower=sibling.tower | rest))


def with_head_bias(sibling: Sibling, bias: float) -> Files:
    """Bunny with a head bias, which its class drops: zeros in one upload, or what Phi-2 has."""
    rows = sibling.config["vocab_size"]
    values = bias * torch.randn(rows, generator=torch.Generator().manual_seed(1))
    return one_folder(replace(sibling, phi=sibling.phi | {"lm_head.bias": values.half()}))


def another_tower(sibling: Sibling) -> Files:
    """Bunny beside a tower folder of other weights: those in the model's own folder win."""
    files = one_folder(sibling)
    files["tower/model.safetensors"] = {key: -tensor for key, tensor in files["tower/model.safetensors"].items()}
    return files


def bunny_lora(
    sibling: Sibling, adapter_file: str = "adapter_model.safetensors", phi_shards: int = 2, own_tower: bool = False
) -> Files:
    """BAAI/bunny-phi-2-siglip-lora beside microsoft/phi-2 and the tower; with an unfrozen tower in it if wanted.

    The base has what must not be used: a bias of the head, and rows past the tokenizer that would win each time.
    """
    lora = split_lora(sibling.phi, matrices(sibling.phi))
    non_lora = prefixed(sibling.projector, "model.mm_projector.")
    files = copy.deepcopy(sibling.siglip)
    config = sibling.config | {"architectures": ["PhiForCausalLM"], "vocab_size": BASE_ROWS}
    if own_tower:
        config["unfreeze_vision_tower"] = True
        non_lora |= prefixed(sibling.tower, BUNNY.tower)
        files["tower/model.safetensors"] = {key: -tensor for key, tensor in files["tower/model.safetensors"].items()}
    modules = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    files |= {
        "model/config.json": config,
        "model/adapter_config.json": adapter_config(modules, "microsoft/phi-2"),
        f"model/{adapter_file}": prefixed(lora.adapters, "base_model.model."),
        "model/non_lora_trainables.bin": prefixed(non_lora, "base_model.model."),
        "model/trainer_state.json": {"epoch": 1.0, "global_step": 10, "log_history": []},
    }
    generator = torch.Generator().manual_seed(2)
    base = lora.base | {"lm_head.bias": torch.randn(BASE_ROWS, generator=generator)}
    for key, gain in (("model.embed_tokens.weight", 1.0), ("lm_head.weight", 10.0)):
        extra = torch.randn(BASE_ROWS - len(base[key]), base[key].shape[1], generator=generator)
        base[key] = torch.cat((base[key], gain * extra))
    files |= {f"phi/{name}": sibling.others[name] for name in (*TOKENIZER_FILES, "tokenizer.json")}
    files |= {"phi/config.json": phi_config(sibling, BASE_ROWS), "phi/model.safetensors": base}
    return in_shards(files, "phi/model.safetensors", phi_shards) if phi_shards > 1 else files


LAYOUTS: dict[tuple[str, str], Callable[[Sibling], Files]] = {
    ("llava-phi", "fused bf16"): partial(one_folder, fuse=True),
    ("llava-phi", "fused fp16"): partial(one_folder, fuse=True, dtype=torch.float16),
    ("llava-phi", "fused fp32"): partial(one_folder, fuse=True, dtype=torch.float32),
    ("llava-phi", "separate bf16"): one_folder,
    ("llava-phi", "separate fp32"): partial(one_folder, dtype=torch.float32),
    ("llava-phi", "one file"): partial(one_folder, fuse=True, shards=1),
    ("llava-phi", "used only"): used_only,
    ("llava-phi", "old buffers"): old_buffers,
    ("llava-phi", "defaults left out"): defaults_left_out,
    ("llava-phi", "sizes as dictionaries"): sizes_as_dictionaries,
    ("mipha", "separate bf16"): one_folder,
    ("mipha", "fused bf16"): partial(one_folder, fuse=True),
    ("mipha", "fp16"): partial(one_folder, dtype=torch.float16),
    ("mipha", "fp32"): partial(one_folder, dtype=torch.float32),
    ("mipha", "used only"): used_only,
    ("mipha", "defaults left out"): defaults_left_out,
    ("tinyllava", "one folder"): one_folder,
    ("tinyllava", "one file"): partial(one_folder, shards=1),
    ("tinyllava", "used only"): used_only,
    ("tinyllava", "defaults left out"): defaults_left_out,
    ("tinyllava", "recipe"): recipe,
    ("tinyllava", "LoRA recipe"): partial(recipe, adapted=("phi",)),
    ("tinyllava", "LoRA recipe .bin"): partial(recipe, adapted=("phi",), adapter_file="adapter_model.bin"),
    ("tinyllava", "LoRA recipe, all adapted"): partial(recipe, adapted=("phi", "tower", "projector")),
    ("tinyllava", "legacy"): legacy,
    ("bunny", "merged"): one_folder,
    ("bunny", "all blocks"): all_blocks,
    ("bunny", "head bias of zeros"): partial(with_head_bias, bias=0.0),
    ("bunny", "head bias"): partial(with_head_bias, bias=1.0),
    ("bunny", "another tower"): another_tower,
    ("bunny", "defaults left out"): defaults_left_out,
    ("bunny", "LoRA"): bunny_lora,
    ("bunny", "LoRA .bin"): partial(bunny_lora, adapter_file="adapter_model.bin", phi_shards=1),
    ("bunny", "LoRA, own tower"): partial(bunny_lora, own_tower=True),
}
"""By golden family and layout."""


def build(family: str, layout: str) -> Files:
    """The files of one of the :data:`LAYOUTS`."""
    return LAYOUTS[family, layout](Sibling.golden(family))


def write_layout(family: str, layout: str, folder: Path) -> dict[str, str]:
    """Write one of the :data:`LAYOUTS` below a folder; returns the command-line options that name it."""
    return write(build(family, layout), folder)
