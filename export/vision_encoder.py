"""The vision encoder's graph: EVA-CLIP ViT and ln_vision, pixel_values to image_features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tinygptv.runtime.architecture import VisionArchitecture

from .graph import CONTRIB, GraphWriter
from .linear import Linears
from .schemes import SchemeOf

LARGEST_CHUNK, SMALLEST_CHUNK = 256, 64
"""Of an MLP, in tokens. More: what it keeps between its layers leaves the cache; fewer: the products get slower.
The published 448 px give 1025 tokens, five chunks of 205: less time, and half the memory, than all at once."""


def build_vision_encoder(
    graph: GraphWriter,
    tensors: Mapping[str, torch.Tensor],
    sizes: VisionArchitecture,
    scheme_of: SchemeOf,
    on_layer: Callable[[int, int], object],
) -> None:
    """Write the ViT's nodes; ``on_layer(i, count)`` is called before each block. Names as in :mod:`.checkpoint`."""
    linear = Linears(graph, tensors, scheme_of)
    tokens, width = sizes.num_tokens, sizes.hidden_size
    chunk = chunk_size(tokens)
    hidden = _patches(graph, tensors, sizes)
    norm, total = "", hidden
    for i in range(sizes.num_hidden_layers):
        on_layer(i, sizes.num_hidden_layers)
        block = f"visual.blocks.{i}"

        def parameters(name: str, block: str = block) -> tuple[str, torch.Tensor, torch.Tensor, float]:
            name = f"{block}.{name}"
            return name, tensors[f"{name}.weight"], tensors[f"{name}.bias"], sizes.layer_norm_eps

        if i == 0:
            norm = graph.layer_norm(hidden, *parameters("norm1"))
        else:
            norm, total = graph.sum_and_layer_norm(total, hidden, *parameters("norm1"))
        attention = graph.op(
            "MultiHeadAttention",
            linear.parts(norm, f"{block}.attn.qkv", 3),
            name=f"{block}.attn",
            domain=CONTRIB,
            num_heads=sizes.num_attention_heads,
        )
        norm, total = graph.sum_and_layer_norm(total, linear(attention, f"{block}.attn.proj"), *parameters("norm2"))

        def mlp(x: str, block: str = block) -> str:
            inner = graph.op("Gelu", [linear(x, f"{block}.mlp.fc1")], name=f"{block}.mlp.gelu", domain=CONTRIB)
            return linear(inner, f"{block}.mlp.fc2")

        hidden = mlp(norm) if chunk == tokens else graph.by_chunks(norm, f"{block}.mlp", (tokens, width), chunk, mlp)
    weight, bias = tensors["ln_vision.weight"], tensors["ln_vision.bias"]
    graph.sum_and_layer_norm(total, hidden, "image_features", weight, bias, sizes.output_norm_eps)


def chunk_size(tokens: int) -> int:
    """How many tokens go through an MLP at a time: a divisor of all, or all of them where no divisor is of use."""
    return next((size for size in range(LARGEST_CHUNK, SMALLEST_CHUNK - 1, -1) if tokens % size == 0), tokens)


def _patches(graph: GraphWriter, tensors: Mapping[str, torch.Tensor], sizes: VisionArchitecture) -> str:
    """Class token and patch embeddings with their positions, [batch, tokens, width]."""
    name = "visual.patch_embed.proj"
    weight = graph.constant(f"{name}.weight", tensors[f"{name}.weight"])
    bias = graph.constant(f"{name}.bias", tensors[f"{name}.bias"])
    patch = [sizes.patch_size, sizes.patch_size]
    patches = graph.op("Conv", ["pixel_values", weight, bias], name=name, kernel_shape=patch, strides=patch)
    shape = graph.constant("visual.patch_embed.shape", [0, sizes.hidden_size, -1])
    rows = graph.op("Reshape", [patches, shape], name="visual.patch_embed.rows")
    rows = graph.op("Transpose", [rows], name="visual.patch_embed.tokens", perm=[0, 2, 1])
    token = graph.constant("visual.cls_token", tensors["visual.cls_token"])
    token = graph.expand_to_batch(token, "pixel_values", "visual.class_tokens", 3)
    tokens = graph.op("Concat", [token, rows], name="visual.tokens", axis=1)
    positions = graph.constant("visual.pos_embed", tensors["visual.pos_embed"])
    return str(graph.op("Add", [tokens, positions], name="visual.embeddings"))
