"""Phi-2, optionally with TinyGPT-V's norms: from inputs_embeds and the KV cache to logits and the new cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tinygptv.runtime.errors import ExportError
from torch import Tensor

from ..documents import Config
from ..ops import Ops, Rotary, T
from . import Read, Shape, Weights

LM_HEAD_PARTS = 4
"""Number of parts of the last product: loading holds a product's weights twice, and this one would set the peak."""
EXACT: frozenset[str] = frozenset()
DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}
"""Defaults of PhiConfig (transformers), for fields that files leave out."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; field names are those of ``transformers``' PhiConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    """Context length, in tokens (image tokens count)."""
    rotary_dim: int
    """Number of leading dimensions of each head that are rotated (32 of 80 as published)."""
    rope_theta: float
    layer_norm_eps: float = 1e-5
    qk_norm: bool = False
    """Whether there are LayerNorms over each head of q and k."""
    post_norm: bool = False
    """Whether there is an RMSNorm after the attention's output projection."""
    post_norm_eps: float = 1e-6
    head_bias: bool = True
    stored_vocab_size: int | None = None
    """Number of rows in the files if it exceeds the vocabulary: the last ones belong to no token, and are dropped."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def sizes_from(config: Config, **changes: Any) -> Sizes:
    """The language model's sizes, with the family's changes.

    Raises:
        ExportError: A field is missing or out of range, or asks for what Phi-2 does not have.
    """
    rotary = _rotary(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config.expect("num_key_value_heads", None, heads)
    config.expect("hidden_act", "gelu_new")
    config.expect("tie_word_embeddings", None, False)
    # A stage file brings these norms, whatever the field of the model that it was trained from says.
    config.expect("qk_layernorm", None, False, *([True] if changes.get("qk_norm") else []))
    if hidden % heads:
        raise ExportError(f"{config.label}: width {hidden} is not divisible by {heads} heads")
    config.expect("head_dim", None, hidden // heads)
    rotary_dim = math.floor(hidden // heads * rotary.number("partial_rotary_factor"))
    if not 0 < rotary_dim <= hidden // heads or rotary_dim % 2:
        raise ExportError(
            f"{config.label}: partial_rotary_factor is for {rotary_dim} of a head's {hidden // heads} dimensions; "
            "expected an even number of them"
        )
    sizes: dict[str, Any] = {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config.integer("intermediate_size"),
        "num_hidden_layers": config.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "max_position_embeddings": config.integer("max_position_embeddings"),
        "rotary_dim": rotary_dim,
        "rope_theta": rotary.number("rope_theta"),
        "layer_norm_eps": config.number("layer_norm_eps"),
    }
    return Sizes(**sizes | changes)


def _rotary(config: Config) -> Config:
    """The rotary settings, from separate fields, or from one object as in transformers 5.

    Raises:
        ExportError: They scale the rotation (linear, dynamic, yarn, longrope ...), or contradict each other.
    """
    names = ("rope_theta", "partial_rotary_factor")
    found = {name: config.get(name) for name in names}
    said = {name for name in names if config.given.get(name) is not None}
    for place in ("rope_parameters", "rope_scaling"):
        if config.get(place) is None:
            continue
        settings = config.part(place)
        for name in ("rope_type", "type"):
            settings.expect(name, None, "default")
        settings.expect("factor", None, 1, 1.0)
        for name in names:
            value = settings.get(name)
            if value is None:
                continue
            if name in said and value != found[name]:
                raise ExportError(
                    f"{settings.label}: {name} is {value!r}, but {found[name]!r} outside of it; expected the same"
                )
            found[name] = value
            said.add(name)
        settings.finish()
    return Config(config.label, found)


def tensors(sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every tensor, the embedding table first; q, k and v are one matrix with rows in that order."""
    hidden, mlp, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (sizes.vocab_size, hidden)}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for i in range(sizes.num_hidden_layers):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm", hidden)
        linear(f"{layer}.self_attn.qkv", 3 * hidden, hidden)
        linear(f"{layer}.self_attn.dense", hidden, hidden)
        if sizes.qk_norm:
            norm(f"{layer}.self_attn.q_layernorm", head)
            norm(f"{layer}.self_attn.k_layernorm", head)
        if sizes.post_norm:
            shapes[f"{layer}.post_layernorm.weight"] = (hidden,)
        linear(f"{layer}.mlp.fc1", mlp, hidden)
        linear(f"{layer}.mlp.fc2", hidden, mlp)
    norm("model.final_layernorm", hidden)
    linear("lm_head", sizes.vocab_size, hidden)
    if not sizes.head_bias:
        del shapes["lm_head.bias"]
    return shapes


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """Readers for fused (``query_key_value``, rows (head, q/k/v, head_dim)) or separate q, k and v.

    The bias of a q or k norm is 0 where no layer of any file has one.
    """
    heads = sizes.num_attention_heads
    reads: dict[str, Read] = {}
    for name, shape in tensors(sizes).items():
        if ".self_attn.qkv." in name:
            reads[name] = _read_qkv(weights, name, shape, heads)
        elif name.endswith(("q_layernorm.bias", "k_layernorm.bias")) and not weights.has_in_some_layer(name):
            reads[name] = partial(torch.zeros, shape)
        elif name.startswith(("model.embed_tokens.", "lm_head.")):
            whole = weights.take(name, (sizes.stored_vocab_size or shape[0], *shape[1:]))
            reads[name] = partial(_first_rows, whole, shape[0])
        else:
            reads[name] = weights.take(name, shape)
    return reads


