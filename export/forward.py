"""The model in plain torch, one layer's weights at a time: what calibration watches.

Names of tensors and of linear layers are those of :mod:`.checkpoint` and of the graph builders. A caller learns of the
input of every linear layer through ``observe(name, x)``, x float32 [rows, columns], in the order of computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tinygptv.runtime.architecture import LanguageArchitecture, QFormerArchitecture, VisionArchitecture
from torch import Tensor
from torch.nn import functional

from .architecture import QFORMER_LAYER
from .decoder import rotary_angles

Observe = Callable[[str, Tensor], object]


@torch.inference_mode()
def vision_features(
    tensors: Mapping[str, Tensor], sizes: VisionArchitecture, pixel_values: Tensor, observe: Observe
) -> Tensor:
    """Encode pictures: float32 [batch, 3, size, size] to image_features [batch, tokens, width]."""

    def linear(x: Tensor, name: str) -> Tensor:
        observe(name, x.flatten(0, -2))
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    name = "visual.patch_embed.proj"
    patches = functional.conv2d(
        pixel_values, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=sizes.patch_size
    )
    tokens = tensors["visual.cls_token"].expand(len(pixel_values), -1, -1)
    x = torch.cat((tokens, patches.flatten(2).transpose(1, 2)), dim=1) + tensors["visual.pos_embed"]
    for i in range(sizes.num_hidden_layers):
        block = f"visual.blocks.{i}"
        h = _layer_norm(x, tensors, f"{block}.norm1", sizes.layer_norm_eps)
        query, key, value = _heads(linear(h, f"{block}.attn.qkv"), 3 * sizes.num_attention_heads).chunk(3, dim=1)
        attention = functional.scaled_dot_product_attention(query, key, value)
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        h = _layer_norm(x, tensors, f"{block}.norm2", sizes.layer_norm_eps)
        x = x + linear(functional.gelu(linear(h, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return _layer_norm(x, tensors, "ln_vision", sizes.output_norm_eps)


@torch.inference_mode()
def image_embeds(tensors: Mapping[str, Tensor], sizes: QFormerArchitecture, image_features: Tensor) -> Tensor:
    """Let the queries read pictures: [batch, tokens, vision width] to [batch, queries, hidden]."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def attend(x: Tensor, name: str, context: Tensor) -> Tensor:
        query, key, value = (
            _heads(linear(source, f"{name}.self.{part}"), sizes.num_attention_heads)
            for source, part in ((x, "query"), (context, "key"), (context, "value"))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        mixed = linear(mixed, f"{name}.output.dense")
        return _layer_norm(x + mixed, tensors, f"{name}.output.LayerNorm", sizes.layer_norm_eps)

    queries = tensors["query_tokens"].expand(len(image_features), -1, -1)
    x = _layer_norm(queries, tensors, "Qformer.bert.embeddings.LayerNorm", sizes.layer_norm_eps)
    for i in range(sizes.num_hidden_layers):
        layer = f"{QFORMER_LAYER}{i}"
        x = attend(x, f"{layer}.attention", x)
        if i % sizes.cross_attention_frequency == 0:
            x = attend(x, f"{layer}.crossattention", image_features)
        inner = linear(functional.gelu(linear(x, f"{layer}.intermediate_query.dense")), f"{layer}.output_query.dense")
        x = _layer_norm(x + inner, tensors, f"{layer}.output_query.LayerNorm", sizes.layer_norm_eps)
    return linear(linear(x, "llama_proj"), "llama_proj2")


@torch.inference_mode()
def decoder_hidden_states(
    tensors: Mapping[str, Tensor], sizes: LanguageArchitecture, inputs_embeds: Tensor, observe: Observe
) -> Tensor:
    """Run Phi-2 over prompts of one length: float32 [batch, sequence, hidden], to after the final norm."""
    heads, half = sizes.num_attention_heads, sizes.rotary_dim // 2
    angles = rotary_angles(sizes, inputs_embeds.shape[1])
    cos, sin = angles.cos(), angles.sin()

    def linear(x: Tensor, name: str) -> Tensor:
        observe(name, x.flatten(0, -2))
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def rotated(x: Tensor) -> Tensor:
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    x = inputs_embeds
    for i in range(sizes.num_hidden_layers):
        layer = f"model.layers.{i}"
        attention = f"{layer}.self_attn"
        h = _layer_norm(x, tensors, f"{layer}.input_layernorm", sizes.layer_norm_eps)
        query, key, value = _heads(linear(h, f"{attention}.qkv"), 3 * heads).chunk(3, dim=1)
        query, key = (
            rotated(_layer_norm(part, tensors, f"{attention}.{norm}", sizes.layer_norm_eps))
            for part, norm in ((query, "q_layernorm"), (key, "k_layernorm"))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = linear(mixed.transpose(1, 2).flatten(2), f"{attention}.dense")
        weight = tensors[f"{layer}.post_layernorm.weight"]
        mixed = functional.rms_norm(mixed, weight.shape, weight, sizes.post_norm_eps)
        inner = functional.gelu(linear(h, f"{layer}.mlp.fc1"), approximate="tanh")
        x = x + mixed + linear(inner, f"{layer}.mlp.fc2")
    x = _layer_norm(x, tensors, "model.final_layernorm", sizes.layer_norm_eps)
    observe("lm_head", x.flatten(0, -2))
    return x


def _layer_norm(x: Tensor, tensors: Mapping[str, Tensor], name: str, epsilon: float) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return functional.layer_norm(x, weight.shape, weight, tensors[f"{name}.bias"], epsilon)


def _heads(x: Tensor, count: int) -> Tensor:
    """[batch, sequence, count * head_dim] to [batch, count, sequence, head_dim]."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)
