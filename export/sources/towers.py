"""Finds the vision tower that a published configuration names, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygptv.runtime.errors import ExportError

from ..documents import Config, read_json
from ..parts import Tower
from .families import TOWERS
from .ledger import KeyLedger

CONFIG = "config.json"
FIRST_NORM = "tower.vision_model.encoder.layers.0.layer_norm1.weight"
FIRST_MLP = "tower.vision_model.encoder.layers.0.mlp.fc1.weight"
POSITIONS = "tower.vision_model.embeddings.position_embedding.weight"
REFUSED = ("dinov2", "mof", "eva")
"""Parts of the names of towers that the published code supports and the exporter does not."""


def find_tower(config: Config, name: str) -> Tower:
    """The tower that the published code would use, by substrings of its name in a field."""
    text = config.text(name)
    # The Factory's names may say their class before a colon.
    lowered = text.partition(":")[0].lower()
    kinds = [kind for kind in TOWERS if kind in lowered]
    if not kinds or any(word in lowered for word in REFUSED):
        raise ExportError(
            f"{config.label}: {name} is {text!r}, a tower that is not supported; expected {' or '.join(TOWERS)}"
        )
    return TOWERS[kinds[0]]


@dataclass(frozen=True)
class Select:
    """The tower's hidden state to use, and whether its first token is passed to the projector."""

    layer: int
    keep_first: bool


def select(config: Config, layer_name: str, feature_name: str) -> Select:
    """The selection in two fields; -2 and ``patch`` if they are absent."""
    layer = config.get(layer_name) if layer_name in config.fields else -2
    if type(layer) is not int:
        raise ExportError(f"{config.label}: {layer_name} is {layer!r:.60}; expected a whole number such as -2")
    config.expect(feature_name, None, "patch", "cls_patch")
    return Select(layer, config.get(feature_name) == "cls_patch")


def tower_config(tower: Tower, folder: Path) -> Config:
    """The vision part of a tower folder's config.json."""
    if not (folder / CONFIG).is_file():
        raise ExportError(f"--tower {folder}: no {CONFIG} in it; expected the folder of a CLIP or SigLIP tower")
    return nested(folder, None, "vision_config", tower.DEFAULTS)


def nested(folder: Path, config: Config | None, name: str, defaults: Mapping[str, Any]) -> Config:
    """A part's own config.json if it has a folder, otherwise the object ``name`` of the model's.

    Raises:
        ExportError: There is no such configuration, or there are two that contradict each other.
    """
    file = folder / CONFIG
    if config is not None and not folder.is_dir():
        return config.part(name, defaults)
    own = Config(str(file), read_json(file), defaults)
    # Old files of CLIP say twice what their halves are, and transformers takes the second.
    others = [own.part(f"{name}_dict", defaults)] if own.get(f"{name}_dict") is not None else []
    if config is not None and config.get(name) is not None:
        others.append(config.part(name, defaults))
    chosen = own.part(name, defaults) if name in own.fields else own
    for other in others:
        for field in defaults:
            if other.get(field) != chosen.fields[field]:
                raise ExportError(
                    f"{chosen.label}: {field} is {chosen.fields[field]!r}, but {other.get(field)!r} in {other.label}; "
                    "expected the same"
                )
    return chosen


def tower_of_weights(tower: Tower, weights: KeyLedger, config: Config, folder: Path | None) -> Config:
    """The configuration of a tower whose weights are in the model's folder without their configuration.

    That of a published tower, if the weights have its shapes; else the one in ``folder``, what ``--tower`` names.
    """
    keys = {"hidden_size": FIRST_NORM, "intermediate_size": FIRST_MLP, "positions": POSITIONS}
    found = {name: weights.shape(key)[0] for name, key in keys.items() if weights.has(key)}
    for published, fields in tower.KNOWN.items():
        shapes = {**fields, "positions": (fields["image_size"] // fields["patch_size"]) ** 2}
        if all(shapes[name] == value for name, value in found.items()):
            if folder is not None:
                raise ExportError(
                    f"--tower {folder} is not needed: {weights.reader.label} holds the tower; leave it out"
                )
            return Config(f"{config.label}: {published}", fields)
    if folder is None:
        sizes = ", ".join(f"{name} {value}" for name, value in found.items())
        known = ", ".join(
            f"{name} (hidden_size {fields['hidden_size']}, intermediate_size {fields['intermediate_size']})"
            for name, fields in tower.KNOWN.items()
        )
        raise ExportError(
            f"{config.label}: the tower has {sizes}, and no file of the folder has its number of heads; it is "
            f"not a known tower{f': {known}' if known else ''}; pass the folder of "
            f"{config.fields['mm_vision_tower']} with --tower"
        )
    return tower_config(tower, folder)
