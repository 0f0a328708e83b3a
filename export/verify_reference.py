"""The torch reference for machines that cannot hold it: one layer's weights are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from tinygptv.runtime.architecture import Architecture
from torch import Tensor, nn
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from .reference import TinyGPTVReference, module_name, module_tensors

Watch = Callable[[str, Tensor], Tensor]
"""Given the name of a layer that has run and its output; gives what the next layer gets in the output's place."""


class StreamedReference(TinyGPTVReference):
    """:class:`.reference.TinyGPTVReference` whose layers get their weights when they run, and lose them afterwards.

    Its methods are the reference's own: each reads every weight it uses once, whatever the size of the batch.

    Args:
        architecture: The model's sizes.
        tensors: A :class:`.checkpoint.Checkpoint`, or any mapping with its names.
    """

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            super().__init__(architecture)
        self._tensors = tensors
        self.watch: Watch = lambda name, output: output
        self.query_tokens = nn.Parameter(tensors["query_tokens"])
        # Computed from the sizes, so no file has it.
        self.language.model.rotary_emb = PhiRotaryEmbedding(self.language.config)
        weights: dict[str, list[str]] = {name: [] for name, _ in self._layers()}
        for published in tensors:
            name = module_name(published)
            for prefix, names in weights.items():
                if name.startswith(f"{prefix}."):
                    names.append(published)
        for name, layer in self._layers():
            layer.register_forward_pre_hook(partial(self._load, name, weights[name]))
            layer.register_forward_hook(partial(self._unload, name))
        self.eval()

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        """What is loaded as one, in the order it runs."""
        for name in (
            "vision.embeddings",
            *(f"vision.encoder.layers.{i}" for i in range(len(self.vision.encoder.layers))),
            "vision.post_layernorm",
            "qformer.layernorm",
            *(f"qformer.encoder.layer.{i}" for i in range(len(self.qformer.encoder.layer))),
            "llama_proj",
            "llama_proj2",
            "language.model.embed_tokens",
            *(f"language.model.layers.{i}" for i in range(len(self.language.model.layers))),
            "language.model.final_layernorm",
            "language.lm_head",
        ):
            yield name, self.get_submodule(name)

    def _load(self, name: str, weights: list[str], layer: nn.Module, inputs: Any) -> None:
        state: dict[str, Tensor] = {}
        for published in weights:
            state |= module_tensors(published, self._tensors[published])
        layer.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in state.items()}, assign=True)

    def _unload(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> Any:
        layer.to("meta")
        if isinstance(output, tuple):
            return (self.watch(name, output[0]), *output[1:])
        return self.watch(name, output)
