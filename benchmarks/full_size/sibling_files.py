"""The folders of the other Phi-2 families, written from tensors that are drawn as they are needed.

Documents are those of the golden checkpoints (tests/golden/siblings), which have every field that the published ones
have, with the scale's own sizes in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from published_phi import PUBLISHED_PHI, PhiSizes, phi_tensors
from published_towers import (
    CLIP_L_336,
    SIGLIP_SO400M_384,
    TowerSizes,
    clip_tensors,
    projector_tensors,
    siglip_tensors,
)
from random_tensors import Draw, Tensor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from writers import TOKENIZER_FILES, copy_tokenizer, write_json, write_safetensors, write_shards

TESTS = Path(__file__).resolve().parents[2] / "tests"
MODEL_FOLDER, TOWER_FOLDER = "model", "tower"
SHARDS = 2
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
PHI_DEFAULTS = {"num_attention_heads": 32, "num_key_value_heads": 32}
"""What PhiConfig and LlamaConfig agree on: a config.json of differences leaves it out."""


@dataclass(frozen=True)
class Sizes:
    """Of one family at one scale."""

    tower: TowerSizes
    phi: PhiSizes
    tokenizer: Path
    """Folder of the tokenizer that fits the vocabulary."""


@dataclass(frozen=True)
class Family:
    """How one family's folder is laid out."""

    dtype: torch.dtype
    language_prefix: str
    tower_prefix: str
    projector_prefix: str
    tiny: Sizes
    """The golden checkpoint's."""
    published: Sizes
    fused: bool = False
    head_bias: bool = True
    blocks_left_out: int = 0
    """Of the tower, at its end; its pooling head is then left out as well."""
    fast_tokenizer: bool = True
    """Whether there is a tokenizer.json."""

    def sizes(self, scale: str) -> Sizes:
        return self.published if scale == "published" else self.tiny


def _golden(family: str) -> Path:
    return TESTS / "golden" / "siblings" / family / "checkpoint"


def _tiny(family: str, tower: TowerSizes, rows: int, layers: int, eos_token_id: int) -> Sizes:
    return Sizes(tower, PhiSizes(rows, 160, 320, layers, 4, 2048, eos_token_id), _golden(family))


TINY_CLIP = TowerSizes(
    hidden_size=64, intermediate_size=128, num_layers=3, num_heads=4, image_size=56, projection_size=32
)
TINY_SIGLIP = TowerSizes(hidden_size=64, intermediate_size=112, num_layers=3, num_heads=4, image_size=62)
TOKENIZER = TESTS / "tokenizer"
FAMILIES = {
    "llava-phi": Family(
        dtype=torch.bfloat16,
        language_prefix="",
        tower_prefix="model.vision_tower.vision_model.",
        projector_prefix="model.mm_projector.",
        tiny=_tiny("llava-phi", TINY_CLIP, rows=320, layers=3, eos_token_id=300),
        published=Sizes(CLIP_L_336, PUBLISHED_PHI, TOKENIZER),
        fused=True,
    ),
    "mipha": Family(
        dtype=torch.bfloat16,
        language_prefix="",
        tower_prefix="model.vision_tower.vision_model.",
        projector_prefix="model.mm_projector.",
        tiny=_tiny("mipha", TINY_SIGLIP, rows=320, layers=2, eos_token_id=296),
        published=Sizes(SIGLIP_SO400M_384, PUBLISHED_PHI, TOKENIZER),
    ),
    "tinyllava": Family(
        dtype=torch.float16,
        language_prefix="language_model.",
        tower_prefix="vision_tower._vision_tower.vision_model.",
        projector_prefix="connector._connector.",
        tiny=_tiny("tinyllava", TINY_SIGLIP, rows=320, layers=3, eos_token_id=292),
        published=Sizes(SIGLIP_SO400M_384, PUBLISHED_PHI, TOKENIZER),
        fast_tokenizer=False,
    ),
    "bunny": Family(
        dtype=torch.float16,
        language_prefix="",
        tower_prefix="model.vision_tower.vision_tower.vision_model.",
        projector_prefix="model.mm_projector.",
        tiny=_tiny("bunny", replace(TINY_SIGLIP, num_layers=4), rows=300, layers=3, eos_token_id=294),
        published=Sizes(SIGLIP_SO400M_384, replace(PUBLISHED_PHI, vocab_size=50295), TOKENIZER),
        head_bias=False,
        blocks_left_out=1,
    ),
}


