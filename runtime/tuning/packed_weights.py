"""The few bytes of an ONNX file that say where packed weights are: read from one file, put into another.

Weights that onnxruntime has packed for this machine's kernels stand in a data file beside the original ones. An
initializer's ``external_data`` names them in entries ``prepacked_0``, ``prepacked_1`` ..., each with the kernel's key
and, for every packed buffer, its place: ``key|offset;length;padding|offset;length;padding``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Field numbers of onnx.proto.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_NAME, TENSOR_EXTERNAL_DATA, ENTRY_KEY, ENTRY_VALUE = 7, 5, 8, 13, 1, 2
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""
PREPACKED = "prepacked_"


@dataclass(frozen=True)
class Buffer:
    """One packed buffer's place in the data file, in bytes."""

    offset: int
    length: int
    padding: str
    """Alignment that onnxruntime notes for itself; handed on as it is."""


@dataclass(frozen=True)
class Packed:
    """One entry of an initializer: what a kernel made of it."""

    entry: str
    """``prepacked_0`` and so on."""
    key: str
    """The operator and a hash of the packed bytes: onnxruntime takes them only for a weight that packs to the same."""
    buffers: tuple[Buffer, ...]


def packed_weights(model: bytes) -> dict[str, tuple[Packed, ...]]:
    """What an ONNX file says of packed weights, for each of its initializers; an empty tuple where it says nothing.

    Raises:
        ValueError: The bytes are no ONNX file, or an entry has another form.
    """
    found = {}
    for tensor in _initializers(memoryview(model)):
        entries = dict(_entry(value) for number, value in _fields(tensor) if number == TENSOR_EXTERNAL_DATA)
        packed = (_parse(entry, text) for entry, text in entries.items() if entry.startswith(PREPACKED))
        found[_name(tensor)] = tuple(packed)
    return found


def with_packed_weights(model: bytes, packed: Mapping[str, Sequence[Packed]]) -> bytes:
    """An ONNX file with entries for packed weights added to the initializers named.

    Raises:
        ValueError: The bytes are no ONNX file.
    """
    whole = bytearray()
    for number, value, raw in _raw_fields(memoryview(model)):
        whole += _field(MODEL_GRAPH, _graph(value, packed)) if number == MODEL_GRAPH else raw
    return bytes(whole)


def _graph(graph: memoryview, packed: Mapping[str, Sequence[Packed]]) -> bytes:
    whole = bytearray()
    for number, value, raw in _raw_fields(graph):
        entries = packed.get(_name(value), ()) if number == GRAPH_INITIALIZER else ()
        if not entries:
            whole += raw
            continue
        tensor = bytearray(value)
        for one in entries:
            places = "".join(f"|{place.offset};{place.length};{place.padding}" for place in one.buffers)
            entry = _field(ENTRY_KEY, one.entry.encode()) + _field(ENTRY_VALUE, (one.key + places).encode())
            tensor += _field(TENSOR_EXTERNAL_DATA, entry)
        whole += _field(GRAPH_INITIALIZER, bytes(tensor))
    return bytes(whole)


def _parse(entry: str, text: str) -> Packed:
    key, *places = text.split("|")
    buffers = []
    for place in places:
        offset, length, padding = place.split(";")
        buffers.append(Buffer(int(offset), int(length), padding))
    return Packed(entry, key, tuple(buffers))


def _initializers(model: memoryview) -> Iterator[memoryview]:
    for number, graph in _fields(model):
        if number == MODEL_GRAPH:
            yield from (value for inner, value in _fields(graph) if inner == GRAPH_INITIALIZER)


def _name(tensor: memoryview) -> str:
    return next((bytes(value).decode() for number, value in _fields(tensor) if number == TENSOR_NAME), "")


def _entry(entry: memoryview) -> tuple[str, str]:
    texts = {number: bytes(value).decode() for number, value in _fields(entry)}
    return texts.get(ENTRY_KEY, ""), texts.get(ENTRY_VALUE, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, value) for number, value, _ in _raw_fields(message))


def _raw_fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Each field's number, its value, and all of its bytes, tag included."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == VARINT:
            end = _varint(message, place)[1]
        elif wire in (FIXED64, FIXED32):
            end = place + (8 if wire == FIXED64 else 4)
        elif wire == LENGTH:
            length, place = _varint(message, place)
            end = place + length
        else:
            raise ValueError(f"wire type {wire} at byte {start}; expected an ONNX file")
        if end > len(message):
            raise ValueError(f"the field at byte {start} ends at {end} of {len(message)} bytes")
        yield tag >> 3, message[place:end], message[start:end]
        place = end


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("the file ends within a number")


def _field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
