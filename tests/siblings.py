"""Golden checkpoints of the other Phi-2 families, with something changed: read whole into memory, altered, written out.

A :class:`Sibling` holds the tensors under names that are the same for every family. ``sibling_layouts`` makes the files
of each published layout of it, still in memory (:data:`Files`), and :func:`write` writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from variants import GOLDEN

SIBLINGS = GOLDEN / "siblings"
FAMILIES = ("llava-phi", "mipha", "tinyllava", "bunny")
QKV = ("q_proj", "k_proj", "v_proj")
OPTIONS = ("model", "tower", "phi")

Tensors = dict[str, Tensor]
Files = dict[str, Any]
"""What is to be written: a path whose first part names the option (``model/config.json``), and what is in the file, by
its suffix: a document (.json), tensors (.safetensors, .bin), or bytes for anything."""


@dataclass(frozen=True)
class Prefixes:
    """What a layout puts before the names of each network's keys."""

    phi: str
    tower: str
    projector: str


LLAVA_PHI = Prefixes("", "model.vision_tower.", "model.mm_projector.")
TINYLLAVA = Prefixes("language_model.", "vision_tower._vision_tower.", "connector._connector.")
BUNNY = Prefixes("", "model.vision_tower.vision_tower.", "model.mm_projector.")
PREFIXES = {"llava-phi": LLAVA_PHI, "mipha": LLAVA_PHI, "tinyllava": TINYLLAVA, "bunny": BUNNY}


@dataclass
class Sibling:
    """One golden checkpoint. Tensors are as they are stored: half precision."""

    family: str
    config: dict[str, Any]
    phi: Tensors
    """``model.…`` and ``lm_head.…``, with separate q_proj, k_proj and v_proj."""
    tower: Tensors
    """``vision_model.…``"""
    projector: Tensors
    """``0.weight``, ``0.bias``, ``2.weight``, ``2.bias``"""
    others: dict[str, bytes]
    """The folder's other files: those of the tokenizer, generation_config.json, preprocessor_config.json."""
    siglip: Files = field(default_factory=dict)
    """For Bunny, what its tower's folder holds, under ``tower/``."""

    @classmethod
    def golden(cls, family: str) -> Sibling:
        folder = SIBLINGS / family
        return cls.read(family, folder / "checkpoint", folder / "siglip" if family == "bunny" else None)

    @classmethod
    def read(cls, family: str, folder: Path, tower_folder: Path | None) -> Sibling:
        """One that lies in one folder, with its family's own keys; and in its tower's."""
        prefixes = PREFIXES[family]
        stored: Tensors = {}
        for shard in sorted(folder.glob("*.safetensors")):
            stored |= safetensors.torch.load_file(shard)
        tower, projector = (_under(stored, prefix) for prefix in (prefixes.tower, prefixes.projector))
        rest = {key for key in stored if not key.startswith((prefixes.tower, prefixes.projector))}
        config = json.loads((folder / "config.json").read_text())
        phi = separate(
            _under({key: stored[key] for key in rest}, prefixes.phi), heads=_text(config)["num_attention_heads"]
        )
        siglip: Files = {}
        if tower_folder is not None:
            siglip = {f"tower/{file.name}": json.loads(file.read_text()) for file in tower_folder.glob("*.json")}
            siglip["tower/model.safetensors"] = safetensors.torch.load_file(tower_folder / "model.safetensors")
        others = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".txt")}
        del others["config.json"], others["model.safetensors.index.json"]
        return cls(family, config, phi, tower, projector, others, siglip)

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of config.json that speaks of the language model."""
        return _text(self.config)

    @property
    def tower_config(self) -> dict[str, Any]:
        """The part of config.json that speaks of the tower; for Bunny, of its tower's folder."""
        if self.family == "bunny":
            return self.siglip["tower/config.json"]["vision_config"]
        config = self.config["vision_config"]
        return config if self.family == "tinyllava" else config["vision_tower"]


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """In another precision, whole numbers aside."""
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def separate(phi: Tensors, heads: int) -> Tensors:
    """With q_proj, k_proj and v_proj in place of query_key_value, whose rows are (head, q/k/v, head_dim)."""
    apart: Tensors = {}
    for key, tensor in phi.items():
        if ".query_key_value." not in key:
            apart[key] = tensor
            continue
        rows = tensor.unflatten(0, (heads, 3, -1))
        for i, name in enumerate("qkv"):
            apart[key.replace("query_key_value", f"{name}_proj")] = rows[:, i].flatten(0, 1)
    return apart