def sibling_tensors(name: str, scale: str) -> Iterator[Tensor]:
    """Every tensor of a family's model folder."""
    family, sizes = FAMILIES[name], FAMILIES[name].sizes(scale)
    yield from phi_tensors(sizes.phi, family.dtype, family.fused, family.head_bias, family.language_prefix)
    if name == "llava-phi":
        yield from clip_tensors(sizes.tower, family.dtype, family.tower_prefix)
    else:
        blocks = sizes.tower.num_layers - family.blocks_left_out
        head = not family.blocks_left_out
        yield from siglip_tensors(sizes.tower, family.dtype, family.tower_prefix, blocks, head)
    yield from projector_tensors(sizes.tower.hidden_size, sizes.phi.hidden_size, family.dtype, family.projector_prefix)


def tower_tensors(sizes: TowerSizes) -> list[Tensor]:
    """What the folder of Bunny's tower holds, the text half aside."""
    scales = (Tensor(name, (1,), torch.float32) for name in ("logit_scale", "logit_bias"))
    return [*siglip_tensors(sizes, torch.float32, "vision_model."), *scales]


def needs_tower_folder(name: str, scale: str) -> bool:
    """Bunny's own folder does not say how many heads its tower has: a small one has not the published number."""
    return name == "bunny" and scale != "published"


def sibling_bytes(name: str, scale: str) -> int:
    """Bytes of all tensors."""
    tower = tower_tensors(FAMILIES[name].sizes(scale).tower) if needs_tower_folder(name, scale) else []
    return sum(tensor.nbytes for tensor in (*sibling_tensors(name, scale), *tower))


def write_sibling(name: str, scale: str, folder: Path, tokenizer: Path, draw: Draw) -> None:
    """Writes the model's folder, and its tower's where that is needed."""
    family, model = FAMILIES[name], folder / MODEL_FOLDER
    model.mkdir()
    for file in ("config.json", "generation_config.json", "preprocessor_config.json"):
        if (_golden(name) / file).is_file():
            write_json(model / file, sibling_document(name, file, family.sizes(scale)))
    copy_tokenizer(tokenizer, model, [file for file in TOKENIZER_FILES if file != "tokenizer.json"])
    if family.fast_tokenizer:
        fast_tokenizer(tokenizer).save(str(model / "tokenizer.json"))
    write_shards(model, list(sibling_tensors(name, scale)), SHARDS, name, draw)
    if needs_tower_folder(name, scale):
        tower, golden = folder / TOWER_FOLDER, _golden(name).parent / "siglip"
        tower.mkdir()
        for file in ("config.json", "preprocessor_config.json"):
            write_json(tower / file, json.loads((golden / file).read_text(encoding="utf-8")))
        write_safetensors(tower / "model.safetensors", tower_tensors(family.sizes(scale).tower), TOWER_FOLDER, draw)


def sibling_document(name: str, file: str, sizes: Sizes) -> dict[str, Any]:
    """The golden checkpoint's, with other sizes and token ids."""
    document: dict[str, Any] = json.loads((_golden(name) / file).read_text(encoding="utf-8"))
    phi, tower = sizes.phi, sizes.tower
    if file == "preprocessor_config.json":
        side = tower.image_size
        sides = (
            {"size": side, "crop_size": side} if "crop_size" in document else {"size": {"height": side, "width": side}}
        )
        return document | sides
    parts = [document, document["text_config"]] if "text_config" in document else [document]
    for part in parts:
        part.update((key, phi.eos_token_id) for key in TOKEN_IDS if key in part)
    if file == "generation_config.json":
        return document
    for part in parts:
        part.update(hidden_size=phi.hidden_size, vocab_size=phi.vocab_size)
    text = parts[-1]
    text.update(
        intermediate_size=phi.intermediate_size,
        num_attention_heads=phi.num_heads,
        num_hidden_layers=phi.num_layers,
        num_key_value_heads=phi.num_heads,
    )
    vision = document.get("vision_config", {})
    vision.get("vision_tower", vision).update(
        hidden_size=tower.hidden_size,
        image_size=tower.image_size,
        intermediate_size=tower.intermediate_size,
        num_attention_heads=tower.num_heads,
        num_hidden_layers=tower.num_layers,
        patch_size=tower.patch_size,
    )
    if tower.projection_size is not None:
        vision["vision_tower"]["projection_dim"] = tower.projection_size
    if "mm_projector" in vision:
        vision["mm_projector"].update(hidden_size=phi.hidden_size, mm_hidden_size=tower.hidden_size)
    for key in ("mm_hidden_size", "vision_hidden_size"):
        if key in document:
            document[key] = tower.hidden_size
    if name == "tinyllava":
        for key, default in PHI_DEFAULTS.items():
            if text[key] == default:
                del text[key]
    return document


def fast_tokenizer(folder: Path) -> Tokenizer:
    """What transformers would save as tokenizer.json, from the slow tokenizer's files."""
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for _, token in sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0])):
        tokenizer.add_tokens([AddedToken(**token)])
    return tokenizer
