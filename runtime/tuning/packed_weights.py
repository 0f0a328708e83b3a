"""The entries of an ONNX file that refer to packed weights: reading them, and adding them to another file.

Weights that onnxruntime has packed for this machine's kernels stand in a data file beside the original ones. An
initializer's ``external_data`` names them in entries ``prepacked_0``, ``prepacked_1`` ..., each with the kernel's key
and, for every packed buffer, its place: ``key|offset;length;padding|offset;length;padding``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PREPACKED = "prepacked_"
_PACKAGE = "tinygptv.packed_weights"
_MESSAGES: dict[str, tuple[tuple[str, int, str | None], ...]] = {
    "ModelProto": (("graph", 7, "GraphProto"),),
    "GraphProto": (("initializer", 5, "TensorProto"),),
    "TensorProto": (("name", 8, None), ("external_data", 13, "StringStringEntryProto")),
    "StringStringEntryProto": (("key", 1, None), ("value", 2, None)),
}
"""The needed fields of messages in onnx.proto: name, number, and message (a string if None). protobuf keeps all others
as they are. The onnx package, which has all of them, is not part of the runtime."""
_REPEATED = ("initializer", "external_data")


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
        for tensor in _parsed(model).graph.initializer
    }


def with_packed_weights(model: bytes, packed: Mapping[str, Sequence[Packed]]) -> bytes:
    """An ONNX file with entries for packed weights added to the given initializers.

    Nothing else is changed, but fields may be reordered.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    parsed = _parsed(model)
    for tensor in parsed.graph.initializer:
        for one in packed.get(tensor.name, ()):
            places = "".join(f"|{place.offset};{place.length};{place.padding}" for place in one.buffers)
            tensor.external_data.add(key=one.entry, value=one.key + places)
    serialized: bytes = parsed.SerializeToString()
    return serialized


def _packed(entry: str, text: str) -> Packed:
    key, *places = text.split("|")
    buffers = []
    for place in places:
        offset, length, padding = place.split(";")
        buffers.append(Buffer(int(offset), int(length), padding))
    return Packed(entry, key, tuple(buffers))


def _parsed(model: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(model)
    except DecodeError as error:
        raise ValueError(f"{error}; expected an ONNX file") from error


@functools.cache
def _model_class() -> Any:
    """The class for ModelProto, limited to the fields in :data:`_MESSAGES`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if name in _REPEATED else kinds.LABEL_OPTIONAL
            field.type = kinds.TYPE_STRING if kind is None else kinds.TYPE_MESSAGE
            if kind is not None:
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()  # of its own: the onnx package's messages are in the default one
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))