def fused(phi: Tensors, heads: int) -> Tensors:
    """The other way round."""
    whole = {key: tensor for key, tensor in phi.items() if not key.rpartition(".")[0].endswith(QKV)}
    for key in phi:
        if ".q_proj." in key:
            parts = [phi[key.replace("q_proj", name)].unflatten(0, (heads, -1)) for name in QKV]
            whole[key.replace("q_proj", "query_key_value")] = torch.stack(parts, dim=1).flatten(0, 2)
    return whole


@dataclass(frozen=True)
class Lora:
    """What a LoRA recipe saves: matrices of which something is taken off, and what adds it again."""

    base: Tensors
    """All tensors, in float32."""
    adapters: Tensors
    """``….lora_A.weight`` [rank, columns] and ``….lora_B.weight`` [rows, rank] of each adapted matrix."""
    names: tuple[str, ...]
    """Of the adapted matrices."""
    rank: int = 4
    alpha: int = 8


def split_lora(tensors: Tensors, adapted: Iterable[str], seed: int = 0) -> Lora:
    """Take a random B A off each adapted matrix, so large that without it the model is another one."""
    generator = torch.Generator().manual_seed(seed)
    lora = Lora(cast(tensors, torch.float32), {}, tuple(adapted))
    for name in lora.names:
        weight = lora.base[f"{name}.weight"]
        rows, columns = weight.shape
        a = torch.randn(lora.rank, columns, generator=generator) / math.sqrt(columns)
        b = torch.randn(rows, lora.rank, generator=generator) / 4
        lora.base[f"{name}.weight"] = weight - lora.alpha / lora.rank * b @ a
        lora.adapters.update({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    return lora


def matrices(tensors: Tensors) -> list[str]:
    """Names of the linear layers in the blocks of a network, or in the projector: what LoRA recipes adapt."""
    names = [key.removesuffix(".weight") for key in tensors if key.endswith(".weight") and tensors[key].ndim == 2]
    return [name for name in names if ".layers." in name or name.startswith("_connector.")]


def in_shards(files: Files, path: str, count: int = 2) -> Files:
    """The same files with one of them in shards, and their index."""
    files = dict(files)
    tensors, file = files.pop(path), Path(path)
    shards = [f"{file.stem}-{n:05d}-of-{count:05d}{file.suffix}" for n in range(1, count + 1)]
    keys = sorted(tensors)
    weight_map = {key: shards[i * count // len(keys)] for i, key in enumerate(keys)}
    total = sum(tensor.nbytes for tensor in tensors.values())
    files[f"{path}.index.json"] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for shard in shards:
        files[f"{file.parent}/{shard}"] = {key: tensors[key] for key in keys if weight_map[key] == shard}
    return files


def write(files: Files, folder: Path) -> dict[str, str]:
    """Write the files below a folder; returns the command-line options that name them."""
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif file.suffix == ".json":
            file.write_text(json.dumps(content, indent=2))
        elif file.suffix == ".safetensors":
            tensors = {key: tensor.contiguous() for key, tensor in content.items()}
            safetensors.torch.save_file(tensors, file, {"format": "pt"})
        else:
            torch.save(content, file)
    return {f"--{name}": str(folder / name) for name in OPTIONS if any(path.startswith(f"{name}/") for path in files)}


def golden_numbers(family: str) -> dict[str, NDArray[Any]]:
    """What the published code computed."""
    with np.load(SIBLINGS / family / "expected.npz") as arrays:
        return dict(arrays)


def golden_case(family: str) -> dict[str, str]:
    """``question`` and the whole ``prompt``."""
    return json.loads((SIBLINGS / family / "case.json").read_text(encoding="utf-8"))
