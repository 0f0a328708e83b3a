"""TinyGPT-V's four published files, written from tensors that are drawn as they are needed."""

from __future__ import annotations

from pathlib import Path

import torch
from published_phi import phi_config, phi_tensors
from published_tensors import (
    LORA_ALPHA,
    SCALES,
    Sizes,
    adam_tensors,
    blip2_tensors,
    eva_tensors,
    stage_tensors,
)
from random_tensors import Draw
from writers import copy_tokenizer, write_json, write_pickle, write_shards

PHI_FOLDER = "phi-2"
EVA_FILE = "eva_vit_g.pth"
BLIP2_FILE = "blip2_pretrained_flant5xxl.pth"
PHI_SHARDS = 3


def stage_file_name(stage: int) -> str:
    return f"TinyGPT-V_for_Stage{stage}.pth"


def write_tinygptv(scale: str, stage: int, folder: Path, tokenizer: Path, draw: Draw) -> None:
    """Writes the four, and below the published scale an ``architecture.json`` beside them."""
    sizes = SCALES[scale]
    write_phi_folder(folder / PHI_FOLDER, sizes, tokenizer, draw)
    write_eva_file(folder / EVA_FILE, sizes, draw)
    write_blip2_file(folder / BLIP2_FILE, sizes, draw)
    write_stage_file(folder / stage_file_name(stage), sizes, stage, draw)
    if scale != "published":
        architecture = {
            "image_size": sizes.image_sizes[stage],
            "patch_size": sizes.patch_size,
            "vision_layers": sizes.vision_layers,
            "vision_heads": sizes.vision_heads,
            "qformer_heads": sizes.qformer_heads,
        }
        write_json(folder / "architecture.json", architecture)


def write_phi_folder(folder: Path, sizes: Sizes, tokenizer: Path, draw: Draw) -> None:
    """Writes config.json, the safetensors shards with their index, and the tokenizer's files."""
    folder.mkdir()
    copy_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", phi_config(sizes.phi))
    write_shards(folder, list(phi_tensors(sizes.phi)), PHI_SHARDS, PHI_FOLDER, draw)


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
