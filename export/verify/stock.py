"""Each part from ``transformers``' and torch's stock classes, and where its tensors go in them.

Shares no code with the parts' own ``run``: this is what graphs are compared with. ``Blip2VisionModel`` is EVA-CLIP
ViT-g with ``ln_vision`` as its final norm, ``Blip2QFormerModel`` the query half of BLIP-2's Q-Former, and
``PhiForCausalLM`` Phi-2, whose ``dense`` projections end in TinyGPT-V's RMSNorm where the model has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    PhiConfig,
    PhiForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.clip.modeling_clip import CLIPVisionTransformer
from transformers.models.siglip.modeling_siglip import SiglipVisionTransformer

from ..parts import clip, eva_clip, mlp, phi, qformer, siglip

Rules = tuple[tuple[str, str], ...]
"""(pattern of a tensor's name in the part, its name in the module) pairs; the first match is used."""
Rows = Iterator[tuple[str, str]]
"""(a submodule that is loaded as one, the row that ``verify`` shows for its output or an empty text), as they run."""


ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


@dataclass(frozen=True)
class Stock:
    """The stock implementation of one part."""

    build: Callable[[Any], nn.Module]
    rules: Callable[[Any], Rules]
    rows: Callable[[Any], Rows]
    splits_qkv: bool
    """Whether it has separate layers for the fused rows of q, k and v."""


class Tower(nn.Module):
    """A vision model: [batch, 3, size, size] to its last hidden state without the first ``skipped`` tokens."""

    def __init__(self, model: nn.Module, skipped: int) -> None:
        super().__init__()
        self.model = model
        self.skipped = skipped

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute image_features from pixel_values."""
        return self.model(pixel_values).last_hidden_state[:, self.skipped :]


class QFormerProjector(nn.Module):
    """Q-Former and the two projections: [batch, tokens, width] to [batch, queries, hidden]."""

    def __init__(self, sizes: qformer.Sizes) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, sizes.num_query_tokens, sizes.hidden_size).normal_(std=0.02))
        config = Blip2QFormerConfig(
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            encoder_hidden_size=sizes.encoder_hidden_size,
            cross_attention_frequency=sizes.cross_attention_frequency,
            hidden_act="gelu",
            layer_norm_eps=sizes.layer_norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            use_qformer_text_input=False,
        )
        self.qformer = Blip2QFormerModel(config)
        self.llama_proj = nn.Linear(sizes.hidden_size, sizes.projection_size)
        self.llama_proj2 = nn.Linear(sizes.projection_size, sizes.output_size)

    def forward(self, image_features: Tensor) -> Tensor:
        """Compute image_embeds from image_features."""
        queries = self.query_tokens.expand(image_features.shape[0], -1, -1)
        seen = self.qformer(query_embeds=queries, encoder_hidden_states=image_features).last_hidden_state
        return self.llama_proj2(self.llama_proj(seen))


def _eva_clip(sizes: eva_clip.Sizes) -> nn.Module:
    config = Blip2VisionConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_act="gelu",
        layer_norm_eps=sizes.layer_norm_eps,
        qkv_bias=True,
    )
    model = Blip2VisionModel(config)
    model.post_layernorm.eps = sizes.output_norm_eps
    return Tower(model, 0)


def _clip(sizes: clip.Sizes) -> nn.Module:
    model = CLIPVisionTransformer(CLIPVisionConfig(**_tower(sizes)))
    return _tower_of(model, sizes)


def _siglip(sizes: siglip.Sizes) -> nn.Module:
    config = SiglipVisionConfig(**_tower(sizes), vision_use_head=False)
    model = SiglipVisionTransformer(config)
    return _tower_of(model, sizes)


def _tower_of(model: nn.Module, sizes: clip.Sizes | siglip.Sizes) -> nn.Module:
    model.post_layernorm = nn.Identity()
    embeddings: Any = model.embeddings
    # Computed, not read from files: needed where a model without weights is made on the meta device, too.
    embeddings.position_ids = torch.arange(sizes.sequence, device="cpu")[None]
    return Tower(model, 0 if sizes.keep_first else 1)


def _tower(sizes: clip.Sizes | siglip.Sizes) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    fields: dict[str, Any] = {name: getattr(sizes, name) for name in (*names, "layer_norm_eps")}
    return fields | {"hidden_act": ACTIVATIONS[sizes.hidden_act], "attn_implementation": "sdpa"}


def _mlp(sizes: mlp.Sizes) -> nn.Module:
    modules: list[nn.Module] = [nn.Linear(sizes.input_size, sizes.hidden_size)]
    for _ in range(1, sizes.num_hidden_layers):
        modules += [nn.GELU(), nn.Linear(sizes.hidden_size, sizes.hidden_size)]
    return nn.Sequential(*modules)


def _phi(sizes: phi.Sizes) -> nn.Module:
    config = PhiConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        max_position_embeddings=sizes.max_position_embeddings,
        # transformers truncates head_dim * factor to an integer: the half keeps rounding errors off it.
        partial_rotary_factor=(sizes.rotary_dim + 0.5) / sizes.head_dim,
        rope_theta=sizes.rope_theta,
        layer_norm_eps=sizes.layer_norm_eps,
        hidden_act="gelu_new",
        qk_layernorm=sizes.qk_norm,
        attn_implementation="sdpa",
    )
    model = PhiForCausalLM(config)
    if not sizes.head_bias:
        model.lm_head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)
    if sizes.post_norm:
        for layer in model.model.layers:
            dense = nn.Sequential()
            dense.add_module("linear", layer.self_attn.dense)
            dense.add_module("post_layernorm", nn.RMSNorm(sizes.hidden_size, eps=sizes.post_norm_eps))
            layer.self_attn.dense = dense
    return model


_EVA_RULES: Rules = (
    (r"visual\.cls_token", "model.embeddings.class_embedding"),
    (r"visual\.pos_embed", "model.embeddings.position_embedding"),
    (r"visual\.patch_embed\.proj\.(.+)", r"model.embeddings.patch_embedding.\1"),
    (r"visual\.blocks\.(\d+)\.norm([12])\.(.+)", r"model.encoder.layers.\1.layer_norm\2.\3"),
    (r"visual\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"model.encoder.layers.\1.self_attn.qkv.\2"),
    (r"visual\.blocks\.(\d+)\.attn\.proj\.(.+)", r"model.encoder.layers.\1.self_attn.projection.\2"),
    (r"visual\.blocks\.(\d+)\.mlp\.(.+)", r"model.encoder.layers.\1.mlp.\2"),
    (r"ln_vision\.(.+)", r"model.post_layernorm.\1"),
)
_TOWER_RULES: Rules = (
    (r"visual\.pos_embed", "model.embeddings.position_embedding.weight"),
    (r"visual\.pre_norm\.(.+)", r"model.pre_layrnorm.\1"),
    (r"visual\.blocks\.(\d+)\.attn\.proj\.(.+)", r"model.encoder.layers.\1.self_attn.out_proj.\2"),
    *_EVA_RULES,
)
_QFORMER_RULES: Rules = (
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)", r"qformer.layernorm.\1"),
    (r"Qformer\.bert\.encoder\.layer\.(\d+)\.(\w+)\.self\.(.+)", r"qformer.encoder.layer.\1.\2.attention.\3"),
    (r"Qformer\.bert\.encoder\.(.+)", r"qformer.encoder.\1"),
)
_PHI_RULES: Rules = (
    (r"model\.layers\.(\d+)\.post_layernorm\.(.+)", r"model.layers.\1.self_attn.dense.post_layernorm.\2"),
    (r"model\.layers\.(\d+)\.self_attn\.dense\.(.+)", r"model.layers.\1.self_attn.dense.linear.\2"),
)


def _tower_rows(sizes: Any) -> Rows:
    yield "model.embeddings", "" if isinstance(sizes, clip.Sizes) else "embeddings"
    if isinstance(sizes, clip.Sizes):
        yield "model.pre_layrnorm", "embeddings"
    for i in range(sizes.num_hidden_layers):
        yield f"model.encoder.layers.{i}", f"block {i}"
    if isinstance(sizes, eva_clip.Sizes):
        yield "model.post_layernorm", ""
    yield "", "image_features"


def _qformer_rows(sizes: qformer.Sizes) -> Rows:
    yield "qformer.layernorm", ""
    for i in range(sizes.num_hidden_layers):
        yield f"qformer.encoder.layer.{i}", f"layer {i}"
    yield "llama_proj", ""
    yield "llama_proj2", ""
    yield "", "image_embeds"


def _mlp_rows(sizes: mlp.Sizes) -> Rows:
    for i in range(sizes.num_hidden_layers):
        yield f"{2 * i}", f"layer {i}" if i + 1 < sizes.num_hidden_layers else ""
    yield "", "image_embeds"


def _phi_rows(sizes: phi.Sizes) -> Rows:
    yield "model.embed_tokens", ""
    for i in range(sizes.num_hidden_layers):
        yield f"model.layers.{i}", f"layer {i}"
    yield "model.final_layernorm", ""
    yield "lm_head", "logits"


def _mlp_rules(sizes: mlp.Sizes) -> Rules:
    return tuple((rf"projector\.{i}\.(.+)", rf"{2 * i}.\1") for i in range(sizes.num_hidden_layers))


STOCK = {
    "eva_clip": Stock(_eva_clip, lambda sizes: _EVA_RULES, _tower_rows, splits_qkv=False),
    "clip": Stock(_clip, lambda sizes: _TOWER_RULES, _tower_rows, splits_qkv=True),
    "siglip": Stock(_siglip, lambda sizes: _TOWER_RULES, _tower_rows, splits_qkv=True),
    "qformer": Stock(QFormerProjector, lambda sizes: _QFORMER_RULES, _qformer_rows, splits_qkv=False),
    "mlp": Stock(_mlp, _mlp_rules, _mlp_rows, splits_qkv=False),
    "phi": Stock(_phi, lambda sizes: _PHI_RULES if sizes.post_norm else (), _phi_rows, splits_qkv=True),
}
"""Stock implementations by the name of the part."""
