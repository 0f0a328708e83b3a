"""The contract of the graphs: their inputs and outputs, and all sizes that the runtime needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

VISION_ENCODER, PROJECTOR, DECODER = "vision_encoder", "projector", "decoder"
GRAPHS = (VISION_ENCODER, PROJECTOR, DECODER)
CACHE_BYTES = {"int8": 1, "float16": 2, "float32": 4}
"""Bytes of one number of the KV cache, by dtype."""

MOST_LAYERS, LARGEST_SIZE = 1024, 1 << 24
"""Upper limits far beyond any present model: larger values are mistakes, and not worth the memory to try."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor: a fixed size, or the name of a variable one."""

    name: str
    size: int | None
    maximum: int | None = None
    """Maximum size of a variable dimension, if it has one: the decoder's context."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """The name; with ``{i}`` in it, it stands for ``count`` tensors, numbered from 0."""
    dtype: str
    """``int8``, ``float16``, ``float32``, ``int32`` or ``int64``."""
    axes: tuple[Axis, ...]
    note: str = ""
    count: int = 1

    def names(self) -> Iterator[str]:
        """The names of all tensors that it stands for."""
        return (self.name.replace("{i}", str(i)) for i in range(self.count))


@dataclass(frozen=True)
class Quantization:
    """How some of a graph's weight matrices are stored."""

    bits: int
    block_size: int | None
    """Number of weights of one output that share a scale; None for all of them."""
    symmetric: bool
    operator: str
    layers: int
    """Number of matrices stored in this way; q, k and v are three."""


