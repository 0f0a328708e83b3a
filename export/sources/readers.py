"""Lazy readers of the published weight files: one tensor in memory at a time, whatever the size of the file.

Both kinds of file are memory-mapped. Pages that were read stay counted as this process's memory until the mapping
goes, so a reader drops and reopens its mapping after every :data:`REMAP_BYTES`.
"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from tinygptv.runtime.errors import ExportError

from ..documents import refuse_pointer

V = TypeVar("V")
REMAP_BYTES = 256 << 20
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Prefixes in keys from DistributedDataParallel, torch.compile, FSDP and activation checkpointing."""


class Sums(Protocol):
    """Computes checksums of a file's bytes in order, and compares them at the end."""

    def __call__(self, piece: memoryview) -> None: ...
    def finish(self) -> None:
        """Raise an error if the checksums differ."""


class Reader(abc.ABC):
    """Names, shapes and tensors of one source: a file, or the shards of one folder."""

    def __init__(self, label: str, files: list[Path]) -> None:
        self.label = label
        """Name of this source in messages: its path as the user gave it."""
        self.files = files
        self.on_read: Callable[[int], object] = lambda stored_bytes: None
        """Progress callback with the stored bytes of each tensor that was read."""
        self._touched = 0
        self._where: dict[str, Path] = {}
        self._prefix = ""
        """Prefix of every key in the files; it is hidden from other code."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every key."""
        self.stored_bytes: dict[str, int] = {}
        """Size of every key in its file, in bytes."""

    def _add(self, key: str, file: Path, shape: tuple[int, ...], stored_bytes: int) -> None:
        if key in self._where:
            raise ExportError(f"{self.label}: {key} is in {self._where[key].name} and again in {file.name}")
        self._where[key], self.shapes[key], self.stored_bytes[key] = file, shape, stored_bytes

    def _complete(self, index: dict[str, str]) -> None:
        """Finish after all keys were added: check the index of shards, and remove wrappers' prefixes from the keys.

        Raises:
            ExportError: The index is wrong, or only some keys have a wrapper's name.
        """
        for key, name in index.items():
            if self._where.get(key, Path()).name != name:
                raise ExportError(f"{self.label}: the index says {key} is in {name}, which does not contain it")
        while wrapper := next((name for name in WRAPPERS if self._all_begin_with(f"{name}.")), None):
            self._prefix += f"{wrapper}."
            self._where = _without(f"{wrapper}.", self._where)
            self.shapes = _without(f"{wrapper}.", self.shapes)
            self.stored_bytes = _without(f"{wrapper}.", self.stored_bytes)
        wrapped = [key for key in self._where if not set(WRAPPERS).isdisjoint(key.split("."))]
        if wrapped:
            raise ExportError(
                f"{self.label}: {len(wrapped)} of {len(self._where)} keys, such as {self._prefix}{wrapped[0]}, have a "
                "wrapper's name in them (module. of DistributedDataParallel, _orig_mod. of torch.compile); expected "
                "none, or the same before every key: save the model that is inside the wrapper"
            )

    def _all_begin_with(self, prefix: str) -> bool:
        return bool(self._where) and all(key.startswith(prefix) for key in self._where)

    @abc.abstractmethod
    def _tensor(self, file: Path, stored: str) -> torch.Tensor:
        """The tensor under its key in a file, possibly a view of the mapped file."""

    def sums(self, file: Path) -> Sums | None:
        """The checksums to compute while a file is read; None if its format has none."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Drop the mapping; the next read opens it again."""

    def read(self, key: str) -> torch.Tensor:
        """A float32 copy of one tensor.

        Raises:
            ExportError: The file cannot be read there, or holds no floats, or values that are not finite.
        """
        stored = self._tensor(self._where[key], self._prefix + key).detach()
        if stored.dtype not in FLOATS:
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


def _without(prefix: str, by_key: dict[str, V]) -> dict[str, V]:
    return {key.removeprefix(prefix): value for key, value in by_key.items()}


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
        self._complete(index or {})
        self.close()

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            refuse_pointer(file)
            try:
                self._handles[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ExportError(f"{file}: not a complete safetensors file ({error}); download it again") from error
        return self._handles[file]

    def _tensor(self, file: Path, stored: str) -> torch.Tensor:
        tensor = self._open(file).get_tensor(stored)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def close(self) -> None:
        self._handles.clear()
        self._stack.close()
        self._stack = ExitStack()
