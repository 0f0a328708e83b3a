"""Makes a random checkpoint in the four published file formats, by default at the published sizes.

Exporter and runtime can then be timed and weighed at full size where the trained files are not at hand. Only sizes,
keys, shapes and dtypes are those of the published files; the answers mean nothing. Every tensor has a random generator
of its own, seeded by ``--seed`` and by the tensor's file and key: its values depend on nothing else in the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from published_tensors import (
    LORA_ALPHA,
    SCALES,
    Sizes,
    Tensor,
    adam_tensors,
    blip2_tensors,
    eva_tensors,
    phi_tensors,
    stage_tensors,
    tensor_bytes,
)
from tqdm import tqdm

FORMAT_VERSION = 1
"""Raised whenever the same seed no longer gives the same files."""
MARKER = "made_checkpoint.json"
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
GB = 10**9


class CheckpointError(Exception):
    """The checkpoint cannot be made or reused; the text is one line meant for the user."""


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


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, the marker aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def can_reuse(out: Path, made_with: dict[str, Any]) -> bool:
    """Whether ``out`` is a finished checkpoint made with these settings.

    Raises:
        CheckpointError: There is something else at ``out``, which is left alone.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{out} exists and has no readable {MARKER}: remove it or choose another --out"
        ) from error
    if not isinstance(marker, dict) or marker.get("made_with") != made_with:
        found = marker.get("made_with") if isinstance(marker, dict) else marker
        raise CheckpointError(f"{out} was made with {found}, not {made_with}: remove it or choose another --out")
    if marker.get("files") != file_sizes(out):
        raise CheckpointError(f"{out} was changed after it was made: remove it or choose another --out")
    return True


def check_tokenizer(folder: Path) -> None:
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"no {' and no '.join(missing)} in {folder}: give a tokenizer's folder by --tokenizer")


def check_free_disk(out: Path, needed: int, keep_free: int) -> None:
    parent = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free - keep_free < needed:
        raise CheckpointError(
            f"not enough disk at {parent}: {needed / GB:.1f} GB needed and {keep_free / GB:.1f} GB to be kept free, "
            f"but {free / GB:.1f} GB found"
        )


def make_checkpoint(
    out: Path,
    stage: int = 4,
    seed: int = 0,
    scale: str = "published",
    tokenizer: Path | None = None,
    keep_free: int = GB,
) -> None:
    """Makes the checkpoint folder, or leaves it as it is if it was made with the same settings.

    Args:
        out: Folder to make. It appears when it is complete, not before.
        stage: 3 or 4: the stage file's name, and whether the Q-Former is in it (4) or in the BLIP-2 file only (3).
        seed: Other seeds give other values.
        scale: "published", or "tiny": the sizes of tests/golden/stage4, and an ``architecture.json`` beside the files.
        tokenizer: Folder whose tokenizer files go into the Phi-2 folder; by default one that fits the scale.
        keep_free: Bytes that must stay free on the disk.

    Raises:
        CheckpointError: The disk is too full, the tokenizer is missing, or ``out`` holds something else.
    """
    out = out.absolute()
    sizes = SCALES[scale]
    tokenizer = tokenizer or sizes.tokenizer
    made_with = {"format_version": FORMAT_VERSION, "seed": seed, "stage": stage, "scale": scale}
    if can_reuse(out, made_with):
        print(f"reusing {out}", file=sys.stderr)
        return
    check_tokenizer(tokenizer)
    needed = tensor_bytes(sizes, stage)
    check_free_disk(out, needed, keep_free)

    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    staging.mkdir()
    try:
        with tqdm(total=needed, unit="B", unit_scale=True, desc=out.name) as bar:

            def draw(file: str, tensor: Tensor) -> torch.Tensor:
                values = draw_tensor(seed, file, tensor)
                bar.update(tensor.nbytes)
                return values

            write_phi_folder(staging / PHI_FOLDER, sizes, tokenizer, draw)
            write_eva_file(staging / EVA_FILE, sizes, draw)
            write_blip2_file(staging / BLIP2_FILE, sizes, draw)
            write_stage_file(staging / stage_file_name(stage), sizes, stage, draw)
        if scale != "published":
            architecture = {
                "image_size": sizes.image_sizes[stage],
                "patch_size": sizes.patch_size,
                "vision_layers": sizes.vision_layers,
                "vision_heads": sizes.vision_heads,
                "qformer_heads": sizes.qformer_heads,
            }
            write_json(staging / "architecture.json", architecture)
        write_json(staging / MARKER, {"made_with": made_with, "files": file_sizes(staging)})
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging)
        raise


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a random checkpoint in the four published file formats (10 GB at the published sizes).",
        epilog="example: python benchmarks/full_size/make_checkpoint.py --out /data/random_stage4 --stage 4",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make; reused if it is already there")
    parser.add_argument("--stage", type=int, choices=(3, 4), default=4, help="which stage's files (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other values (default: 0)")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="published", help="tiny: small sizes for tests (default: published)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder to copy the tokenizer from (default: tests/tokenizer)"
    )
    parser.add_argument(
        "--keep-free", type=float, default=1.0, metavar="GB", help="refuse to leave less disk free (default: 1)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 after a known error, or 130 after Ctrl-C."""
    arguments = parse_arguments(argv)
    try:
        make_checkpoint(
            arguments.out,
            arguments.stage,
            arguments.seed,
            arguments.scale,
            arguments.tokenizer,
            int(arguments.keep_free * GB),
        )
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
