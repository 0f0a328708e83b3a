"""TinyGPT-V in torch, from ``transformers``' stock classes: the implementation that exported graphs are compared with.

It shares no code with the graph builders. ``Blip2VisionModel`` is EVA-CLIP ViT-g with ``ln_vision`` as its final norm,
``Blip2QFormerModel`` the query half of BLIP-2's Q-Former, and ``PhiForCausalLM`` Phi-2, whose ``dense`` projections
here end in TinyGPT-V's RMSNorm.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from tinygptv.runtime.architecture import Architecture, LanguageArchitecture, QFormerArchitecture, VisionArchitecture
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PhiConfig,
    PhiForCausalLM,
)


class TinyGPTVReference(nn.Module):
    """The whole model. It is built with random weights: ``load_merged`` puts a checkpoint's into it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        qformer = architecture.qformer
        hidden_size = architecture.language.hidden_size
        self.vision = _vision_model(architecture.vision)
        self.query_tokens = nn.Parameter(
            torch.empty(1, qformer.num_query_tokens, qformer.hidden_size).normal_(std=0.02)
        )
        self.qformer = Blip2QFormerModel(_qformer_config(qformer, architecture.vision.hidden_size))
        self.llama_proj = nn.Linear(qformer.hidden_size, qformer.projection_size)
        self.llama_proj2 = nn.Linear(qformer.projection_size, hidden_size)
        self.language = _language_model(architecture.language)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Encodes pictures: [batch, 3, size, size] -> [batch, tokens, vision width], after ``ln_vision``."""
        return self.vision(pixel_values).last_hidden_state

    def qformer_output(self, image_features: Tensor) -> Tensor:
        """Lets the queries read a picture: [batch, tokens, vision width] -> [batch, queries, Q-Former width]."""
        queries = self.query_tokens.expand(image_features.shape[0], -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=image_features).last_hidden_state

    def image_embeds(self, image_features: Tensor) -> Tensor:
        """Turns vision tokens into the language model's: [batch, tokens, vision width] -> [batch, queries, hidden]."""
        return self.llama_proj2(self.llama_proj(self.qformer_output(image_features)))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Looks token ids up: [batch, sequence] -> [batch, sequence, hidden]."""
        return self.language.model.embed_tokens(input_ids)

    def hidden_states(self, inputs_embeds: Tensor) -> Tensor:
        """Runs Phi-2 up to its final norm, causally, without padding: [batch, sequence, hidden], as given."""
        return self.language.model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state

    def logits(self, inputs_embeds: Tensor) -> Tensor:
        """Gives the next token's logits after each position: [batch, sequence, hidden] -> [batch, sequence, vocab]."""
        return self.language.lm_head(self.hidden_states(inputs_embeds))

    @torch.no_grad()
    def generate_ids(
        self, inputs_embeds: Tensor, max_new_tokens: int, stop_token_ids: Collection[int] = ()
    ) -> list[list[int]]:
        """Continues prompts of one length greedily, with a KV cache.

        Args:
            inputs_embeds: The prompts, [batch, sequence, hidden], without padding.
            max_new_tokens: The most tokens to add to each.
            stop_token_ids: A row ends with the first of these, which it keeps.

        Returns:
            The new token ids of each row.
        """
        rows: list[list[int]] = [[] for _ in range(inputs_embeds.shape[0])]
        running = set(range(len(rows)))
        cache = None
        for _ in range(max_new_tokens):
            output = self.language(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token_ids = output.logits[:, -1].argmax(dim=-1)  # [batch]
            for row in sorted(running):
                rows[row].append(int(token_ids[row]))
                if rows[row][-1] in stop_token_ids:
                    running.remove(row)
            if not running:
                break
            inputs_embeds = self.embed(token_ids[:, None])
        return rows


def load_merged(model: TinyGPTVReference, tensors: Mapping[str, Tensor]) -> None:
    """Puts a checkpoint's merged weights into the model.

    Args:
        model: The model, changed in place.
        tensors: Every weight under its published name, LoRA merged and the position table resized. The vision tower's
            start with ``visual.``, the fused rows of ``self_attn.qkv`` are q, then k, then v.

    Raises:
        RuntimeError: A weight is missing, unknown or of the wrong shape; the message names each.
    """
    state: dict[str, Tensor] = {}
    for published, tensor in tensors.items():
        state |= module_tensors(published, tensor)
    model.load_state_dict(state, strict=True)


def module_tensors(published: str, tensor: Tensor) -> dict[str, Tensor]:
    """Gives a weight under its name in the model, or the three that fused rows become.

    Args:
        published: The weight's name, as ``load_merged`` expects it.
        tensor: The weight.
    """
    name = module_name(published)
    if not (fused := _FUSED_LANGUAGE.fullmatch(name)):
        return {name: tensor}
    before, after = fused.groups()
    return {f"{before}{part}_proj{after}": rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}


def module_name(published: str) -> str:
    """Gives a weight's name in the model; for fused rows, one beside those of the three that they become."""
    return _renamed(published, _MODULE_NAMES)


def merged_tensors(model: TinyGPTVReference) -> dict[str, Tensor]:
    """Gives the model's weights under their published names: the inverse of ``load_merged``."""
    tensors: dict[str, Tensor] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if parts := _SPLIT_LANGUAGE.fullmatch(name):
            before, part, after = parts.groups()
            if part == "q":
                fused = torch.cat([state[f"{before}{row}_proj{after}"] for row in "qkv"])
                tensors[_renamed(f"{before}qkv{after}", _PUBLISHED_NAMES)] = fused
        else:
            tensors[_renamed(name, _PUBLISHED_NAMES)] = tensor
    return tensors


_FUSED_LANGUAGE = re.compile(r"(language\..*\.self_attn\.)qkv(\..*)")
_SPLIT_LANGUAGE = re.compile(r"(language\..*\.self_attn\.)([qkv])_proj(\..*)")

# A name takes the first rule that fits it.
_MODULE_NAMES = (
    (r"^visual\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^visual\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^visual\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^visual\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^visual\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^visual\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^visual\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "vision.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.encoder\.layer\.(\d+)\.(\w+)\.self\.", r"qformer.encoder.layer.\1.\2.attention."),
    (r"^Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"^model\.layers\.(\d+)\.post_layernorm\.", r"language.model.layers.\1.self_attn.dense.post_layernorm."),
    (r"^model\.layers\.(\d+)\.self_attn\.dense\.", r"language.model.layers.\1.self_attn.dense.linear."),
    (r"^model\.", "language.model."),
    (r"^lm_head\.", "language.lm_head."),
)
_PUBLISHED_NAMES = (
    (r"^vision\.embeddings\.class_embedding$", "visual.cls_token"),
    (r"^vision\.embeddings\.position_embedding$", "visual.pos_embed"),
    (r"^vision\.embeddings\.patch_embedding\.", "visual.patch_embed.proj."),
    (r"^vision\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual.blocks.\1.norm\2."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual.blocks.\1.attn.qkv."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual.blocks.\1.attn.proj."),
    (r"^vision\.encoder\.layers\.(\d+)\.mlp\.", r"visual.blocks.\1.mlp."),
    (r"^vision\.post_layernorm\.", "ln_vision."),
    (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^qformer\.encoder\.layer\.(\d+)\.(\w+)\.attention\.", r"Qformer.bert.encoder.layer.\1.\2.self."),
    (r"^qformer\.encoder\.", "Qformer.bert.encoder."),
    (r"^language\.model\.layers\.(\d+)\.self_attn\.dense\.post_layernorm\.", r"model.layers.\1.post_layernorm."),
    (r"^language\.model\.layers\.(\d+)\.self_attn\.dense\.linear\.", r"model.layers.\1.self_attn.dense."),
    (r"^language\.", ""),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _vision_model(architecture: VisionArchitecture) -> Blip2VisionModel:
    config = Blip2VisionConfig(
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        image_size=architecture.image_size,
        patch_size=architecture.patch_size,
        hidden_act="gelu",
        layer_norm_eps=architecture.layer_norm_eps,
        qkv_bias=True,
    )
    model = Blip2VisionModel(config)
    model.post_layernorm.eps = architecture.output_norm_eps
    return model


def _qformer_config(architecture: QFormerArchitecture, vision_hidden_size: int) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        encoder_hidden_size=vision_hidden_size,
        cross_attention_frequency=architecture.cross_attention_frequency,
        hidden_act="gelu",
        layer_norm_eps=architecture.layer_norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_qformer_text_input=False,
    )


def _language_model(architecture: LanguageArchitecture) -> PhiForCausalLM:
    config = PhiConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        max_position_embeddings=architecture.max_position_embeddings,
        # transformers truncates head_dim * factor to an integer: the half keeps rounding errors off it.
        partial_rotary_factor=(architecture.rotary_dim + 0.5) / architecture.head_dim,
        rope_theta=architecture.rope_theta,
        layer_norm_eps=architecture.layer_norm_eps,
        hidden_act="gelu_new",
        qk_layernorm=True,
        attn_implementation="sdpa",
    )
    model = PhiForCausalLM(config)
    for layer in model.model.layers:
        dense = nn.Sequential()
        dense.add_module("linear", layer.self_attn.dense)
        dense.add_module("post_layernorm", nn.RMSNorm(architecture.hidden_size, eps=architecture.post_norm_eps))
        layer.self_attn.dense = dense
    return model
