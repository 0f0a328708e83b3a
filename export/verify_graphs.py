"""Runs a bundle's graphs so that they also tell what is between their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tinygptv.runtime.architecture import Architecture
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Graph, TensorSpec
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.errors import BundleError
from tinygptv.runtime.language.decoder import ALL_LOGITS, CACHE_DTYPES
from torch import Tensor

from .architecture import QFORMER_LAYER

Array = NDArray[np.float32]
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Tap:
    """A tensor that graph and reference both have."""

    row: str
    """What reports call it."""
    layer: str
    """Of :class:`.verify_reference.StreamedReference`, whose output it is."""
    tensor: str
    """Its name in the graph."""


def taps(architecture: Architecture) -> dict[str, tuple[Tap, ...]]:
    """What is compared of each graph, in the order it is computed: each tensor follows from the one before it."""
    blocks = architecture.vision.num_hidden_layers
    layers = architecture.language.num_hidden_layers
    # The sum after a layer is part of the operator with the next layer's norm.
    block_sums = [*(f"visual.blocks.{i}.norm1.sum" for i in range(1, blocks)), "image_features.sum"]
    layer_sums = [*(f"model.layers.{i}.input_layernorm.sum" for i in range(1, layers)), "model.final_layernorm.sum"]
    return {
        VISION_ENCODER: (
            Tap("embeddings", "vision.embeddings", "visual.embeddings"),
            *(Tap(f"block {i}", f"vision.encoder.layers.{i}", name) for i, name in enumerate(block_sums)),
            Tap("image_features", "vision.post_layernorm", "image_features"),
        ),
        PROJECTOR: (
            *(
                Tap(f"layer {i}", f"qformer.encoder.layer.{i}", f"{QFORMER_LAYER}{i}.output_query.LayerNorm")
                for i in range(architecture.qformer.num_hidden_layers)
            ),
            Tap("image_embeds", "llama_proj2", "image_embeds"),
        ),
        DECODER: (
            *(Tap(f"layer {i}", f"language.model.layers.{i}", name) for i, name in enumerate(layer_sums)),
            Tap("logits", "language.lm_head", "logits"),
        ),
    }


class TappedGraph:
    """One graph of a bundle, loaded with further outputs.

    Args:
        folder: The bundle.
        graph: Which of its graphs.
        layers: How many tensors an input or output with ``{i}`` in its name stands for.
        wanted: What else it is to give.

    Raises:
        BundleError: The graph has no such tensor, or onnxruntime cannot load it.
    """

    def __init__(self, folder: Path, graph: Graph, layers: int, wanted: Sequence[Tap]) -> None:
        path = folder / graph.file
        self._names = [tap.tensor for tap in wanted]
        model = onnx.load(path, load_external_data=False)
        computed = {name for node in model.graph.node for name in node.output}
        for tap in wanted:
            if tap.tensor not in computed:
                raise BundleError(
                    f"{path} has no tensor {tap.tensor} ({tap.row}); "
                    "export the model again with this version of tinygptv"
                )
        given = {output.name for output in model.graph.output}
        added = [tap.tensor for tap in wanted if tap.tensor not in given]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
        outputs = (*graph.outputs, *(TensorSpec(name, "float32", ()) for name in added))
        self._session = open_session(
            folder.absolute(), replace(graph, outputs=outputs), layers, threads=None, model=model.SerializeToString()
        )

    def see(self, array: Array) -> Named:
        """Run a vision graph, which has one input; gives each wanted tensor, float32 [batch, ...]."""
        return self._run({self._session.get_inputs()[0].name: array})

    def read(self, inputs_embeds: Array) -> Named:
        """Feed the decoder a prompt, float32 [1, sequence, hidden]; logits are of every position."""
        sequence = inputs_embeds.shape[1]
        feeds: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": inputs_embeds,
            "position_ids": np.arange(sequence, dtype=np.int64)[np.newaxis],
            "seqlens_k": np.array([sequence - 1], np.int32),
            "total_sequence_length": np.array(sequence, np.int32),
            "num_logits_to_keep": np.array(ALL_LOGITS, np.int64),
        }
        for past in self._session.get_inputs():
            if past.name not in feeds:
                _, heads, _, head_dim = past.shape
                feeds[past.name] = np.zeros((1, heads, 0, head_dim), CACHE_DTYPES[past.type])
        return self._run(feeds)

    def _run(self, feeds: dict[str, NDArray[np.generic]]) -> Named:
        outputs = self._session.run(self._names, feeds)
        return {name: torch.from_numpy(output).float() for name, output in zip(self._names, outputs, strict=True)}
