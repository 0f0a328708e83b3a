"""The four published files of TinyGPT-V as one model."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, ImagePreprocessing
from tinygptv.runtime.errors import ExportError

from ..documents import Config, read_json
from ..parts import clip, eva_clip, phi, qformer
from .families import IMAGE_SIZES, STAGE_TEMPLATES, TINYGPT_V
from .ledger import KeyLedger, Ledgers
from .lora import Lora
from .model import Description, Model, Network
from .opening import open_folder, open_torch
from .readers import Reader
from .torch_files import TorchReader

LANGUAGE_PREFIXES = tuple((f"llama_model.base_model.model.{name}", name) for name in ("model.", "lm_head."))
ADAPTED = (".self_attn.query_key_value", ".self_attn.dense")
TRAINED_NORMS = r".*\.(q_layernorm|k_layernorm|post_layernorm)\.weight"


@dataclass(frozen=True)
class Untold:
    """Sizes that no weight file contains. The defaults are the published model's: ViT-g/14's blocks, and heads."""

    image_size: int
    patch_size: int = 14
    vision_layers: int = 39
    vision_heads: int = 16
    qformer_heads: int = 12


def open_tinygpt_v(
    phi_folder: Path, vision: Path, blip2: Path, checkpoint: Path, stage: int, architecture: Path | None = None
) -> Model:
    """Open the four files.

    Args:
        phi_folder: Phi-2 folder.
        vision: EVA-CLIP file (``eva_vit_g.pth``).
        blip2: BLIP-2 file (``blip2_pretrained_flant5xxl.pth``).
        checkpoint: TinyGPT-V stage file.
        stage: 1 to 4; decides the image size and which file must hold the Q-Former.
        architecture: JSON with what the files don't tell, for other than the published sizes.

    Raises:
        ExportError: A file cannot be read, or a key is missing, unknown or misshapen; names it.
    """
    phi_reader = open_folder(phi_folder, "--phi")
    vision_reader, blip2_reader = open_torch(vision, "--vision"), open_torch(blip2, "--qformer")
    stage_reader = open_torch(checkpoint, "--checkpoint")
    untold = read_untold(architecture, stage)
    _check_stage(stage_reader, stage, untold.image_size)
    networks = _networks(untold, phi_folder, vision_reader, blip2_reader, stage_reader)
    qformer_home = r"Qformer\.|query_tokens$"
    # Trained weights win over those that training began with.
    ledgers = Ledgers(
        [
            KeyLedger(
                stage_reader,
                f"this is not a TinyGPT-V file of stage {stage}, or its download is incomplete",
                LANGUAGE_PREFIXES,
                home=rf"llama_proj|.*\.lora_[AB]\.|{TRAINED_NORMS}" + (f"|{qformer_home}" if stage == 4 else ""),
                spare=r"Qformer\.",
            ),
            KeyLedger(
                phi_reader,
                "--phi is not the Phi-2 folder this model was trained on",
                (),
                home=r"model\.|lm_head\.",
                spare=r"model\.",
            ),
            KeyLedger(
                vision_reader,
                "--vision is not eva_vit_g.pth, or --architecture does not describe it",
                (("", "visual."),),
                home=r"visual\.",
            ),
            KeyLedger(
                blip2_reader,
                "--qformer is not blip2_pretrained_flant5xxl.pth",
                (),
                home=f"ln_vision|{qformer_home}",
                spare=r"Qformer\.|t5_",
            ),
        ],
        Lora(_lora_alpha(stage_reader), lambda name: name.endswith(ADAPTED)),
    )
    described = [("phi", path) for path in sorted(phi_folder.iterdir()) if path.suffix in (".json", ".txt")]
    readers: dict[str, Reader] = {
        "phi": phi_reader,
        "vision": vision_reader,
        "qformer": blip2_reader,
        "checkpoint": stage_reader,
    }
    weights = [(role, file) for role, reader in readers.items() for file in reader.files]
    given = [("architecture", architecture)] if architecture is not None else []
    description = Description(
        family=TINYGPT_V,
        networks=networks,
        image=ImagePreprocessing(untold.image_size, clip.MEAN, clip.STD, resample="bicubic", fit="squash"),
        tokenizer=phi_folder,
        default_template=STAGE_TEMPLATES[stage],
        stage=stage,
    )
    return Model(description, ledgers, list(readers.values()), [*described, *weights, *given])


def read_untold(file: Path | None, stage: int) -> Untold:
    """The published constants of ``stage``, overridden by the architecture JSON."""
    untold = Untold(image_size=IMAGE_SIZES[stage])
    if file is None:
        return untold
    document = read_json(file)
    known = {field.name for field in dataclasses.fields(Untold)}
    if set(document) - known:
        raise ExportError(
            f"{file}: unknown {', '.join(sorted(set(document) - known))}; known are {', '.join(sorted(known))}"
        )
    config = Config(str(file), document)
    return dataclasses.replace(untold, **{name: config.integer(name) for name in document})


def _networks(
    untold: Untold, phi_folder: Path, vision: Reader, blip2: Reader, stage: TorchReader
) -> dict[str, Network]:
    """Combine the sizes from the Phi-2 folder's config.json, the weights' shapes and ``untold``."""
    width, _, patch, _ = _shape(vision, "patch_embed.proj.weight", 4, "--vision is not an EVA-CLIP ViT")
    if patch != untold.patch_size:
        raise ExportError(f"{vision.label}: patches are {patch} px; expected {untold.patch_size} (see --architecture)")
    if untold.image_size % patch:
        raise ExportError(
            f"image size {untold.image_size} is not a multiple of the patch size {patch} (see --architecture)"
        )
    intermediate, _ = _shape(vision, "blocks.0.mlp.fc1.weight", 2, "--vision is not an EVA-CLIP ViT")
    queries = stage if "query_tokens" in stage.shapes else blip2
    _, query_count, query_width = _shape(queries, "query_tokens", 3, "--qformer is not a BLIP-2 file")
    first_mlp = f"{qformer.LAYER}.0.intermediate_query.dense.weight"
    source = stage if first_mlp in stage.shapes else blip2
    query_mlp, _ = _shape(source, first_mlp, 2, "--qformer is not a BLIP-2 file")
    numbered = re.compile(rf"{re.escape(qformer.LAYER)}\.(\d+)\.")
    layers = len({found[1] for key in source.shapes if (found := numbered.match(key))})
    projection, _ = _shape(stage, "llama_proj.weight", 2, "--checkpoint is not a TinyGPT-V stage file")
    for label, size, heads in (
        (vision.label, width, untold.vision_heads),
        (blip2.label, query_width, untold.qformer_heads),
    ):
        if size % heads:
            raise ExportError(f"{label}: width {size} is not divisible by {heads} heads (see --architecture)")
    language = _language(phi_folder / "config.json")
    eyes = eva_clip.Sizes(
        image_size=untold.image_size,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=untold.vision_layers,
        num_attention_heads=untold.vision_heads,
    )
    projector = qformer.Sizes(
        num_query_tokens=query_count,
        hidden_size=query_width,
        intermediate_size=query_mlp,
        num_hidden_layers=layers,
        num_attention_heads=untold.qformer_heads,
        projection_size=projection,
        encoder_tokens=eyes.tokens,
        encoder_hidden_size=width,
        output_size=language.hidden_size,
    )
    return {
        VISION_ENCODER: Network(eva_clip, eyes),
        PROJECTOR: Network(qformer, projector),
        DECODER: Network(phi, language),
    }


def _language(file: Path) -> phi.Sizes:
    config = Config(str(file), read_json(file))
    if config.get("model_type") != "phi":
        raise ExportError(
            f"{file}: model_type is {config.fields.get('model_type')!r}; expected 'phi': is --phi a Phi-2 folder?"
        )
    sizes = phi.sizes_from(config, qk_norm=True, post_norm=True)
    config.finish()
    return sizes


def _shape(reader: Reader, key: str, rank: int, cause: str) -> tuple[int, ...]:
    shape = reader.shapes.get(key)
    if shape is None:
        raise ExportError(f"{reader.label}: no key {key}; likely cause: {cause}")
    if len(shape) != rank:
        raise ExportError(f"{reader.label}: {key} has shape {list(shape)}; expected {rank} dimensions")
    return shape


def _check_stage(reader: TorchReader, stage: int, expected_size: int) -> None:
    """Check content and image size of a stage file, since these two are most often confused."""
    has_qformer = "query_tokens" in reader.shapes
    if stage == 4 and not has_qformer:
        raise ExportError(
            f"{reader.label}: missing query_tokens and Qformer.*, which a stage 4 file holds; "
            "likely cause: this is a file of stage 1, 2 or 3 (see --stage)"
        )
    if stage != 4 and has_qformer:
        raise ExportError(
            f"{reader.label}: unknown query_tokens; only a stage 4 file holds the Q-Former; "
            f"likely cause: this is a stage 4 file, given as stage {stage}"
        )
    model = reader.config.get("model")
    size = model.get("image_size") if isinstance(model, dict) else None
    settings = Config(f"{reader.label}: config.model", model if isinstance(model, dict) else {})
    settings.expect("vit_model", None, "eva_clip_g")
    settings.expect("has_qformer", None, True)
    if size is not None and size != expected_size:
        raise ExportError(
            f"{reader.label}: trained at image_size {size}, but the export is for {expected_size} px; "
            "likely cause: wrong --stage, or a model of other sizes that needs its own --architecture"
        )


def _lora_alpha(reader: TorchReader) -> float:
    """The alpha of LoRA: 16 unless the stage file's ``config.model.lora_alpha`` says otherwise."""
    model = reader.config.get("model")
    alpha = model.get("lora_alpha", 16) if isinstance(model, dict) else 16
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ExportError(f"{reader.label}: config.model.lora_alpha is {alpha!r}; expected a positive number")
    return float(alpha)
