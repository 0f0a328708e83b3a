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

    def attend(name: str, x: str, context: str) -> str:
        sources = {"query": x, "key": context, "value": context}
        inputs = [linear(source, f"{name}.self.{part}") for part, source in sources.items()]
        heads = sizes.num_attention_heads
        output = graph.op("MultiHeadAttention", inputs, name=name, domain=CONTRIB, num_heads=heads)
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
        hidden = add_and_norm(hidden, attend(name, hidden, hidden), f"{name}.output.LayerNorm")
        if i % sizes.cross_attention_frequency == 0:
            name = f"{layer}.crossattention"
            hidden = add_and_norm(hidden, attend(name, hidden, "image_features"), f"{name}.output.LayerNorm")
        name = f"{layer}.intermediate_query.dense"
        inner = graph.op("Gelu", [linear(hidden, name)], name=f"{layer}.gelu", domain=CONTRIB)
        name = f"{layer}.output_query"
        hidden = add_and_norm(hidden, linear(inner, f"{name}.dense"), f"{name}.LayerNorm")
    projected = linear(linear(hidden, "llama_proj"), "llama_proj2")
    graph.rename_output(projected, "image_embeds")
