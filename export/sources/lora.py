"""Low-rank adapters: finding them, and reading PEFT's adapter_config.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygptv.runtime.errors import ExportError

from ..documents import Config, read_json

ADAPTER_CONFIG = "adapter_config.json"
Prefixes = tuple[tuple[str, str], ...]
"""(stored prefix, canonical prefix) pairs for keys; the first match is used."""
FACTORY_ADAPTERS: Prefixes = (
    ("base_model.model.language_model.", ""),
    ("base_model.model.vision_tower._vision_tower.", "tower."),
    ("base_model.model.connector._connector.", "projector."),
)
BUNNY_ADAPTERS: Prefixes = (
    ("base_model.model.model.vision_tower.vision_tower.", "tower."),
    ("base_model.model.model.mm_projector.", "projector."),
    ("model.vision_tower.vision_tower.", "tower."),
    ("model.mm_projector.", "projector."),
    ("base_model.model.", ""),
)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W + (alpha / r) B A, computed in float32 (Hu et al. 2021, section 4.1)."""

    alpha: float
    """The scale is alpha / r, with the rank r from the shapes."""
    adapted: Callable[[str], bool]
    """Whether a linear layer, by its canonical name, must have an adapter."""
    rank: int | None = None
    """The rank r, if a file states it."""


def read_lora(folder: Path, prefixes: Prefixes) -> Lora:
    """Read adapter_config.json like PEFT; ``prefixes`` are those of the adapters' keys."""
    config = Config(str(folder / ADAPTER_CONFIG), read_json(folder / ADAPTER_CONFIG))
    config.expect("peft_type", None, "LORA")
    config.expect("bias", None, "none")
    for name in ("use_rslora", "use_dora", "use_qalora", "fan_in_fan_out", "lora_bias"):
        config.expect(name, None, False)
    for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"):
        config.expect(name, None, {}, [])
    # Other ways of beginning (pissa, olora, corda, loftq) change what the adapters are added to.
    config.expect("init_lora_weights", None, True, False, "gaussian", "orthogonal")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise ExportError(f"{config.label}: target_modules is {targets!r:.60}; expected a list of names")
    whole, suffixes = _canonical_targets(targets, prefixes)

    def adapted(name: str) -> bool:
        # A suffix may fit layers of the tower too; LoRA was on the language model alone.
        return name in whole or (name.startswith("model.layers.") and name.endswith(suffixes))

    lora = Lora(config.number("lora_alpha"), adapted, config.integer("r"))
    config.finish()
    return lora


def _canonical_targets(targets: Sequence[str], prefixes: Prefixes) -> tuple[set[str], tuple[str, ...]]:
    """Complete names in canonical form, and endings of names."""
    whole, suffixes = set(), []
    for target in targets:
        if "layers." not in target and "_connector." not in target:
            suffixes.append(f".{target}")
            continue
        name = f"base_model.model.{target}"
        old, new = next((old, new) for old, new in prefixes if name.startswith(old))
        whole.add(new + name.removeprefix(old))
    return whole, tuple(suffixes)
