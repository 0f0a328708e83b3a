"""The model's sizes: from the files where they tell, from the published constants or a JSON where they don't."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygptv.runtime.architecture import (
    Architecture,
    LanguageArchitecture,
    QFormerArchitecture,
    VisionArchitecture,
)
from tinygptv.runtime.errors import ExportError

from .documents import read_json
from .readers import Reader, TorchReader

IMAGE_SIZES = {1: 224, 2: 224, 3: 224, 4: 448}
"""Pixels a side that each stage was trained at (TinyGPT-V's released configurations)."""
STAGES = tuple(IMAGE_SIZES)
QFORMER_LAYER = "Qformer.bert.encoder.layer."
"""What the keys of a Q-Former layer begin with, before its number."""


@dataclass(frozen=True)
class Untold:
    """What no weight file tells. The defaults are the published model's: ViT-g/14's blocks in use, and head counts."""

    image_size: int
    patch_size: int = 14
    vision_layers: int = 39
    vision_heads: int = 16
    qformer_heads: int = 12


def read_untold(file: Path | None, stage: int) -> Untold:
    """The published constants of ``stage``, with what the architecture JSON says instead."""
    untold = Untold(image_size=IMAGE_SIZES[stage])
    if file is None:
        return untold
    document = read_json(file)
    known = {field.name for field in dataclasses.fields(Untold)}
    if set(document) - known:
        raise ExportError(
            f"{file}: unknown {', '.join(sorted(set(document) - known))}; known are {', '.join(sorted(known))}"
        )
    for name, value in document.items():
        if type(value) is not int or value < 1:
            raise ExportError(f"{file}: {name} is {value!r}; expected a positive integer")
    return dataclasses.replace(untold, **document)


def derive(untold: Untold, phi: Path, vision: Reader, qformer: Reader, stage: TorchReader) -> Architecture:
    """Put the sizes together from the Phi-2 folder's config.json, the weights' shapes and ``untold``.

    Raises:
        ExportError: A file lacks what the sizes are read from, or two of them contradict each other.
    """
    width, _, patch, _ = _shape(vision, "patch_embed.proj.weight", 4, "--vision is not an EVA-CLIP ViT")
    if patch != untold.patch_size:
        raise ExportError(f"{vision.label}: patches are {patch} px; expected {untold.patch_size} (see --architecture)")
    if untold.image_size % patch:
        raise ExportError(
            f"image size {untold.image_size} is not a multiple of the patch size {patch} (see --architecture)"
        )
    intermediate, _ = _shape(vision, "blocks.0.mlp.fc1.weight", 2, "--vision is not an EVA-CLIP ViT")
    queries = stage if "query_tokens" in stage.shapes else qformer
    _, query_count, query_width = _shape(queries, "query_tokens", 3, "--qformer is not a BLIP-2 file")
    first_mlp = f"{QFORMER_LAYER}0.intermediate_query.dense.weight"
    source = stage if first_mlp in stage.shapes else qformer
    query_mlp, _ = _shape(source, first_mlp, 2, "--qformer is not a BLIP-2 file")
    numbered = re.compile(rf"{re.escape(QFORMER_LAYER)}(\d+)\.")
    layers = len({found[1] for key in source.shapes if (found := numbered.match(key))})
    projection, _ = _shape(stage, "llama_proj.weight", 2, "--checkpoint is not a TinyGPT-V stage file")
    architecture = Architecture(
        vision=VisionArchitecture(
            image_size=untold.image_size,
            patch_size=patch,
            hidden_size=width,
            intermediate_size=intermediate,
            num_hidden_layers=untold.vision_layers,
            num_attention_heads=untold.vision_heads,
        ),
        qformer=QFormerArchitecture(
            num_query_tokens=query_count,
            hidden_size=query_width,
            intermediate_size=query_mlp,
            num_hidden_layers=layers,
            num_attention_heads=untold.qformer_heads,
            projection_size=projection,
        ),
        language=_language(phi / "config.json"),
    )
    for label, size, heads in (
        (vision.label, width, untold.vision_heads),
        (qformer.label, query_width, untold.qformer_heads),
        (str(phi), architecture.language.hidden_size, architecture.language.num_attention_heads),
    ):
        if size % heads:
            raise ExportError(f"{label}: width {size} does not divide into {heads} heads (see --architecture)")
    rotary_dim, head_dim = architecture.language.rotary_dim, architecture.language.head_dim
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ExportError(
            f"{phi / 'config.json'}: partial_rotary_factor is for {rotary_dim} of a head's {head_dim} dimensions; "
            "expected an even number of them"
        )
    return architecture


def _shape(reader: Reader, key: str, rank: int, cause: str) -> tuple[int, ...]:
    shape = reader.shapes.get(key)
    if shape is None:
        raise ExportError(f"{reader.label}: no key {key}; likely cause: {cause}")
    if len(shape) != rank:
        raise ExportError(f"{reader.label}: {key} has shape {list(shape)}; expected {rank} dimensions")
    return shape


def _language(file: Path) -> LanguageArchitecture:
    config = read_json(file)
    if config.get("model_type") != "phi":
        raise ExportError(
            f"{file}: model_type is {config.get('model_type')!r}; expected 'phi': is --phi a Phi-2 folder?"
        )
    # transformers 5 keeps the two rotary settings together.
    rotary = config.get("rope_parameters") or {}
    if not isinstance(rotary, dict):
        raise ExportError(f"{file}: rope_parameters is {rotary!r:.60}; expected an object")
    config = {**config, **rotary}
    hidden, heads = _integer(config, "hidden_size", file), _integer(config, "num_attention_heads", file)
    if (config.get("num_key_value_heads") or heads) != heads:
        raise ExportError(
            f"{file}: num_key_value_heads is {config['num_key_value_heads']}; expected {heads} as in Phi-2"
        )
    if config.get("hidden_act") != "gelu_new" or config.get("rope_scaling") is not None:
        raise ExportError(f"{file}: expected hidden_act 'gelu_new' and no rope_scaling, as in Phi-2")
    if config.get("tie_word_embeddings"):
        raise ExportError(f"{file}: tie_word_embeddings is set; Phi-2's are not tied")
    return LanguageArchitecture(
        vocab_size=_integer(config, "vocab_size", file),
        hidden_size=hidden,
        intermediate_size=_integer(config, "intermediate_size", file),
        num_hidden_layers=_integer(config, "num_hidden_layers", file),
        num_attention_heads=heads,
        max_position_embeddings=_integer(config, "max_position_embeddings", file),
        rotary_dim=math.floor(hidden // heads * _number(config, "partial_rotary_factor", file)),
        rope_theta=_number(config, "rope_theta", file),
        layer_norm_eps=_number(config, "layer_norm_eps", file),
    )


def _integer(config: dict[str, Any], name: str, file: Path) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise ExportError(f"{file}: {name} is {value!r}; expected a positive integer")
    return value


def _number(config: dict[str, Any], name: str, file: Path) -> float:
    value = config.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ExportError(f"{file}: {name} is {value!r}; expected a positive number")
    return float(value)
