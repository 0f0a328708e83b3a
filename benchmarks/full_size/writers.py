"""Files of tensors that are drawn as they are needed, and what else stands beside them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from random_tensors import Draw, Tensor

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
SAFETENSORS_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def copy_tokenizer(tokenizer: Path, folder: Path, names: Sequence[str] = TOKENIZER_FILES) -> None:
    """Copies those of a tokenizer's files that there are."""
    for name in names:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def write_shards(folder: Path, tensors: Sequence[Tensor], count: int, drawn_for: str, draw: Draw) -> None:
    """Writes safetensors files of about the same size, and their index."""
    total = sum(tensor.nbytes for tensor in tensors)
    shards: list[list[Tensor]] = [[] for _ in range(count)]
    start = 0
    for tensor in tensors:
        shards[start * count // total].append(tensor)
        start += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        write_safetensors(folder / name, shard, drawn_for, draw)
        weight_map.update((tensor.name, name) for tensor in shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Sequence[Tensor], drawn_for: str, draw: Draw) -> None:
    """Writes tensors one by one, so that one at a time is in memory; ``drawn_for`` is the name that they are drawn by.

    The format is eight bytes of header length, a JSON header padded to a multiple of eight, then the values
    (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors:
            values = draw(drawn_for, tensor)
            # NumPy has no bfloat16: the bytes go through a type that it has.
            file.write(values.view(-1).view(torch.uint8).numpy().data)


def write_pickle(path: Path, value: dict[str, Any]) -> None:
    # Given a path instead of a file, torch.save reports a full disk as a RuntimeError about positions.
    with path.open("wb") as file:
        torch.save(value, file)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
