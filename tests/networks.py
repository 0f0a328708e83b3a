"""Small networks of every part with random weights, and their graphs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tinygptv.export.bundle import write_graph
from tinygptv.export.cache_rounding import FLOAT32_CACHE, Cache
from tinygptv.export.contract import Interface, interfaces
from tinygptv.export.parts import clip, eva_clip, mlp, phi, qformer, siglip
from tinygptv.export.precision import SchemeOf, candidates, chosen
from tinygptv.export.sources.model import Network
from tinygptv.runtime.bundle.contract import read_contract
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Contract, Graph
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.language.decoder import Decoder
from torch import Tensor

Networks = Mapping[str, Network]
"""A tower, a projector and a language model that fit each other, by the graph that they become."""

# No epsilon is another's, and each is large enough that another in its place shows.
EVA_CLIP = eva_clip.Sizes(
    image_size=42,
    patch_size=14,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    layer_norm_eps=0.02,
    output_norm_eps=0.05,
)
CLIP = clip.Sizes(
    image_size=42,
    patch_size=14,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    stored_layers=4,
    num_attention_heads=2,
    hidden_act="quick",
    layer_norm_eps=0.02,
    keep_first=False,
)
SIGLIP = siglip.Sizes(
    image_size=45,  # not a multiple of the patch
    patch_size=14,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    stored_layers=4,
    num_attention_heads=2,
    hidden_act="tanh",
    layer_norm_eps=0.02,
    keep_first=True,
)
PHI = phi.Sizes(
    vocab_size=44,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    rotary_dim=6,
    rope_theta=100.0,
    layer_norm_eps=0.02,
    qk_norm=True,
    post_norm=True,
    post_norm_eps=0.05,
)


def mlp_for(tower: clip.Sizes | siglip.Sizes | eva_clip.Sizes, layers: int = 2) -> Network:
    """A projector of so many linear layers."""
    return Network(mlp, mlp.Sizes(tower.tokens, tower.hidden_size, PHI.hidden_size, layers, numbered=layers > 1))


def qformer_for(tower: clip.Sizes | siglip.Sizes | eva_clip.Sizes) -> Network:
    """A projector of queries."""
    sizes = qformer.Sizes(
        num_query_tokens=5,
        hidden_size=20,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_size=36,
        encoder_tokens=tower.tokens,
        encoder_hidden_size=tower.hidden_size,
        output_size=PHI.hidden_size,
        layer_norm_eps=0.02,
    )
    return Network(qformer, sizes)


def together(tower: Network, projector: Network | None = None, language: phi.Sizes = PHI) -> Networks:
    """The three, with an MLP if not told otherwise."""
    return {
        VISION_ENCODER: tower,
        PROJECTOR: projector or mlp_for(tower.sizes),
        DECODER: Network(phi, language),
    }


def random_tensors(networks: Networks, seed: int = 1) -> dict[str, Tensor]:
    """Weights that keep activations about as large as they are, float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for network in networks.values():
        for name, shape in network.part.tensors(network.sizes).items():
            drawn = torch.randn(shape, generator=generator)
            if len(shape) in (2, 4) and not name.startswith("model.embed_tokens"):
                drawn *= 1.5 / math.sqrt(math.prod(shape[1:]))
            elif len(shape) == 1:
                drawn = 0.3 * drawn + name.endswith("weight")
            tensors[name] = drawn
    return tensors


def random_input(network: Network, batch: int = 1, seed: int = 2) -> Tensor:
    """An input of a network's graph, float32."""
    shape = network.part.example_input(network.sizes)
    return torch.randn((batch, *shape[1:]), generator=torch.Generator().manual_seed(seed))


def interfaces_of(networks: Networks, cache_dtype: str = "float32") -> dict[str, Interface]:
    tower, projector, language = (networks[graph].sizes for graph in (VISION_ENCODER, PROJECTOR, DECODER))
    return interfaces(tower.image_size, (tower.tokens, tower.hidden_size), projector.tokens, language, cache_dtype)


