"""BLIP-2's Q-Former (query half) and TinyGPT-V's two linear layers: image_features to image_embeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ops import Ops, T
from . import Read, Shape, Weights

LAYER = "Qformer.bert.encoder.layer"
QUERY_NORM = "Qformer.bert.embeddings.LayerNorm"
EXACT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sizes:
    """Sizes of the projector; field names are those of ``transformers``' Blip2QFormerConfig."""

    num_query_tokens: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_size: int
    """Width between ``llama_proj`` and ``llama_proj2`` (4096 as published)."""
    encoder_tokens: int
    encoder_hidden_size: int
    """Width of image_features."""
    output_size: int
    """Hidden size of the language model."""
    cross_attention_frequency: int = 2
    layer_norm_eps: float = 1e-12

    @property
    def tokens(self) -> int:
        """Number of image tokens per picture."""
        return self.num_query_tokens

    def crosses(self, layer: int) -> bool:
        """Whether a layer has cross-attention to the picture."""
        return layer % self.cross_attention_frequency == 0


def tensors(sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every tensor; the names are the published keys."""
    width, mlp = sizes.hidden_size, sizes.intermediate_size
    shapes: dict[str, Shape] = {"query_tokens": (1, sizes.num_query_tokens, width)}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    norm(QUERY_NORM)
    for i in range(sizes.num_hidden_layers):
        layer = f"{LAYER}.{i}"
        kinds = (("attention", width), ("crossattention", sizes.encoder_hidden_size))
        for attention, key_width in kinds[: 1 + sizes.crosses(i)]:
            linear(f"{layer}.{attention}.self.query", width, width)
            linear(f"{layer}.{attention}.self.key", width, key_width)
            linear(f"{layer}.{attention}.self.value", width, key_width)
            linear(f"{layer}.{attention}.output.dense", width, width)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate_query.dense", mlp, width)
        linear(f"{layer}.output_query.dense", width, mlp)
        norm(f"{layer}.output_query.LayerNorm")
    linear("llama_proj", sizes.projection_size, width)
    linear("llama_proj2", sizes.output_size, sizes.projection_size)
    return shapes


def read(weights: Weights, sizes: Sizes) -> dict[str, Read]:
    """A reader for each tensor; the published key is its name."""
    return {name: weights.take(name, shape) for name, shape in tensors(sizes).items()}


def unused(sizes: Sizes) -> Iterable[str]:
    """Patterns of the Q-Former's text half and heads, and of BLIP-2's T5."""
    yield r"Qformer\.cls\..+"
    yield r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)"
    yield r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate\.dense|output\.dense|output\.LayerNorm)\.(weight|bias)"
    yield r"t5_(proj|model)\..+"


def example_input(sizes: Sizes) -> Shape:
    """Shape of image_features."""
    return 1, sizes.encoder_tokens, sizes.encoder_hidden_size


def run(ops: Ops[T], sizes: Sizes, x: T) -> T:
    """Compute image_embeds [batch, queries, hidden] from image_features [batch, tokens, width]; post-norm, no mask."""
    heads, epsilon = sizes.num_attention_heads, sizes.layer_norm_eps

    def attend(hidden: T, name: str, context: T) -> T:
        q = ops.linear(hidden, f"{name}.self.query")
        k, v = (ops.linear(context, f"{name}.self.{part}") for part in ("key", "value"))
        mixed = ops.linear(ops.attention(q, k, v, name, heads), f"{name}.output.dense")
        return ops.add_norm(hidden, mixed, f"{name}.output.LayerNorm", epsilon)[1]

    hidden = ops.queries("query_tokens", QUERY_NORM, epsilon, x)
    for i in ops.layers(sizes.num_hidden_layers):
        layer = f"{LAYER}.{i}"
        hidden = attend(hidden, f"{layer}.attention", hidden)
        if sizes.crosses(i):
            hidden = attend(hidden, f"{layer}.crossattention", x)
        inner = ops.activation(ops.linear(hidden, f"{layer}.intermediate_query.dense"), "erf", f"{layer}.gelu")
        inner = ops.linear(inner, f"{layer}.output_query.dense")
        hidden = ops.add_norm(hidden, inner, f"{layer}.output_query.LayerNorm", epsilon)[1]
        ops.tap(f"layer {i}", hidden)
    return ops.linear(ops.linear(hidden, "llama_proj"), "llama_proj2")