@dataclass(frozen=True)
class Graph:
    """One ONNX graph: its file, its weights' file, its precision and its contract."""

    file: str
    data: str
    precision: str
    quantization: tuple[Quantization, ...]
    """The quantisation of the weights; empty in a float32 graph."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    working_bytes: int = 0
    """Estimated memory of one run besides weights and KV cache, at most."""


@dataclass(frozen=True)
class Contract:
    """The sizes that follow from the three graphs."""

    image_size: int
    """Side of the square that the vision encoder takes, in pixels."""
    image_tokens: int
    """Number of image tokens of one picture."""
    hidden_size: int
    vocab_size: int
    """Rows of the embedding table and of the logits."""
    layers: int
    """Number of layers in the KV cache."""
    heads: int
    head_dim: int
    context: int
    """Context length in positions, including image tokens."""
    cache_dtype: str
    """Dtype of the KV cache: ``int8``, ``float16`` or ``float32``."""

    @property
    def cache_bytes_per_position(self) -> int:
        """Bytes of the KV cache for one position, keys and values of all layers."""
        return 2 * self.layers * self.heads * self.head_dim * CACHE_BYTES[self.cache_dtype]


@dataclass(frozen=True)
class _Form:
    """The required form of one input or output."""

    dtypes: tuple[str, ...]
    axes: int


_FLOATS = ("float32",)
_CACHE = _Form(tuple(CACHE_BYTES), 4)
_FORMS: dict[str, tuple[dict[str, _Form], dict[str, _Form]]] = {
    VISION_ENCODER: ({"pixel_values": _Form(_FLOATS, 4)}, {"image_features": _Form(_FLOATS, 3)}),
    PROJECTOR: ({"image_features": _Form(_FLOATS, 3)}, {"image_embeds": _Form(_FLOATS, 3)}),
    DECODER: (
        {
            "inputs_embeds": _Form(_FLOATS, 3),
            "position_ids": _Form(("int64",), 2),
            "seqlens_k": _Form(("int32",), 1),
            "total_sequence_length": _Form(("int32",), 0),
            "num_logits_to_keep": _Form(("int64",), 0),
            "past_key_values.{i}.key": _CACHE,
            "past_key_values.{i}.value": _CACHE,
        },
        {"logits": _Form(_FLOATS, 3), "present.{i}.key": _CACHE, "present.{i}.value": _CACHE},
    ),
}
"""(inputs, outputs) of each graph, by name."""


def read_contract(graphs: Mapping[str, Graph], where: str) -> Contract:
    """Derive the contract from the graphs of a manifest.

    Args:
        graphs: The three graphs of every bundle, by name.
        where: Path of the manifest, for messages.

    Raises:
        BundleError: An input or output that every bundle has is missing, of another form or size than the others need,
            or there is an input that this version cannot give.
    """
    specs = {name: _specs(name, graphs[name], where) for name in GRAPHS}

    def size(graph: str, name: str, axis: int) -> int:
        return _size(specs[graph][name].axes[axis], f"{where}: {graph}: {name}")

    key = specs[DECODER]["past_key_values.{i}.key"]
    cache = [spec for name, spec in specs[DECODER].items() if "{i}" in name]
    equal: dict[str, set[Any]] = {
        "pixel_values' height and width": {size(VISION_ENCODER, "pixel_values", axis) for axis in (2, 3)},
        "image_features' tokens": {size(graph, "image_features", 1) for graph in (VISION_ENCODER, PROJECTOR)},
        "image_features' width": {size(graph, "image_features", 2) for graph in (VISION_ENCODER, PROJECTOR)},
        "the hidden size": {size(PROJECTOR, "image_embeds", 2), size(DECODER, "inputs_embeds", 2)},
        "the KV cache's dtype, layers, heads and head_dim": {
            (s.dtype, s.count, s.axes[1].size, s.axes[3].size) for s in cache
        },
    }
    for name, found in equal.items():
        if len(found) > 1:
            numbers = " and ".join(map(str, sorted(found, key=str)))
            raise BundleError(f"{where}: graphs do not match: {name} are {numbers}; export the model again")
    context = key.axes[2].maximum
    return Contract(
        image_size=size(VISION_ENCODER, "pixel_values", 2),
        image_tokens=size(PROJECTOR, "image_embeds", 1),
        hidden_size=size(DECODER, "inputs_embeds", 2),
        vocab_size=size(DECODER, "logits", 2),
        layers=key.count,
        heads=size(DECODER, key.name, 1),
        head_dim=size(DECODER, key.name, 3),
        context=_size(Axis(f"{key.axes[2].name} (its maximum)", context), f"{where}: {DECODER}: {key.name}"),
        cache_dtype=key.dtype,
    )


def _specs(name: str, graph: Graph, where: str) -> dict[str, TensorSpec]:
    """The required inputs and outputs of a graph, each checked against its form."""
    inputs, outputs = _FORMS[name]
    named = Counter(spec.name for spec in (*graph.inputs, *graph.outputs))
    if twice := sorted(found for found, times in named.items() if times > 1):
        raise BundleError(f"{where}: {name} has {', '.join(twice)} more than once; export the model again")
    specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
    if unknown := sorted({spec.name for spec in graph.inputs} - set(inputs)):
        raise BundleError(
            f"{where}: {name} needs {', '.join(unknown)}, an input that this version of tinygptv does not know: update "
            "tinygptv"
        )
    for wanted, form in (inputs | outputs).items():
        spec = specs.get(wanted)
        if spec is None:
            raise BundleError(f"{where}: {name} has no {wanted}; export the model again")
        if spec.dtype not in form.dtypes or len(spec.axes) != form.axes or not 1 <= spec.count <= MOST_LAYERS:
            raise BundleError(
                f"{where}: {name}: {wanted} is {spec.count} of {spec.dtype} with {len(spec.axes)} axes; expected "
                f"{' or '.join(form.dtypes)} with {form.axes}, one to {MOST_LAYERS:,} of them: export the model again"
            )
    return specs


def _size(axis: Axis, where: str) -> int:
    if axis.size is None or not 1 <= axis.size <= LARGEST_SIZE:
        raise BundleError(
            f"{where}: the size of {axis.name} is {axis.size}; expected 1 to {LARGEST_SIZE:,}: export the model again"
        )
    return axis.size