def unused(sizes: Sizes) -> Iterable[str]:
    """Patterns of rotary frequencies, which follow from the sizes, and of a head's bias if the model has none."""
    yield r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    if not sizes.head_bias:
        yield r"lm_head\.bias"


def example_input(sizes: Sizes) -> Shape:
    """Shape of inputs_embeds."""
    return 1, 2, sizes.hidden_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute logits [batch, kept, vocabulary] from inputs_embeds [batch, sequence, hidden].

    A layer computes, with h = input_layernorm(x): x + post_layernorm(attention(h)) + mlp(h).
    """
    heads, epsilon, count = sizes.num_attention_heads, sizes.layer_norm_eps, sizes.num_hidden_layers
    rotary = Rotary(sizes.rotary_dim, sizes.rope_theta, sizes.max_position_embeddings)
    normed = ops.layer_norm(x, "model.layers.0.input_layernorm", epsilon)
    for i in ops.layers(count):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        q, k, v = ops.split_linear(normed, f"{attention}.qkv", 3)
        if sizes.qk_norm:
            q, k = (
                ops.head_norm(part, f"{attention}.{norm}", heads, epsilon)
                for part, norm in ((q, "q_layernorm"), (k, "k_layernorm"))
            )
        q, k = (ops.rotate(part, f"{attention}.{name}_rotated", heads, rotary) for part, name in ((q, "q"), (k, "k")))
        mixed = ops.linear(ops.causal_attention(q, k, v, i, attention, heads), f"{attention}.dense")
        if sizes.post_norm:
            mixed = ops.rms_norm(mixed, f"{layer}.post_layernorm", sizes.post_norm_eps)
        inner = ops.activation(ops.linear(normed, f"{layer}.mlp.fc1"), "tanh", f"{layer}.mlp.gelu")
        update = ops.add(mixed, ops.linear(inner, f"{layer}.mlp.fc2"), f"{layer}.update")
        following = f"model.layers.{i + 1}.input_layernorm" if i + 1 < count else "model.final_layernorm"
        x, normed = ops.add_norm(x, update, following, epsilon)
        ops.tap(f"layer {i}", x)
    return ops.wide_linear(ops.last_positions(normed), "lm_head", LM_HEAD_PARTS)


def _first_rows(whole: Read, count: int) -> Tensor:
    return whole()[:count]


def _read_qkv(weights: Weights, name: str, shape: Shape, heads: int) -> Read:
    attention, kind = name.split(".qkv.")
    fused = f"{attention}.query_key_value"
    if weights.has(f"{fused}.weight") or weights.has(f"{fused}.bias"):
        whole = weights.take(f"{fused}.{kind}", shape)
    else:
        third = (shape[0] // 3, *shape[1:])
        parts = [weights.take(f"{attention}.{part}_proj.{kind}", third) for part in "qkv"]
        whole = lambda: torch.stack([part().unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)  # noqa: E731
        if kind == "weight":
            whole = weights.merged(whole, fused, shape)
    return lambda: _part_major(whole(), heads)


def _part_major(fused: Tensor, heads: int) -> Tensor:
    """Rows (head, q/k/v, head_dim) reordered to all of q, then k, then v."""
    return fused.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