def exact(name: str) -> None:
    """No linear layer is quantised."""


def int8(graph: str, group_size: int, exact: Collection[str]) -> SchemeOf:
    """How a graph's layers are quantised where nothing was calibrated."""
    return chosen(candidates("int8", group_size, exact)[graph], {})


def write(
    folder: Path,
    networks: Networks,
    graph: str,
    tensors: Mapping[str, Tensor],
    scheme_of: SchemeOf = exact,
    cache: Cache = FLOAT32_CACHE,
) -> Graph:
    """Write one of the graphs."""
    interface = interfaces_of(networks, cache.dtype)[graph]
    return write_graph(folder, graph, networks[graph], interface, tensors, scheme_of, cache)[0]


def contract_of(networks: Networks, cache_dtype: str = "float32") -> Contract:
    """What the runtime reads of the three graphs."""
    graphs = {
        name: Graph("", "", "fp32", (), interface.inputs, interface.outputs)
        for name, interface in interfaces_of(networks, cache_dtype).items()
    }
    return read_contract(graphs, "networks")


def run_vision(folder: Path, graph: Graph, x: Tensor) -> Tensor:
    """The output of a vision encoder's or a projector's graph."""
    session = open_session(folder, graph, threads=1)
    return torch.from_numpy(session.run(None, {graph.inputs[0].name: x.numpy()})[0])


def open_decoder(folder: Path, graph: Graph, networks: Networks, cache_dtype: str = "float32") -> Decoder:
    return Decoder(open_session(folder, graph, threads=1), contract_of(networks, cache_dtype))


_CLIP, _SIGLIP = together(Network(clip, CLIP)), together(Network(siglip, SIGLIP))
_MANY = replace(SIGLIP, image_size=36, patch_size=2)  # 324 tokens: their MLP is computed 162 at a time
_PLAIN = replace(PHI, qk_norm=False, post_norm=False)
CASES: dict[str, tuple[str, Networks]] = {
    "eva_clip": (VISION_ENCODER, together(Network(eva_clip, EVA_CLIP))),
    "clip, patch": (VISION_ENCODER, _CLIP),
    "clip, cls_patch": (VISION_ENCODER, together(Network(clip, replace(CLIP, keep_first=True)))),
    "clip, exact GELU": (VISION_ENCODER, together(Network(clip, replace(CLIP, hidden_act="erf")))),
    "siglip, quick GELU": (VISION_ENCODER, together(Network(siglip, replace(SIGLIP, hidden_act="quick")))),
    "siglip, first patch kept": (VISION_ENCODER, _SIGLIP),
    "siglip, first patch dropped": (VISION_ENCODER, together(Network(siglip, replace(SIGLIP, keep_first=False)))),
    "siglip, in chunks": (VISION_ENCODER, together(Network(siglip, _MANY))),
    "qformer": (PROJECTOR, together(Network(eva_clip, EVA_CLIP), qformer_for(EVA_CLIP))),
    **{f"mlp of {layers}": (PROJECTOR, together(Network(clip, CLIP), mlp_for(CLIP, layers))) for layers in (1, 2, 3)},
    "phi with norms": (DECODER, _CLIP),
    "phi": (DECODER, together(Network(clip, CLIP), language=_PLAIN)),
    "phi with q and k norms": (DECODER, together(Network(clip, CLIP), language=replace(PHI, post_norm=False))),
    "phi with post norm": (DECODER, together(Network(clip, CLIP), language=replace(PHI, qk_norm=False))),
    "phi without head bias": (DECODER, together(Network(clip, CLIP), language=replace(_PLAIN, head_bias=False))),
    "phi with norms, without head bias": (
        DECODER,
        together(Network(clip, CLIP), language=replace(PHI, head_bias=False)),
    ),
}
"""(graph, networks) of every part in every form."""
