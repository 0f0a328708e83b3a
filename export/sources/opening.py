"""Finds the weight files of a folder, in any of the formats."""

from __future__ import annotations

from pathlib import Path

from tinygptv.runtime.errors import ExportError

from ..documents import read_json
from .readers import Reader, SafetensorsReader
from .torch_files import TorchReader


def open_torch(file: Path, option: str) -> TorchReader:
    """Open one ``.pth`` file; ``option`` is the command-line option that named it."""
    if not file.is_file():
        raise ExportError(f"{option} {file}: no such file")
    return TorchReader(str(file), [file])


def open_folder(folder: Path, option: str, stems: tuple[str, ...] = ("model", "pytorch_model")) -> Reader:
    """Open the weights of a folder: one safetensors file or its shards, else a ``.bin`` file or its shards.

    Args:
        folder: The folder.
        option: What messages call it, such as ``--phi``.
        stems: What the files' names begin with, those that win first.
    """
    if not folder.is_dir():
        raise ExportError(f"{option} {folder}: no such folder")
    for suffix, reader in ((".safetensors", SafetensorsReader), (".bin", TorchReader)):
        for stem in stems:
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                weight_map = _weight_map(index)
                files = [folder / name for name in sorted(set(weight_map.values()))]
                for file in files:
                    if not file.is_file():
                        raise ExportError(
                            f"{index}: names {file.name}, which is not in the folder; download it as well"
                        )
                return reader(str(folder), files, weight_map)
            if (folder / f"{stem}{suffix}").is_file():
                return reader(str(folder), [folder / f"{stem}{suffix}"])
    names = " or ".join(f"{stem}.safetensors, {stem}.bin" for stem in stems)
    raise ExportError(f"{option} {folder}: no {names}, or index of shards in it")


def _weight_map(index: Path) -> dict[str, str]:
    document = read_json(index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(v, str) and Path(v).name == v for v in weight_map.values()
    ):
        raise ExportError(f"{index}: no weight_map of keys to file names in it; download it again")
    return weight_map
