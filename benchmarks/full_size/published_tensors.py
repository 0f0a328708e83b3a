"""Which tensors TinyGPT-V's four files hold: keys, shapes, dtypes, and a scale that keeps depth sane."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from published_phi import PUBLISHED_PHI, PhiSizes, phi_tensors
from random_tensors import Tensor, linear_tensors, norm_tensors, norm_weight, patch_tensor

LORA_ALPHA = 16
LORA_STRENGTH = 0.2
"""Standard deviation of LoRA's (alpha / r) B A relative to that of the matrix it is added to."""
CROSS_ATTENTION_GAIN = 2.0
"""On query and key, so that a query picks some 20 image tokens: a mean over all looks much the same for any picture."""
TESTS = Path(__file__).resolve().parents[2] / "tests"


@dataclass(frozen=True)
class Sizes:
    """What sets the shapes of every tensor in the four files."""

    tokenizer: Path
    """Folder of the tokenizer that fits the vocabulary."""
    image_sizes: dict[int, int]
    """Pixels a side that each stage reads."""
    table_image_size: int
    """Pixels a side that the position table on disk is for."""
    patch_size: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int
    """Blocks in use; the file holds one more."""
    vision_heads: int
    vision_classes: int
    """Rows of the unused classification head."""
    num_query_tokens: int
    qformer_hidden_size: int
    qformer_intermediate_size: int
    qformer_layers: int
    qformer_heads: int
    text_vocab_size: int
    """Rows of the word table in the Q-Former's unused text half."""
    text_positions: int
    t5_size: int
    projection_size: int
    phi: PhiSizes
    lora_rank: int


PUBLISHED = Sizes(
    tokenizer=TESTS / "tokenizer",
    image_sizes={3: 224, 4: 448},
    table_image_size=224,
    patch_size=14,
    vision_hidden_size=1408,
    vision_intermediate_size=6144,
    vision_layers=39,
    vision_heads=16,
    vision_classes=1024,
    num_query_tokens=32,
    qformer_hidden_size=768,
    qformer_intermediate_size=3072,
    qformer_layers=12,
    qformer_heads=12,
    text_vocab_size=30523,
    text_positions=512,
    t5_size=4096,
    projection_size=4096,
    phi=PUBLISHED_PHI,
    lora_rank=64,
)

TINY = Sizes(
    tokenizer=TESTS / "golden" / "stage4" / "phi-2",
    image_sizes={3: 28, 4: 56},
    table_image_size=28,
    patch_size=14,
    vision_hidden_size=96,
    vision_intermediate_size=418,
    vision_layers=3,
    vision_heads=4,
    vision_classes=4,
    num_query_tokens=8,
    qformer_hidden_size=48,
    qformer_intermediate_size=192,
    qformer_layers=4,
    qformer_heads=4,
    text_vocab_size=64,
    text_positions=32,
    t5_size=4,
    projection_size=96,
    phi=PhiSizes(
        vocab_size=320,
        hidden_size=160,
        intermediate_size=320,
        num_layers=3,
        num_heads=4,
        context=256,
        eos_token_id=2,
    ),
    lora_rank=4,
)
"""The sizes of tests/golden/stage4."""

SCALES = {"published": PUBLISHED, "tiny": TINY}


