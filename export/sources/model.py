"""A published model: its parts with their sizes, every key accounted for; loads one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.system.files import sha256_of
from torch import Tensor

from ..parts import Part, Read, Shape
from .families import Family
from .ledger import Ledgers
from .readers import Reader


@dataclass(frozen=True)
class Network:
    """One part of a model, and its sizes."""

    part: Part
    sizes: Any

    @property
    def name(self) -> str:
        """Name of the part, such as ``eva_clip``."""
        return str(self.part.__name__).rpartition(".")[2]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Description:
    """A model without its weights."""

    family: Family
    networks: Mapping[str, Network]
    """The parts by the graph that they become."""
    image: ImagePreprocessing
    tokenizer: Path
    """Folder with the tokenizer's files."""
    default_template: str
    stage: int | None = None
    """Training stage of TinyGPT-V."""


class Model(Mapping[str, Tensor]):
    """The tensors of a published model, read lazily: name to float32 tensor.

    Names are those of the parts. Nothing is read until a tensor is asked for; keys and shapes are checked before.

    Args:
        description: What the model is.
        ledgers: Its weights.
        readers: The readers behind them.
        files: (role, path) of every file that decides what the bundle holds.

    Raises:
        ExportError: A key is missing, unknown or misshapen; names it.
    """

    def __init__(
        self,
        description: Description,
        ledgers: Ledgers,
        readers: Sequence[Reader],
        files: Sequence[tuple[str, Path]],
    ) -> None:
        self.description = description
        self.files = list(files)
        self._readers = readers
        self._reads: dict[str, Read] = {}
        self._shapes: dict[str, Shape] = {}
        unused: list[str] = []
        for network in self.networks.values():
            self._reads |= network.part.read(ledgers, network.sizes)
            self._shapes |= network.part.tensors(network.sizes)
            unused += network.part.unused(network.sizes)
        self.stored_bytes = ledgers.finish(unused)
        """Size in the files of all tensors, in bytes."""

    @property
    def networks(self) -> Mapping[str, Network]:
        """The parts by the graph that they become."""
        return self.description.networks

    def __getitem__(self, name: str) -> Tensor:
        return self._reads[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._reads  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without reading it."""
        return self._shapes[name]

    def sha256(self, file: Path, progress: Callable[[int], object]) -> str:
        """SHA-256 of a file; ``progress`` is called with the number of bytes read since the last call.

        Raises:
            ExportError: It is one of the model's, and does not fit the sums that its own format has.
        """
        reader = next((reader for reader in self._readers if file in reader.files), None)
        sums = None if reader is None else reader.sums(file)
        digest = sha256_of(file, progress=progress, seen=sums)
        if sums is not None:
            sums.finish()
        return digest

    def close(self) -> None:
        """Unmap the files; a later read maps them again."""
        for reader in self._readers:
            reader.close()

    def on_read(self, callback: Callable[[int], object]) -> None:
        """Have ``callback`` called with the stored bytes of each tensor read from now on."""
        for reader in self._readers:
            reader.on_read = callback
