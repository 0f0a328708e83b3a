"""Reading and changing ONNX files with protobuf alone: the onnx package is not part of the runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_PACKAGE = "tinygptv.onnx_file"
_STRING, _NUMBER, _BYTES = "string", "int32", "bytes"
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "ModelProto": (("graph", 7, "GraphProto"),),
    "GraphProto": (("node", 1, "NodeProto"), ("initializer", 5, "TensorProto")),
    "NodeProto": (("input", 1, _STRING), ("op_type", 4, _STRING), ("attribute", 5, "AttributeProto")),
    "AttributeProto": (("g", 6, "GraphProto"),),
    "TensorProto": (
        ("data_type", 2, _NUMBER),
        ("name", 8, _STRING),
        ("raw_data", 9, _BYTES),
        ("external_data", 13, "StringStringEntryProto"),
    ),
    "StringStringEntryProto": (("key", 1, _STRING), ("value", 2, _STRING)),
}
"""The needed fields of messages in onnx.proto: name, number, and type or message. protobuf keeps all others as they
are."""
_REPEATED = ("node", "input", "attribute", "initializer", "external_data")
_WITH_SUBGRAPHS = (b"\x22\x04Scan", b"\x22\x04Loop", b"\x22\x02If")
"""NodeProto's field 4, the type, of the standard operators that have subgraphs."""
_UINT8, _INT8 = 2, 3
"""Values of TensorProto.DataType."""
_PRODUCT, _WEIGHT, _WEIGHT_ZERO_POINT = "MatMulIntegerToFloat", 1, 5
"""The operator of int8 weights, and the places of these and of their zero point among its inputs."""
_ZERO_POINT = "uint8_weights.zero_point"


def parsed(model: bytes) -> Any:
    """An ONNX file as a message with the fields above.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(model)
    except DecodeError as error:
        raise ValueError(f"{error}; expected an ONNX file") from error


def has_subgraphs(model: bytes) -> bool:
    """Whether an ONNX file may have nodes with subgraphs; found without protobuf, which takes time to import."""
    return any(kind in model for kind in _WITH_SUBGRAPHS)


def with_weights_in_subgraphs(model: bytes) -> bytes | None:
    """An ONNX file with the int8 weights that subgraphs use copied into them; they refer to the same data.

    Returns:
        The file; None if its subgraphs use no int8 weights of graphs around them.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    file = parsed(model)
    if not _copy_weights(file.graph, {}):
        return None
    changed: bytes = file.SerializeToString()
    return changed


def with_uint8_weights(model: bytes, move: Callable[[int, int], int]) -> bytes:
    """An ONNX file in which the int8 weights of products are uint8, 128 greater, with a zero point of 128.

    The products are the same to the bit; on x86 without VNNI they do not saturate.

    Args:
        model: The file.
        move: Writes weights as uint8, given their offset and length in the data file; returns the new offset.

    Raises:
        ValueError: The bytes are not an ONNX file.
    """
    file = parsed(model)
    weights = {
        tensor.name: tensor
        for tensor in file.graph.initializer
        if tensor.data_type == _INT8 and any(entry.key == "offset" for entry in tensor.external_data)
    }
    products = []
    for node in _nodes(file.graph):
        is_product = node.op_type == _PRODUCT and len(node.input) == _WEIGHT_ZERO_POINT
        if is_product and node.input[_WEIGHT] in weights:
            products.append(node)
        for place, name in enumerate(node.input):
            if not (is_product and place == _WEIGHT):
                weights.pop(name, None)
    for tensor in weights.values():
        tensor.data_type = _UINT8
        entries = {entry.key: entry for entry in tensor.external_data}
        entries["offset"].value = str(move(int(entries["offset"].value), int(entries["length"].value)))
    for node in products:
        if node.input[_WEIGHT] in weights:
            node.input.append(_ZERO_POINT)
    if weights:
        file.graph.initializer.add(name=_ZERO_POINT, data_type=_UINT8, raw_data=bytes([128]))
    changed: bytes = file.SerializeToString()
    return changed


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _copy_weights(graph: Any, outer: Mapping[str, Any]) -> bool:
    """Copy the weights of ``outer`` that a graph or its subgraphs use into them; returns whether there are any."""
    used = {name for node in graph.node for name in node.input if name in outer}
    for name in sorted(used):
        graph.initializer.add().CopyFrom(outer[name])
        graph.initializer[-1].name = _inside(name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in used:
                node.input[place] = _inside(name)
    weights = {**outer, **{tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _INT8}}
    subgraphs = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    copied = [_copy_weights(subgraph, weights) for subgraph in subgraphs]
    return bool(used) or any(copied)


def _inside(name: str) -> str:
    return f"{name}.in_subgraph"


@functools.cache
def _model_class() -> Any:
    """The class for ModelProto, limited to the fields in :data:`_MESSAGES`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    types = {_STRING: kinds.TYPE_STRING, _NUMBER: kinds.TYPE_INT32, _BYTES: kinds.TYPE_BYTES}
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if name in _REPEATED else kinds.LABEL_OPTIONAL
            field.type = types.get(kind, kinds.TYPE_MESSAGE)
            if kind not in types:
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()  # of its own: the onnx package's messages are in the default one
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))
