"""LLaVA-Phi, Mipha, TinyLLaVA and Bunny as published: one folder, or several folders for one model.

What they have in common: a CLIP or SigLIP tower, an MLP and plain Phi-2. How their configurations say so differs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from tinygptv.runtime.errors import ExportError

from ..documents import Config, read_json
from ..parts import Tower, clip, mlp, phi, siglip
from .families import (
    ARCHITECTURES,
    BUNNY,
    BY_MODEL_TYPE,
    MIPHA,
    TINYLLAVA,
    TINYLLAVA_LEGACY,
    TOWERS,
    Family,
)
from .ledger import KeyLedger, Ledgers
from .lora import ADAPTER_CONFIG, BUNNY_ADAPTERS, FACTORY_ADAPTERS, Lora, Prefixes, read_lora
from .model import Description, Model, Network
from .opening import open_folder
from .pixels import image_preprocessing
from .readers import Reader
from .tokenizer import build_tokenizer
from .torch_files import TorchReader
from .towers import CONFIG, FIRST_NORM, find_tower, nested, select, tower_config, tower_of_weights

NON_LORA = "non_lora_trainables.bin"
DESCRIBING = (".json", ".txt")
TABLE = "model.embed_tokens.weight"
HOME = {"": r"model\.|lm_head\.", "tower.": r"tower\.", "projector.": r"projector\."}


@dataclass
class _Files:
    """The files of a model, in order of precedence."""

    ledgers: list[KeyLedger] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    named: list[tuple[str, Path]] = field(default_factory=list)
    """(role, path) of every file that determines the content of the bundle."""

    def add(self, role: str, reader: Reader, cause: str, prefixes: Prefixes, home: str = r"(?!)") -> None:
        self.ledgers.append(KeyLedger(reader, cause, prefixes, home))
        self.readers.append(reader)
        self.named += [(role, file) for file in reader.files]

    def describe(self, role: str, folder: Path) -> None:
        self.named += [(role, path) for path in sorted(folder.iterdir()) if path.suffix in DESCRIBING]


def open_sibling(folder: Path, tower: Path | None = None, phi_folder: Path | None = None) -> Model:
    """Open a published folder, in any of the layouts that the four projects have written.

    Args:
        folder: With a config.json that says which family it is.
        tower: Folder of the vision tower, where ``folder`` does not hold it or does not tell its sizes.
        phi_folder: Folder of Phi-2, where ``folder`` holds adapters of it only.

    Raises:
        ExportError: A folder or key is missing, not needed or unknown, or the model is of a kind that is not supported.
    """
    if not folder.is_dir():
        raise ExportError(f"--model {folder}: no such folder")
    if not (folder / CONFIG).is_file():
        raise ExportError(f"--model {folder}: no {CONFIG} in it; expected the folder of a published model")
    config = Config(str(folder / CONFIG), read_json(folder / CONFIG))
    family = _recognise(config)
    if family is BUNNY:
        return _open_bunny(folder, config, tower, phi_folder)
    for option, given in (("--phi", phi_folder), *([] if family is TINYLLAVA_LEGACY else [("--tower", tower)])):
        if given is not None:
            raise ExportError(f"{option} {given} is not needed: {folder} holds all of the model; leave it out")
    if family is TINYLLAVA:
        return _open_tinyllava(folder, config)
    if family is TINYLLAVA_LEGACY:
        return _open_tinyllava_legacy(folder, config, tower)
    return _open_llava_phi(folder, config, family)


def _recognise(config: Config) -> Family:
    """The family by ``model_type`` and ``architectures``, which must not contradict each other."""
    kind, classes = config.get("model_type"), config.get("architectures") or []
    by_class = ARCHITECTURES.get(classes[0]) if isinstance(classes, list) and len(classes) == 1 else None
    family = BY_MODEL_TYPE.get(kind) if isinstance(kind, str) else None
    adapters_only = family is BUNNY and classes == ["PhiForCausalLM"]
    if by_class is TINYLLAVA_LEGACY and family in (None, TINYLLAVA):
        family = TINYLLAVA_LEGACY
    if family is None or (by_class is not family and not adapters_only):
        raise ExportError(
            f"{config.label}: model_type is {kind!r} and architectures {classes!r:.80}; expected a model on Phi-2 of "
            f"{', '.join(BY_MODEL_TYPE)} with {', '.join(ARCHITECTURES)}"
        )
    config.expect("use_s2", None, False)
    config.expect("mm_use_im_start_end", None, False)
    config.expect("mm_patch_merge_type", None, "flat")
    return family


def _open_llava_phi(folder: Path, config: Config, family: Family) -> Model:
    both = config.part("vision_config")
    eyes, projector = both.part("vision_tower", clip.DEFAULTS), both.part("mm_projector")
    vision = find_tower(eyes, "vision_model_name_or_path") if family is MIPHA else clip
    chosen = select(eyes, "mm_vision_select_layer", "mm_vision_select_feature")
    # Mipha's SigLIP tower hands on all patches, whatever the field says.
    keep_first = vision is siglip or chosen.keep_first
    files = _Files()
    files.describe("model", folder)
    cause = f"this is not a complete folder of {family.name}, or its download is incomplete"
    files.add("model", open_folder(folder, "--model"), cause, family.prefixes, home="")
    return _assemble(
        files,
        family,
        vision,
        vision.sizes_from(eyes, chosen.layer, keep_first),
        phi.sizes_from(config.with_defaults(phi.DEFAULTS)),
        projector.text("mm_projector_type"),
        config,
        (both, eyes, projector),
        tokenizer=folder,
        processor=folder,
    )


def _open_tinyllava(folder: Path, config: Config) -> Model:
    vision = find_tower(config, "vision_model_name_or_path")
    if "phi" not in config.text("llm_model_name_or_path").lower():
        raise ExportError(
            f"{config.label}: llm_model_name_or_path is {config.fields['llm_model_name_or_path']!r}; "
            "expected a model on Phi-2"
        )
    config.expect("vision_model_name_or_path2", None, "")
    in_parts = (folder / "language_model").is_dir()
    text = nested(folder / "language_model", config, "text_config", phi.DEFAULTS)
    text.expect("model_type", "phi")
    eyes = nested(folder / "vision_tower", config, "vision_config", vision.DEFAULTS)
    eyes.expect("model_type", next(f"{name}_vision_model" for name, tower in TOWERS.items() if tower is vision))
    chosen = select(config, "vision_feature_layer", "vision_feature_select_strategy")
    files, lora = _Files(), None
    files.describe("model", folder)
    cause = "this is not a complete folder of TinyLLaVA, or its download is incomplete"
    if in_parts:
        if (folder / ADAPTER_CONFIG).is_file() or any(folder.glob("adapter_model.*")):
            lora = read_lora(folder, FACTORY_ADAPTERS)
            adapters = open_folder(folder, "--model", ("adapter_model",))
            files.add("model", adapters, "the adapters are of another model", FACTORY_ADAPTERS, home=r".*\.lora_[AB]\.")
        for name, prefixes, home in (
            ("language_model", (), ""),
            ("vision_tower", (("", "tower."),), "tower."),
            ("connector", (("_connector.", "projector."),), "projector."),
        ):
            reader = open_folder(folder / name, "--model")
            files.describe(name, folder / name)
            files.add(name, reader, cause, prefixes, HOME[home])
    else:
        files.add("model", open_folder(folder, "--model"), cause, TINYLLAVA.prefixes, home="")
    return _assemble(
        files,
        TINYLLAVA,
        vision,
        vision.sizes_from(eyes, chosen.layer, chosen.keep_first),
        _with_context(phi.sizes_from(text), config),
        config.text("connector_type"),
        config,
        (eyes, text),
        tokenizer=folder,
        processor=None,
        lora=lora,
    )


def _open_tinyllava_legacy(folder: Path, config: Config, tower: Path | None) -> Model:
    """Open a model in TinyLLaVABench's layout, from before the Factory."""
    files = _Files()
    files.describe("model", folder)
    cause = "this is not a complete folder of TinyLLaVA, or its download is incomplete"
    reader = open_folder(folder, "--model")
    files.add("model", reader, cause, TINYLLAVA_LEGACY.prefixes, home="")
    vision = find_tower(config, "mm_vision_tower")
    chosen = select(config, "mm_vision_select_layer", "mm_vision_select_feature")
    eyes = tower_of_weights(vision, files.ledgers[-1], config, tower)
    return _assemble(
        files,
        TINYLLAVA_LEGACY,
        vision,
        vision.sizes_from(eyes, chosen.layer, chosen.keep_first),
        _with_context(phi.sizes_from(config.with_defaults(phi.DEFAULTS)), config),
        config.text("mm_projector_type"),
        config,
        (eyes,),
        tokenizer=folder,
        processor=None,
    )


