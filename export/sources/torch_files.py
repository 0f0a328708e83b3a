"""Files of ``torch.save``: tensors by name, read with ``weights_only=True`` and memory-mapped if possible."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from tinygptv.runtime.errors import ExportError, reason_of

from ..documents import refuse_pointer
from .archives import Archive, RecordSums, is_archive
from .readers import Reader, Sums


class TorchReader(Reader):
    """One or more files of ``torch.save``, read with ``weights_only=True``; optimizer state is never touched."""

    def __init__(self, label: str, files: list[Path], index: dict[str, str] | None = None) -> None:
        super().__init__(label, files)
        self._documents: dict[Path, dict[str, Any]] = {}
        self._archives: dict[Path, Archive] = {}
        self.config: dict[str, Any] = {}
        """The ``config`` entry of a stage file; empty where there is none."""
        for file in files:
            refuse_pointer(file)
            document = self._document(file)
            if is_archive(file):
                self._archives[file] = Archive(file)
            config = document.get("config")
            self.config = config if isinstance(config, dict) else {}
            for key, tensor in self._state_dict(file).items():
                if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
                    raise ExportError(f"{file}: {key!r} is a {type(tensor).__name__}; expected tensors under names")
                if kind := _unusual_kind(tensor):
                    raise ExportError(f"{file}: {key} is {kind}; expected a plain tensor of floats")
                self._add(key, file, tuple(tensor.shape), tensor.nbytes)
        self._complete(index or {})
        self.close()

    def _document(self, file: Path) -> dict[str, Any]:
        if file not in self._documents:
            self._documents[file] = _load_torch(file)
        return self._documents[file]

    def _state_dict(self, file: Path) -> dict[str, Any]:
        document = self._document(file)
        model = document.get("model", document)
        return model if isinstance(model, dict) else document

    def _tensor(self, file: Path, stored: str) -> torch.Tensor:
        tensor = self._state_dict(file)[stored]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def close(self) -> None:
        self._documents.clear()

    def sums(self, file: Path) -> Sums | None:
        archive = self._archives.get(file)
        return RecordSums(archive) if archive is not None and archive.has_sums else None


def _load_torch(file: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch warns of here, it fails at next
            try:
                document = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "_use_new_zipfile_serialization" not in str(error):
                    raise
                document = _load_stream(file)
    except Exception as error:  # a damaged pickle can raise anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ExportError(
                f"{file}: not a plain file of weights, its pickle asks for {code[1]}, code that will not be run; "
                "download it again from its publisher"
            ) from error
        # torch's own text for pickles advises to allow code.
        reason = (
            reason_of(error)[:100].split("\n")[0] if isinstance(error, OSError | RuntimeError) else "damaged pickle"
        )
        raise ExportError(
            f"{file}: not a complete torch file of plain weights ({reason}); download it again"
        ) from error
    if not isinstance(document, dict):
        raise ExportError(f"{file}: holds a {type(document).__name__}; expected a dictionary of tensors")
    return document


def _load_stream(file: Path) -> Any:
    """Load a file from before torch 1.6, a stream of pickles and storages that cannot be memory-mapped."""
    with file.open("rb") as opened:
        document = torch.load(opened, map_location="cpu", weights_only=True)
        # torch has compared every storage's length; there are no sums. What is behind the last one is not read.
        behind = file.stat().st_size - opened.tell()
    if behind:
        raise RuntimeError(f"{behind} bytes more than its tensors need")
    return document


def _unusual_kind(tensor: torch.Tensor) -> str | None:
    """The kind of a tensor that is not a plain dense array; None if it is one."""
    kinds = {
        "a nested tensor": tensor.is_nested,
        "a sparse tensor": tensor.layout is not torch.strided,
        "a quantised tensor": tensor.is_quantized,
        "a tensor on the meta device, without values": tensor.is_meta,
        "a view that is not negated yet": tensor.is_neg(),
    }
    return next((kind for kind, is_there in kinds.items() if is_there), None)
