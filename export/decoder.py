"""The decoder's graph: Phi-2 with the authors' norms, inputs_embeds and the KV cache to logits and the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from tinygptv.runtime.architecture import LanguageArchitecture

from .graph import CONTRIB, GraphWriter
from .linear import Linears
from .schemes import SchemeOf

LM_HEAD_PARTS = 4
"""Loading holds the weights of one product twice: by far the largest would set the peak."""


def build_decoder(
    graph: GraphWriter,
    tensors: Mapping[str, torch.Tensor],
    sizes: LanguageArchitecture,
    cache_dtype: str,
    scheme_of: SchemeOf,
    on_layer: Callable[[int, int], object],
) -> None:
    """Write the decoder's nodes; ``on_layer(i, count)`` is called before each layer. Names as in :mod:`.checkpoint`.

    Attention computes in the cache's dtype, ``float16`` or ``float32``; all else is float32.

    A layer computes, with h = input_layernorm(x): x + post_layernorm(attention(h)) + mlp(h). The sum and the next
    layer's norm are one operator.
    """

    def norm_of(name: str) -> tuple[str, torch.Tensor, torch.Tensor, float]:
        return name, tensors[f"{name}.weight"], tensors[f"{name}.bias"], sizes.layer_norm_eps

    linear = Linears(graph, tensors, scheme_of)
    rotary = _rotary_tables(graph, sizes)
    residual, update, hidden = "inputs_embeds", "", ""
    for i in range(sizes.num_hidden_layers):
        on_layer(i, sizes.num_hidden_layers)
        layer = f"model.layers.{i}"
        norm = norm_of(f"{layer}.input_layernorm")
        if i == 0:
            hidden = graph.layer_norm(residual, *norm)
        else:
            hidden, residual = graph.skip_layer_norm(residual, update, *norm)
        attention = linear(
            _attention(
                graph, tensors, sizes, cache_dtype, i, linear.parts(hidden, f"{layer}.self_attn.qkv", 3), rotary
            ),
            f"{layer}.self_attn.dense",
        )
        name = f"{layer}.post_layernorm"
        weight = graph.constant(f"{name}.weight", tensors[f"{name}.weight"])
        attention = graph.op(
            "SimplifiedLayerNormalization", [attention, weight], name=name, axis=-1, epsilon=sizes.post_norm_eps
        )
        inner = graph.op("FastGelu", [linear(hidden, f"{layer}.mlp.fc1")], name=f"{layer}.mlp.gelu", domain=CONTRIB)
        update = graph.op("Add", [attention, linear(inner, f"{layer}.mlp.fc2")], name=f"{layer}.update")
    hidden, _ = graph.skip_layer_norm(residual, update, *norm_of("model.final_layernorm"))
    parts = linear.parts(_last_positions(graph, hidden), "lm_head", LM_HEAD_PARTS)
    graph.op("Concat", parts, name="logits", axis=-1)


def _attention(
    graph: GraphWriter,
    tensors: Mapping[str, torch.Tensor],
    sizes: LanguageArchitecture,
    cache_dtype: str,
    index: int,
    qkv: Sequence[str],
    rotary: tuple[str, str],
) -> str:
    """From q, k and v to the attention's output, [batch, sequence, hidden]; writes the cache."""
    name = f"model.layers.{index}.self_attn"
    query, key, value = qkv
    query, key = (
        _norm_and_rotate(graph, tensors, sizes, part, f"{name}.{norm}", rotary)
        for part, norm in ((query, "q_layernorm"), (key, "k_layernorm"))
    )
    if cache_dtype != "float32":
        query, key, value = (
            graph.cast(part, f"{name}.{letter}_cast", cache_dtype)
            for part, letter in ((query, "q"), (key, "k"), (value, "v"))
        )
    past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
    outputs = graph.op(
        "GroupQueryAttention",
        [query, key, value, *past, "seqlens_k", "total_sequence_length"],
        name=name,
        outputs=3,
        domain=CONTRIB,
        num_heads=sizes.num_attention_heads,
        kv_num_heads=sizes.num_attention_heads,
    )
    for output, part in zip(outputs[1:], ("key", "value"), strict=True):
        graph.rename_output(output, f"present.{index}.{part}")
    return str(outputs[0]) if cache_dtype == "float32" else graph.cast(outputs[0], f"{name}.output", "float32")


def _norm_and_rotate(
    graph: GraphWriter,
    tensors: Mapping[str, torch.Tensor],
    sizes: LanguageArchitecture,
    x: str,
    name: str,
    rotary: tuple[str, str],
) -> str:
    """LayerNorm over each head's dimensions, then rotary position on the leading ones; [batch, sequence, hidden]."""
    heads = graph.constant("heads_shape", [0, 0, sizes.num_attention_heads, sizes.head_dim])
    whole = graph.constant("hidden_shape", [0, 0, sizes.hidden_size])
    x = graph.op("Reshape", [x, heads], name=f"{name}.heads")
    x = graph.layer_norm(x, name, tensors[f"{name}.weight"], tensors[f"{name}.bias"], sizes.layer_norm_eps)
    x = graph.op("Reshape", [x, whole], name=f"{name}.whole")
    return str(
        graph.op(
            "RotaryEmbedding",
            [x, "position_ids", *rotary],
            name=f"{name}.rotary",
            domain=CONTRIB,
            num_heads=sizes.num_attention_heads,
            rotary_embedding_dim=sizes.rotary_dim,
        )
    )


def rotary_angles(sizes: LanguageArchitecture, length: int) -> torch.Tensor:
    """Angles position * theta^(-2j / rotary_dim), float32 [length, rotary_dim / 2] (Su et al. 2021, section 3.2.2)."""
    # In float32 as Phi's published code has it: at position 2000 the last digits of a float64 product differ.
    exponents = torch.arange(0, sizes.rotary_dim, 2, dtype=torch.int64).float() / sizes.rotary_dim
    return torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / (sizes.rope_theta**exponents))


def _rotary_tables(graph: GraphWriter, sizes: LanguageArchitecture) -> tuple[str, str]:
    """Cos and sin [context, rotary_dim / 2]."""
    angles = rotary_angles(sizes, sizes.max_position_embeddings)
    return graph.constant("rotary.cos", angles.cos()), graph.constant("rotary.sin", angles.sin())


def _last_positions(graph: GraphWriter, hidden: str) -> str:
    """The last ``num_logits_to_keep`` positions of [batch, sequence, hidden]; a slice from -0 takes all."""
    axis, end = graph.constant("sequence_axis", [1]), graph.constant("sequence_end", [torch.iinfo(torch.int64).max])
    count = graph.op("Reshape", ["num_logits_to_keep", graph.constant("one_value", [1])], name="kept.count")
    start = graph.op("Neg", [count], name="kept.start")
    return str(graph.op("Slice", [hidden, start, end, axis], name="kept"))
