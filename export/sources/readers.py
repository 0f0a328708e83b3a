"""Lazy readers of the published weight files: one tensor in memory at a time, whatever the size of the file.

Both kinds of file are memory-mapped. Pages that were read stay counted as this process's memory until the mapping
goes, so a reader drops and reopens its mapping after every :data:`REMAP_BYTES`.
"""

from __future__ import annotations

import abc
import math
import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tinygptv.runtime.errors import ExportError

from ..documents import read_json

REMAP_BYTES = 256 << 20


class Reader(abc.ABC):
    """Names, shapes and tensors of one source: a file, or the shards of one folder."""

    def __init__(self, label: str, files: list[Path]) -> None:
        self.label = label
        """What messages call this source: its path as the user gave it."""
        self.files = files
        self.on_read: Callable[[int], object] = lambda stored_bytes: None
        """Told the stored bytes of each tensor that was read, for progress."""
        self._touched = 0
        self._where: dict[str, Path] = {}

        self.shapes: dict[str, tuple[int, ...]] = {}
        """Every key with its shape."""
        self.stored_bytes: dict[str, int] = {}
        """Every key with the bytes it takes in its file."""

    def _add(self, key: str, file: Path, shape: tuple[int, ...], stored_bytes: int) -> None:
        if key in self._where:
            raise ExportError(f"{self.label}: {key} is in {self._where[key].name} and again in {file.name}")
        self._where[key], self.shapes[key], self.stored_bytes[key] = file, shape, stored_bytes

    def _check_index(self, index: dict[str, str]) -> None:
        for key, name in index.items():
            if self._where.get(key, Path()).name != name:
                raise ExportError(f"{self.label}: the index says {key} is in {name}, which does not hold it")

    @abc.abstractmethod
    def _tensor(self, key: str) -> torch.Tensor:
        """The stored tensor, possibly a view of the mapped file."""

    @abc.abstractmethod
    def close(self) -> None:
        """Drop the mapping; the next read opens it again."""

    def read(self, key: str) -> torch.Tensor:
        """A float32 copy of one tensor.

        Raises:
            ExportError: The file cannot be read there, or holds no floats, or values that are not finite.
        """
        stored = self._tensor(key).detach()
        if not stored.is_floating_point():
            dtype = str(stored.dtype).removeprefix("torch.")
            raise ExportError(f"{self.label}: {key} holds {dtype}; expected float16, bfloat16 or float32")
        tensor = stored.to(torch.float32, copy=True).contiguous()
        self._touched += stored.nbytes
        self.on_read(stored.nbytes)
        del stored
        if self._touched > REMAP_BYTES:
            self.close()
            self._touched = 0
        # A sum is not finite where any term is not; only then is it worth looking at every value.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise ExportError(f"{self.label}: {key} holds values that are not finite; the file is damaged")
        return tensor


class SafetensorsReader(Reader):
    """One safetensors file, or several shards."""

    def __init__(self, label: str, files: list[Path], index: dict[str, str] | None = None) -> None:
        super().__init__(label, files)
        self._handles: dict[Path, Any] = {}
        self._stack = ExitStack()
        for file in files:
            handle = self._open(file)
            for key in handle.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
                view = handle.get_slice(key)
                shape = tuple(view.get_shape())
                bits = re.search(r"\d+", view.get_dtype())  # F16, BF16, I64 ...; BOOL has a byte
                self._add(key, file, shape, math.prod(shape) * (int(bits[0]) if bits else 8) // 8)
        self._check_index(index or {})
        self.close()

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ExportError(f"{file}: not a whole safetensors file ({error}); download it again") from error
        return self._handles[file]

    def _tensor(self, key: str) -> torch.Tensor:
        tensor = self._open(self._where[key]).get_tensor(key)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def close(self) -> None:
        self._handles.clear()
        self._stack.close()
        self._stack = ExitStack()


class TorchReader(Reader):
    """One or more files of ``torch.save``, read with ``weights_only=True``; optimizer state is never touched."""

    def __init__(self, label: str, files: list[Path], index: dict[str, str] | None = None) -> None:
        super().__init__(label, files)
        self._documents: dict[Path, dict[str, Any]] = {}
        self.config: dict[str, Any] = {}
        """The ``config`` entry of a stage file; empty where there is none."""
        for file in files:
            document = self._document(file)
            config = document.get("config")
            self.config = config if isinstance(config, dict) else {}
            for key, tensor in self._state_dict(file).items():
                if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
                    raise ExportError(f"{file}: {key!r} is a {type(tensor).__name__}; expected tensors under names")
                self._add(key, file, tuple(tensor.shape), tensor.nbytes)
        self._check_index(index or {})
        self.close()

    def _document(self, file: Path) -> dict[str, Any]:
        if file not in self._documents:
            self._documents[file] = _load_torch(file)
        return self._documents[file]

    def _state_dict(self, file: Path) -> dict[str, Any]:
        document = self._document(file)
        model = document.get("model", document)
        return model if isinstance(model, dict) else document

    def _tensor(self, key: str) -> torch.Tensor:
        tensor = self._state_dict(self._where[key])[key]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def close(self) -> None:
        self._documents.clear()


def _load_torch(file: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch warns of here, it fails at next
            try:
                document = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "_use_new_zipfile_serialization" not in str(error):
                    raise
                # Files from before torch 1.6 are one pickle stream and cannot be mapped.
                document = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ExportError(
                f"{file}: not a plain file of weights, its pickle asks for {code[1]}, code that will not be run; "
                "download it again from its publisher"
            ) from error
        # torch's own text for pickles advises to allow code.
        reason = f"{error}"[:100].split("\n")[0] if isinstance(error, OSError | RuntimeError) else "damaged pickle"
        raise ExportError(f"{file}: not a whole torch file of plain weights ({reason}); download it again") from error
    if not isinstance(document, dict):
        raise ExportError(f"{file}: holds a {type(document).__name__}; expected a dictionary of tensors")
    return document


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