def eva_tensors(sizes: Sizes) -> Iterator[Tensor]:
    """EVA-CLIP ViT with one block, a norm and a head more than are used; matrices fp16, the rest fp32."""
    width, half, single = sizes.vision_hidden_size, torch.float16, torch.float32
    patches = (sizes.table_image_size // sizes.patch_size) ** 2
    yield Tensor("cls_token", (1, 1, width), single)
    yield Tensor("pos_embed", (1, 1 + patches, width), single, std=0.5)
    yield patch_tensor("patch_embed.proj.weight", width, sizes.patch_size, half)
    yield Tensor("patch_embed.proj.bias", (width,), single, std=0.02)
    residual_gain = 1 / math.sqrt(2 * sizes.vision_layers)
    for i in range(sizes.vision_layers + 1):
        block = f"blocks.{i}"
        yield from norm_tensors(f"{block}.norm1", width, single)
        yield Tensor(f"{block}.attn.q_bias", (width,), single, std=0.02)
        yield Tensor(f"{block}.attn.v_bias", (width,), single, std=0.02)
        yield Tensor(f"{block}.attn.qkv.weight", (3 * width, width), half, std=1 / math.sqrt(width))
        yield from linear_tensors(f"{block}.attn.proj", width, width, half, single, residual_gain)
        yield from norm_tensors(f"{block}.norm2", width, single)
        yield from linear_tensors(f"{block}.mlp.fc1", sizes.vision_intermediate_size, width, half, single)
        yield from linear_tensors(
            f"{block}.mlp.fc2", width, sizes.vision_intermediate_size, half, single, residual_gain
        )
    yield from norm_tensors("norm", width, single)
    yield from linear_tensors("head", sizes.vision_classes, width, half, single)


def qformer_tensors(sizes: Sizes, text_half: bool) -> Iterator[Tensor]:
    """The Q-Former, in fp32, with or without the text half that BLIP-2 needs and TinyGPT-V does not."""
    width, inner, single = sizes.qformer_hidden_size, sizes.qformer_intermediate_size, torch.float32
    yield from position_ids(sizes)
    if text_half:
        yield Tensor("Qformer.bert.embeddings.word_embeddings.weight", (sizes.text_vocab_size, width), single)
        yield Tensor("Qformer.bert.embeddings.position_embeddings.weight", (sizes.text_positions, width), single)
    yield from norm_tensors("Qformer.bert.embeddings.LayerNorm", width, single)
    # At full gain the queries, which mix in every layer, would all become the same; what they read keeps its weight.
    residual_gain = 1 / math.sqrt(2 * sizes.qformer_layers)
    for i in range(sizes.qformer_layers):
        layer = f"Qformer.bert.encoder.layer.{i}"
        attentions = [("attention", width, 1.0, residual_gain)]
        if i % 2 == 0:
            attentions.append(("crossattention", sizes.vision_hidden_size, CROSS_ATTENTION_GAIN, 1.0))
        for attention, key_width, gain, output_gain in attentions:
            yield from linear_tensors(f"{layer}.{attention}.self.query", width, width, single, gain=gain)
            yield from linear_tensors(f"{layer}.{attention}.self.key", width, key_width, single, gain=gain)
            yield from linear_tensors(f"{layer}.{attention}.self.value", width, key_width, single)
            yield from linear_tensors(f"{layer}.{attention}.output.dense", width, width, single, gain=output_gain)
            yield from norm_tensors(f"{layer}.{attention}.output.LayerNorm", width, single)
        for half in ("", "_query") if text_half else ("_query",):
            yield from linear_tensors(f"{layer}.intermediate{half}.dense", inner, width, single)
            yield from linear_tensors(f"{layer}.output{half}.dense", width, inner, single, gain=residual_gain)
            yield from norm_tensors(f"{layer}.output{half}.LayerNorm", width, single)
    if text_half:
        yield Tensor("Qformer.cls.predictions.bias", (sizes.text_vocab_size,), single, std=0.02)
        yield from linear_tensors("Qformer.cls.predictions.transform.dense", width, width, single)
        yield from norm_tensors("Qformer.cls.predictions.transform.LayerNorm", width, single)
        yield from linear_tensors("Qformer.cls.predictions.decoder", sizes.text_vocab_size, width, single)


def position_ids(sizes: Sizes) -> Iterator[Tensor]:
    """A buffer, not a parameter, which is why stage files hold it even where the Q-Former was not trained."""
    yield Tensor("Qformer.bert.embeddings.position_ids", (1, sizes.text_positions), torch.int64)


def query_tokens(sizes: Sizes) -> Iterator[Tensor]:
    yield Tensor("query_tokens", (1, sizes.num_query_tokens, sizes.qformer_hidden_size), torch.float32)


def blip2_tensors(sizes: Sizes) -> Iterator[Tensor]:
    yield from qformer_tensors(sizes, text_half=True)
    yield from query_tokens(sizes)
    yield from norm_tensors("ln_vision", sizes.vision_hidden_size, torch.float32)
    yield from linear_tensors("t5_proj", sizes.t5_size, sizes.qformer_hidden_size, torch.float32)


def stage_tensors(sizes: Sizes, stage: int) -> Iterator[Tensor]:
    """What a stage trained, in fp32: LoRA, norms and projections; at stage 4 the Q-Former's query half too."""
    width, rank, single = sizes.phi.hidden_size, sizes.lora_rank, torch.float32
    if stage == 4:
        yield from query_tokens(sizes)
    residual_gain = 1 / math.sqrt(2 * sizes.phi.num_layers)
    lora_gain = LORA_STRENGTH * math.sqrt(rank) / LORA_ALPHA
    for i in range(sizes.phi.num_layers):
        layer = f"llama_model.base_model.model.model.layers.{i}"
        for matrix, rows, gain in (("query_key_value", 3 * width, 1.0), ("dense", width, residual_gain)):
            lora = f"{layer}.self_attn.{matrix}.lora"
            yield Tensor(f"{lora}_A.default.weight", (rank, width), single, std=1 / math.sqrt(width))
            yield Tensor(f"{lora}_B.default.weight", (rows, rank), single, std=lora_gain * gain)
        yield norm_weight(f"{layer}.self_attn.q_layernorm", sizes.phi.head_dim, single)
        yield norm_weight(f"{layer}.self_attn.k_layernorm", sizes.phi.head_dim, single)
        yield norm_weight(f"{layer}.input_layernorm", width, single)
        # It undoes whatever scale dense has, so the residual's gain must be here for the depth to stay sane.
        yield norm_weight(f"{layer}.post_layernorm", width, single, mean=residual_gain)
    yield from qformer_tensors(sizes, text_half=False) if stage == 4 else position_ids(sizes)
    yield from linear_tensors("llama_proj", sizes.projection_size, sizes.qformer_hidden_size, single)
    yield from linear_tensors("llama_proj2", width, sizes.projection_size, single)


def adam_tensors(trained: Sequence[Tensor]) -> Iterator[Tensor]:
    """exp_avg, then the square root of exp_avg_sq, of every trained tensor."""
    for tensor in trained:
        if tensor.dtype.is_floating_point:
            for moment in ("exp_avg", "exp_avg_sq"):
                yield replace(tensor, name=f"{moment} {tensor.name}", std=1e-4, mean=0.0)


def tensor_bytes(sizes: Sizes, stage: int) -> int:
    """Bytes of all tensors in the four files; what holds them adds less than a thousandth."""
    trained = list(stage_tensors(sizes, stage))
    parts = (phi_tensors(sizes.phi), eva_tensors(sizes), blip2_tensors(sizes), trained, adam_tensors(trained))
    return sum(tensor.nbytes for part in parts for tensor in part)