def _open_bunny(folder: Path, config: Config, tower: Path | None, phi_folder: Path | None) -> Model:
    vision = find_tower(config, "mm_vision_tower")
    config.expect("use_mm_proj", None, True)
    # The published code has these two fixed, whatever a file says.
    config.expect("mm_vision_select_layer", None, -2)
    config.expect("mm_vision_select_feature", None, "patch")
    files, lora, language = _Files(), None, folder
    files.describe("model", folder)
    adapters_only = (folder / ADAPTER_CONFIG).is_file()
    if adapters_only:
        if phi_folder is None:
            raise ExportError(f"{folder} holds adapters only: pass the Phi-2 folder that they adapt with --phi")
        lora = read_lora(folder, BUNNY_ADAPTERS)
        adapters = open_folder(folder, "--model", ("adapter_model",))
        files.add("model", adapters, "the adapters are of another model", BUNNY_ADAPTERS, home=r".*\.lora_[AB]\.")
        trained = folder / NON_LORA
        if not trained.is_file():
            raise ExportError(f"{trained}: no such file; it holds the projector: download it as well")
        files.add(
            "model", TorchReader(str(trained), [trained]), f"{NON_LORA} is incomplete", BUNNY_ADAPTERS, r"projector\."
        )
        files.describe("phi", phi_folder)
        files.add("phi", open_folder(phi_folder, "--phi"), "--phi is not microsoft/phi-2", (), HOME[""])
        language = phi_folder
    else:
        if phi_folder is not None:
            raise ExportError(f"--phi {phi_folder} is not needed: {folder} holds all of the model; leave it out")
        cause = "this is not a complete folder of Bunny, or its download is incomplete"
        files.add("model", open_folder(folder, "--model"), cause, BUNNY.prefixes, home="")
    # Weights in the folder win; the published loader's tower is Google's, which they equal where both are there.
    inside = next((ledger for ledger in files.ledgers if ledger.has_in_some_layer(FIRST_NORM)), None)
    if inside is None:
        config.expect("unfreeze_vision_tower", None, False)  # the one that was trained is needed
        if tower is None:
            raise ExportError(
                f"{folder} holds no vision tower: pass the folder of {config.fields['mm_vision_tower']} with --tower"
            )
        files.describe("tower", tower)
        files.add("tower", open_folder(tower, "--tower"), "--tower is another tower", (("", "tower."),), r"tower\.")
        eyes = tower_config(vision, tower)
    else:
        eyes = tower_of_weights(vision, inside, config, tower)
    # The published class has no bias at its head, and the table ends with the tokenizer's last token.
    stored = next((ledger.shape(TABLE)[0] for ledger in files.ledgers if ledger.has(TABLE)), 0)
    sizes = phi.sizes_from(config.with_defaults(phi.DEFAULTS), head_bias=False)
    length = build_tokenizer(language, stored or sizes.vocab_size).get_vocab_size()
    sizes = replace(sizes, vocab_size=min(length, stored or length), stored_vocab_size=stored or None)
    return _assemble(
        files,
        BUNNY,
        vision,
        vision.sizes_from(eyes, -2, keep_first=vision is siglip),
        _with_context(sizes, config),
        config.text("mm_projector_type"),
        config,
        (eyes,),
        tokenizer=language,
        processor=tower if inside is None else None,
        lora=lora,
    )


