"""The four published files, written from tensors that are drawn as they are needed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from published_tensors import (
    LORA_ALPHA,
    Sizes,
    Tensor,
    adam_tensors,
    blip2_tensors,
    eva_tensors,
    phi_tensors,
    stage_tensors,
)

PHI_FOLDER = "phi-2"
EVA_FILE = "eva_vit_g.pth"
BLIP2_FILE = "blip2_pretrained_flant5xxl.pth"
PHI_SHARDS = 3
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
)

Draw = Callable[[str, Tensor], torch.Tensor]
"""Gives the values of a tensor of the named file (or folder)."""


def stage_file_name(stage: int) -> str:
    return f"TinyGPT-V_for_Stage{stage}.pth"


def draw_tensor(seed: int, file: str, tensor: Tensor) -> torch.Tensor:
    """The values of one tensor: the same for the same seed, file, name and shape, whatever was drawn before."""
    if tensor.dtype == torch.int64:
        return torch.arange(math.prod(tensor.shape)).view(tensor.shape)
    digest = hashlib.sha256(f"{seed}/{file}/{tensor.name}".encode()).digest()
    # PyTorch's CPU generator looks at 32 bits of its seed.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    values = torch.randn(tensor.shape, generator=generator)
    return values.mul_(tensor.std).add_(tensor.mean).to(tensor.dtype)


def write_phi_folder(folder: Path, sizes: Sizes, tokenizer: Path, draw: Draw) -> None:
    """Writes config.json, the safetensors shards with their index, and the tokenizer's files."""
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    config = {
        "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": sizes.eos_token_id,
        "embd_pdrop": 0.0,
        "eos_token_id": sizes.eos_token_id,
        "hidden_act": "gelu_new",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.context,
        "model_type": "phi",
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_heads,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.37.2",
        "use_cache": True,
        "vocab_size": sizes.vocab_size,
    }
    write_json(folder / "config.json", config)

    tensors = list(phi_tensors(sizes))
    total = sum(tensor.nbytes for tensor in tensors)
    shards: list[list[Tensor]] = [[] for _ in range(PHI_SHARDS)]
    start = 0
    for tensor in tensors:
        shards[start * PHI_SHARDS // total].append(tensor)
        start += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{PHI_SHARDS:05d}.safetensors"
        write_safetensors(folder / name, shard, draw)
        weight_map.update((tensor.name, name) for tensor in shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Sequence[Tensor], draw: Draw) -> None:
    """Writes fp16 tensors one by one, so that one at a time is in memory.

    The format is eight bytes of header length, a JSON header padded to a multiple of eight, then the values
    (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        header[tensor.name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors:
            file.write(draw(PHI_FOLDER, tensor).numpy().data)


def write_eva_file(path: Path, sizes: Sizes, draw: Draw) -> None:
    write_pickle(path, {tensor.name: draw(EVA_FILE, tensor) for tensor in eva_tensors(sizes)})


def write_blip2_file(path: Path, sizes: Sizes, draw: Draw) -> None:
    write_pickle(path, {"model": {tensor.name: draw(BLIP2_FILE, tensor) for tensor in blip2_tensors(sizes)}})


def write_stage_file(path: Path, sizes: Sizes, stage: int, draw: Draw) -> None:
    """Writes the trained tensors with all that a training run saves beside them."""
    trained = list(stage_tensors(sizes, stage))
    moments = adam_tensors(trained)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for index, exp_avg in enumerate(moments):
        exp_avg_sq = next(moments)
        state[index] = {
            "step": torch.tensor(1000.0),
            "exp_avg": draw(path.name, exp_avg),
            "exp_avg_sq": draw(path.name, exp_avg_sq).square_(),
        }
    groups_by_decay: dict[float, list[int]] = {0.05: [], 0.0: []}
    for index, tensor in enumerate(tensor for tensor in trained if tensor.dtype.is_floating_point):
        groups_by_decay[0.05 if len(tensor.shape) > 1 else 0.0].append(index)
    checkpoint = {
        "model": {tensor.name: draw(path.name, tensor) for tensor in trained},
        "optimizer": {
            "state": state,
            "param_groups": [
                {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": decay, "params": indices}
                for decay, indices in groups_by_decay.items()
            ],
        },
        "config": {
            "model": {
                "arch": "minigpt_v2" if stage == 4 else "minigpt4",
                "image_size": sizes.image_sizes[stage],
                "lora_r": sizes.lora_rank,
                "lora_alpha": LORA_ALPHA,
            }
        },
        "scaler": {
            "scale": 65536.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 1000,
        },
        "epoch": 49,
    }
    write_pickle(path, checkpoint)


def write_pickle(path: Path, value: dict[str, Any]) -> None:
    # Given a path instead of a file, torch.save reports a full disk as a RuntimeError about positions.
    with path.open("wb") as file:
        torch.save(value, file)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
