"""Upgrades manifests of format version 1, which supported TinyGPT-V only, to the present version."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BundleError
from .contract import GRAPHS, VISION_ENCODER, Graph, TensorSpec
from .typed_json import from_json

TASKS = ("[vqa]", "[caption]", "[grounding]", "[detection]", "[refer]", "[identify]")
GROWING = ("sequence", "past_length", "present_length")
"""Variable axes whose maximum is the context."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Vision:
    image_size: int
    patch_size: int
    num_attention_heads: int
    intermediate_size: int


@dataclass(frozen=True)
class _Language:
    num_hidden_layers: int
    max_position_embeddings: int


@dataclass(frozen=True)
class _Architecture:
    vision: _Vision
    language: _Language
    qformer: dict[str, Any]


@dataclass(frozen=True)
class _Version1:
    """The fields that are moved to another place; all others stay the same."""

    architecture: _Architecture
    image: dict[str, Any]
    graphs: dict[str, Graph]


def upgraded(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert a document of version 1 to the fields of version 2; its format_version is kept.

    Sizes that version 1 had under ``architecture`` go where version 2 has them: into the graphs' contracts.

    Args:
        document: The JSON, whose format_version is 1.
        where: The file, for messages.

    Raises:
        BundleError: A field of version 1 is missing or has another type; names the field.
    """
    found: _Version1 = from_json(_Version1, document, where)
    vision, language = found.architecture.vision, found.architecture.language
    for name, value in {**vars(vision), **vars(language)}.items():
        if value < 1:
            raise BundleError(f"{where}: architecture: {name} is {value}; expected at least 1: copy the bundle again")
    if set(found.graphs) != set(GRAPHS):
        raise BundleError(f"{where}: graphs are {sorted(found.graphs)}; expected {sorted(GRAPHS)}")
    graphs = {name: _with_sizes(graph, language) for name, graph in found.graphs.items()}
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    width = vision.num_attention_heads * tokens + vision.intermediate_size
    graphs[VISION_ENCODER] = replace(graphs[VISION_ENCODER], working_bytes=2 * FLOAT_BYTES * tokens * width)
    parts = document["architecture"]
    return document | {
        "format_minor": 0,
        "family": "tinygpt-v",
        "parts": {"eva_clip": parts["vision"], "qformer": parts["qformer"], "phi": parts["language"]},
        "image": found.image | {"fit": "squash"},
        "caption_question": "[caption]",
        "tasks": TASKS,
        "boxes": True,
        "graphs": {name: dataclasses.asdict(graph) for name, graph in graphs.items()},
    }


def _with_sizes(graph: Graph, language: _Language) -> Graph:
    def sized(spec: TensorSpec) -> TensorSpec:
        count = language.num_hidden_layers if "{i}" in spec.name else 1
        axes = tuple(
            replace(axis, maximum=language.max_position_embeddings) if axis.name in GROWING else axis
            for axis in spec.axes
        )
        return replace(spec, count=count, axes=axes)

    return replace(graph, inputs=tuple(map(sized, graph.inputs)), outputs=tuple(map(sized, graph.outputs)))
