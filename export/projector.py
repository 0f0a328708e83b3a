"""The projector's graph: Q-Former (query half) and the two linear layers, image_features to image_embeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tinygptv.runtime.architecture import QFormerArchitecture

from .architecture import QFORMER_LAYER
from .graph import CONTRIB, GraphWriter
from .linear import Linears
from .schemes import SchemeOf


def build_projector(
    graph: GraphWriter,
    tensors: Mapping[str, torch.Tensor],
    sizes: QFormerArchitecture,
    scheme_of: SchemeOf,
    on_layer: Callable[[int, int], object],
) -> None:
    """Write the projector's nodes; ``on_layer(i, count)`` is called before each. Names as in :mod:`.checkpoint`."""
    linear = Linears(graph, tensors, scheme_of)

    def add_and_norm(x: str, skip: str, name: str) -> str:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return graph.skip_layer_norm(x, skip, name, weight, bias, sizes.layer_norm_eps)[0]

    def attend(name: str, query: str, key: str, value: str) -> str:
        heads = sizes.num_attention_heads
        output = graph.op("MultiHeadAttention", [query, key, value], name=name, domain=CONTRIB, num_heads=heads)
        return linear(output, f"{name}.output.dense")

    # The queries never change: their norm is computed here, once.
    name = "Qformer.bert.embeddings.LayerNorm"
    queries = torch.nn.functional.layer_norm(
        tensors["query_tokens"],
        (sizes.hidden_size,),
        tensors[f"{name}.weight"],
        tensors[f"{name}.bias"],
        sizes.layer_norm_eps,
    )
    hidden = graph.expand_to_batch(graph.constant("query_embeds", queries), "image_features", "queries", 3)
    for i in range(sizes.num_hidden_layers):
        on_layer(i, sizes.num_hidden_layers)
        layer = f"{QFORMER_LAYER}{i}"
        name = f"{layer}.attention"
        fused = linear(hidden, f"{name}.self.qkv", *(f"{name}.self.{part}" for part in ("query", "key", "value")))
        query, key, value = graph.split(fused, f"{name}.self.parts", 3)
        hidden = add_and_norm(hidden, attend(name, query, key, value), f"{name}.output.LayerNorm")
        if i % sizes.cross_attention_frequency == 0:
            name = f"{layer}.crossattention"
            query = linear(hidden, f"{name}.self.query")
            fused = linear("image_features", f"{name}.self.kv", f"{name}.self.key", f"{name}.self.value")
            key, value = graph.split(fused, f"{name}.self.parts", 2)
            hidden = add_and_norm(hidden, attend(name, query, key, value), f"{name}.output.LayerNorm")
        name = f"{layer}.intermediate_query.dense"
        inner = graph.op("Gelu", [linear(hidden, name)], name=f"{layer}.gelu", domain=CONTRIB)
        name = f"{layer}.output_query"
        hidden = add_and_norm(hidden, linear(inner, f"{name}.dense"), f"{name}.LayerNorm")
    projected = linear(linear(hidden, "llama_proj"), "llama_proj2")
    graph.rename_output(projected, "image_embeds")
