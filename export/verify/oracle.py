"""A complete model in torch, from stock classes: the reference for exported graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor, nn
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from ..sources.model import Network
from .stock import STOCK

MODULES = {VISION_ENCODER: "vision", PROJECTOR: "projector", DECODER: "language"}
"""Attribute names of an oracle's parts, by the graph that they correspond to."""
FUSED = ".qkv."


class Oracle(nn.Module):
    """The whole model. It is built with random weights: :func:`load` puts a checkpoint's into it.

    Args:
        networks: The parts, by graph.
    """

    vision: Any
    projector: Any
    language: Any

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        self.networks = networks
        for graph, name in MODULES.items():
            self.add_module(name, STOCK[networks[graph].name].build(networks[graph].sizes))

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures: [batch, 3, size, size] -> [batch, tokens, vision width]."""
        return self.vision(pixel_values)

    def image_embeds(self, image_features: Tensor) -> Tensor:
        """Project vision tokens to the language model: [batch, tokens, vision width] -> [batch, tokens, hidden]."""
        return self.projector(image_features)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look up token ids: [batch, sequence] -> [batch, sequence, hidden]."""
        return self.language.model.embed_tokens(input_ids)

    def hidden_states(self, inputs_embeds: Tensor) -> Tensor:
        """Runs Phi-2 up to its final norm, causally, without padding: [batch, sequence, hidden], as given."""
        return self.language.model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state

    def logits(self, inputs_embeds: Tensor) -> Tensor:
        """The next token's logits after each position: [batch, sequence, hidden] -> [batch, sequence, vocab]."""
        return self.language.lm_head(self.hidden_states(inputs_embeds))

    @torch.no_grad()
    def generate_ids(
        self, inputs_embeds: Tensor, max_new_tokens: int, stop_token_ids: Collection[int] = ()
    ) -> list[list[int]]:
        """Continues prompts of one length greedily, with a KV cache.

        Args:
            inputs_embeds: The prompts, [batch, sequence, hidden], without padding.
            max_new_tokens: The most tokens to add to each.
            stop_token_ids: A row ends with the first of these, which it keeps.

        Returns:
            The new token ids of each row.
        """
        rows: list[list[int]] = [[] for _ in range(inputs_embeds.shape[0])]
        running = set(range(len(rows)))
        cache = None
        for _ in range(max_new_tokens):
            output = self.language(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token_ids = output.logits[:, -1].argmax(dim=-1)  # [batch]
            for row in sorted(running):
                rows[row].append(int(token_ids[row]))
                if rows[row][-1] in stop_token_ids:
                    running.remove(row)
            if not running:
                break
            inputs_embeds = self.embed(token_ids[:, None])
        return rows


def load(oracle: Oracle, tensors: Mapping[str, Tensor]) -> None:
    """Puts a model's tensors into an oracle.

    Raises:
        RuntimeError: A tensor is missing, unknown or of the wrong shape; the message names each.
    """
    state: dict[str, Tensor] = {}
    parameters = oracle.state_dict()
    for name, places in placed(oracle.networks).items():
        state |= _split(tensors[name], places, {place: parameters[place].shape for place in places})
    oracle.load_state_dict(state, strict=True)


def tensors_of(oracle: Oracle) -> dict[str, Tensor]:
    """An oracle's weights as a model's tensors: the inverse of :func:`load`."""
    state = oracle.state_dict()
    shapes = _shapes(oracle.networks)
    return {
        name: torch.cat([state[place] for place in places]).reshape(shapes[name])
        for name, places in placed(oracle.networks).items()
    }


def placed(networks: Mapping[str, Network]) -> dict[str, tuple[str, ...]]:
    """For each tensor of the parts, the names in an oracle's state that it, or its thirds, correspond to."""
    places: dict[str, tuple[str, ...]] = {}
    for graph, network in networks.items():
        stock = STOCK[network.name]
        for name in network.part.tensors(network.sizes):
            place = f"{MODULES[graph]}.{_renamed(network, name)}"
            split = stock.splits_qkv and FUSED in place
            places[name] = tuple(place.replace(FUSED, f".{part}_proj.") for part in "qkv") if split else (place,)
    return places


class StreamedOracle(Oracle):
    """An oracle for machines with too little memory: layers get their weights when they run, and drop them afterwards.

    Its methods read every weight they use once, whatever the size of the batch.

    Args:
        networks: The parts, by graph.
        tensors: The model, or any mapping with its names.
    """

    def __init__(self, networks: Mapping[str, Network], tensors: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            super().__init__(networks)
        self._tensors = tensors
        self.watch: Callable[[str, str, Tensor], Tensor] = lambda graph, row, output: output
        """Called with a graph, a row and the output of the layer that has run; returns the input of the next layer."""
        # Computed from the sizes, so no file has it.
        self.language.model.rotary_emb = PhiRotaryEmbedding(self.language.config)
        assert not any(buffer.is_meta for buffer in self.buffers())
        self._places: dict[str, dict[str, tuple[str, ...]]] = {}
        layers = {name: (graph, row) for graph in MODULES for name, row in self._layers(graph)}
        for tensor, places in placed(networks).items():
            # A module's own parameters, not those of the layers in it.
            layer = max((name for name in layers if places[0].startswith(f"{name}.")), key=len)
            self._places.setdefault(layer, {})[tensor] = places
        for name, (graph, row) in layers.items():
            module = self.get_submodule(name)
            module.register_forward_pre_hook(partial(self._load, name))
            module.register_forward_hook(partial(self._unload, graph, row))
        self.eval()

    def rows(self, graph: str) -> list[str]:
        """The rows of a graph that are compared, in the order of computation."""
        return [row for _, row in self._layers(graph) if row]

    def _layers(self, graph: str) -> Iterator[tuple[str, str]]:
        network = self.networks[graph]
        for name, row in STOCK[network.name].rows(network.sizes):
            yield f"{MODULES[graph]}.{name}".rstrip("."), row

    def _load(self, name: str, layer: nn.Module, inputs: Any) -> None:
        parameters = dict(layer.named_parameters())
        state: dict[str, Tensor] = {}
        for tensor, places in self._places.get(name, {}).items():
            inner = tuple(place.removeprefix(f"{name}.") for place in places)
            state |= _split(self._tensors[tensor], inner, {place: parameters[place].shape for place in inner})
        layer.load_state_dict(state, strict=False, assign=True)

    def _unload(self, graph: str, row: str, layer: nn.Module, inputs: Any, output: Any) -> Any:
        emptied = {name: parameter.to("meta") for name, parameter in layer.named_parameters()}
        layer.load_state_dict(emptied, strict=False, assign=True)
        if not row:
            return output
        if isinstance(output, tuple):
            return (self.watch(graph, row, output[0]), *output[1:])
        return self.watch(graph, row, output)


def _split(tensor: Tensor, places: tuple[str, ...], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A tensor as the one or three that an oracle has; a class token or positions lose axes of size 1."""
    parts = tensor.chunk(len(places)) if len(places) > 1 else (tensor,)
    return {
        place: part.reshape(shapes[place]) if _squeezed(part.shape) == _squeezed(shapes[place]) else part
        for place, part in zip(places, parts, strict=True)
    }


def _squeezed(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _shapes(networks: Mapping[str, Network]) -> dict[str, tuple[int, ...]]:
    return {name: shape for network in networks.values() for name, shape in network.part.tensors(network.sizes).items()}


def _renamed(network: Network, name: str) -> str:
    for pattern, replacement in STOCK[network.name].rules(network.sizes):
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    return name