def _assemble(
    files: _Files,
    family: Family,
    vision: Tower,
    sizes: Any,
    language: phi.Sizes,
    projector_type: str,
    config: Config,
    others: Sequence[Config],
    *,
    tokenizer: Path,
    processor: Path | None,
    lora: Lora | None = None,
) -> Model:
    """Combine a tower, an MLP and Phi-2 into a model; ``others`` are the configurations besides its own."""
    projector = mlp.Sizes(
        tokens=sizes.tokens,
        input_size=sizes.hidden_size,
        hidden_size=language.hidden_size,
        num_hidden_layers=_projector_layers(projector_type, config),
        numbered=projector_type != "linear",
    )
    description = Description(
        family=family,
        networks={
            VISION_ENCODER: Network(vision, sizes),
            PROJECTOR: Network(mlp, projector),
            DECODER: Network(phi, language),
        },
        image=image_preprocessing(vision, sizes.image_size, config, processor),
        tokenizer=tokenizer,
        default_template=family.templates[0].name,
    )
    for read in (config, *others):
        read.finish()
    return Model(description, Ledgers(files.ledgers, lora), files.readers, files.named)


def _projector_layers(kind: str, config: Config) -> int:
    if kind == "linear":
        return 1
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if found is None or int(found[1]) < 1:
        raise ExportError(f"{config.label}: the projector is {kind!r}, which is not supported; expected mlp2x_gelu")
    return int(found[1])


def _with_context(sizes: phi.Sizes, config: Config) -> phi.Sizes:
    """Limit the context to ``tokenizer_model_max_length``, at which the published code truncates text and image."""
    if config.get("tokenizer_model_max_length") is None:
        return sizes
    length = config.integer("tokenizer_model_max_length")
    return replace(sizes, max_position_embeddings=min(length, sizes.max_position_embeddings))
