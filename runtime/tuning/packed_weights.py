"""The entries of an ONNX file that refer to packed weights: reading them, and adding them to another file.

Weights that onnxruntime has packed for this machine's kernels stand in a data file beside the original ones. An
initializer's ``external_data`` names them in entries ``prepacked_0``, ``prepacked_1`` ..., each with the kernel's key
and, for every packed buffer, its place: ``key|offset;length;padding|offset;length;padding``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bundle.onnx_file import parsed

PREPACKED = "prepacked_"


@dataclass(frozen=True)
class Buffer:
    """Position of one packed buffer in the data file, in bytes."""

    offset: int
    length: int
    padding: str
    """Alignment information of onnxruntime; kept unchanged."""


@dataclass(frozen=True)
class Packed:
    """One entry of an initializer: the weight as packed by one kernel."""

    entry: str
    """Name of the entry: ``prepacked_0`` and so on."""
    key: str
    """The operator and a hash of the packed bytes: onnxruntime checks that the weight packs to the same bytes."""
    buffers: tuple[Buffer, ...]


def packed_weights(model: bytes) -> dict[str, tuple[Packed, ...]]:
    """The packed weights in an ONNX file, for each of its initializers; an empty tuple if there are none.

    Raises:
        ValueError: The bytes are not an ONNX file, or an entry has another form.
    """
    return {
        tensor.name: tuple(
            _packed(entry.key, entry.value) for entry in tensor.external_data if entry.key.startswith(PREPACKED)
        )
        for tensor in parsed(model).graph.initializer
    }


def with_packed_weights(model: bytes, packed: Mapping[str, Sequence[Packed]]) -> bytes:
    """An ONNX file with entries for packed weights added to the given initializers.

    Nothing else is changed, but fields may be reordered.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    file = parsed(model)
    for tensor in file.graph.initializer:
        for one in packed.get(tensor.name, ()):
            places = "".join(f"|{place.offset};{place.length};{place.padding}" for place in one.buffers)
            tensor.external_data.add(key=one.entry, value=one.key + places)
    serialized: bytes = file.SerializeToString()
    return serialized


def _packed(entry: str, text: str) -> Packed:
    key, *places = text.split("|")
    buffers = []
    for place in places:
        offset, length, padding = place.split(";")
        buffers.append(Buffer(int(offset), int(length), padding))
    return Packed(entry, key, tuple(buffers))
