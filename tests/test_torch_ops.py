"""The torch twin of the graphs against what the published code computed, and what it lets calibration see."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from conftest import GOLDEN_STAGES, computed, golden_checkpoint
from tinygptv.export.ops import LEAST, Activation
from tinygptv.export.sources.model import Model
from tinygptv.export.torch_ops import TorchOps, Value
from tinygptv.export.verify.oracle import Oracle, load, placed
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor

TOLERANCE = 2e-4
"""Of the largest difference, in standard deviations of what is expected: that of the exported graphs in fp32."""


@dataclass(frozen=True)
class Golden:
    """A golden checkpoint, what is expected of it, and what was observed while computing that."""

    checkpoint: Model
    expected: dict[str, Tensor]
    found: dict[str, Tensor]
    observed: list[tuple[str, Tensor]]


INPUTS = {VISION_ENCODER: "pixel_values", PROJECTOR: "image_features", DECODER: "inputs_embeds"}
OUTPUTS = {VISION_ENCODER: "image_features", PROJECTOR: "image_embeds", DECODER: "prefill_logits"}


@pytest.fixture(scope="module", params=GOLDEN_STAGES)
def golden(request: pytest.FixtureRequest, expected: Callable[[int], dict]) -> Golden:
    checkpoint = golden_checkpoint(request.param)
    arrays = {name: torch.from_numpy(array) for name, array in expected(request.param).items()}
    observed: list[tuple[str, Tensor]] = []

    def observe(name: str, x: Value) -> None:
        observed.append((name, x.data.clone()))

    found = {
        OUTPUTS[graph]: computed(checkpoint.networks, checkpoint, graph, arrays[given], observe)
        for graph, given in INPUTS.items()
    }
    return Golden(checkpoint, arrays, found, observed)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", OUTPUTS.values())
def test_it_is_exact(name: str, golden: Golden) -> None:
    assert golden.found[name].dtype == torch.float32
    assert deviation(golden.found[name], golden.expected[name]) < TOLERANCE


def test_every_linear_layer_is_seen_in_order(golden: Golden) -> None:
    sizes = {graph: network.sizes for graph, network in golden.checkpoint.networks.items()}
    vision = [
        f"visual.blocks.{i}.{name}"
        for i in range(sizes[VISION_ENCODER].num_hidden_layers)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    attend = ("self.query", "self.key", "self.value", "output.dense")
    projector = [
        f"Qformer.bert.encoder.layer.{i}.{name}"
        for i in range(sizes[PROJECTOR].num_hidden_layers)
        for name in (
            *(f"attention.{part}" for part in attend),
            *(f"crossattention.{part}" for part in attend if i % 2 == 0),
            "intermediate_query.dense",
            "output_query.dense",
        )
    ]
    language = [
        f"model.layers.{i}.{name}"
        for i in range(sizes[DECODER].num_hidden_layers)
        for name in ("self_attn.qkv", "self_attn.dense", "mlp.fc1", "mlp.fc2")
    ]
    assert [name for name, _ in golden.observed] == [
        *(*vision, *projector, "llama_proj", "llama_proj2", *language, "lm_head")
    ]
    for name, x in golden.observed:
        assert x.shape[-1] == golden.checkpoint.shape(f"{name}.weight")[1]
        if name in vision or name in language:
            tokens = "image_features" if name in vision else "inputs_embeds"
            assert x.shape[:-1] == golden.expected[tokens].shape[:-1]
    # None is forgotten: these are all the matrices there are, but for the table of embeddings.
    matrices = {
        name.removesuffix(".weight")
        for name in golden.checkpoint
        if len(golden.checkpoint.shape(name)) == 2 and name != "model.embed_tokens.weight"
    }
    assert matrices == {name for name, _ in golden.observed}


@torch.no_grad()
def test_what_is_seen_is_what_the_oracle_multiplies(golden: Golden) -> None:
    """Layer by layer: of the right layer, before and not after something else."""
    oracle = Oracle(golden.checkpoint.networks)
    load(oracle, golden.checkpoint)
    oracle.eval()
    places = placed(golden.checkpoint.networks)
    seen: dict[str, Tensor] = {}
    for name, _ in golden.observed:
        for place in places[f"{name}.weight"]:  # q, k and v are three modules there
            module = oracle.get_submodule(place.removesuffix(".weight"))
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    oracle.image_features(golden.expected["pixel_values"])
    oracle.image_embeds(golden.expected["image_features"])
    oracle.logits(golden.expected["inputs_embeds"])
    assert len(seen) == len(golden.observed)
    for name, x in golden.observed:
        assert deviation(x, seen[name]) < TOLERANCE, name


def test_several_at_once_are_those_one_by_one(golden: Golden) -> None:
    shapes: set[int] = set()

    def observe(name: str, x: Value) -> None:
        shapes.add(len(x.data))

    def run(graph: str, x: Tensor) -> Tensor:
        return computed(golden.checkpoint.networks, golden.checkpoint, graph, x, observe)

    for graph, given in INPUTS.items():
        x = golden.expected[given]
        both = torch.cat((x, x.flip(1) * 0.5))
        shapes.clear()
        found = run(graph, both)
        assert shapes == {2}
        for i in range(2):
            assert deviation(run(graph, both[i : i + 1]), found[i : i + 1]) < TOLERANCE
        assert deviation(found[:1], found[1:]) > 0.1, "the two are different"


class Watched(Mapping[str, Tensor]):
    """Tensors that are counted while somebody holds them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.held = self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name].clone()
        self.held += tensor.numel()
        self.most = max(self.most, self.held)
        weakref.finalize(tensor, self._release, tensor.numel())
        return tensor

    def _release(self, values: int) -> None:
        self.held -= values

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def test_one_layers_weights_are_held_at_a_time() -> None:
    """At the published sizes all of them are 12 GB."""
    checkpoint = golden_checkpoint(4)
    for graph, network in checkpoint.networks.items():
        tensors = Watched(checkpoint)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(network.part.example_input(network.sizes), generator=generator)
        computed(checkpoint.networks, tensors, graph, x)
        shapes = network.part.tensors(network.sizes)
        largest = max(math.prod(shape) for name, shape in shapes.items() if name != "model.embed_tokens.weight")
        assert largest <= tensors.most <= 1.1 * largest
        assert tensors.held == 0


# Activations


FORMULAS: dict[Activation, Callable[[float], float]] = {
    "erf": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "tanh": lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick": lambda x: x / (1 + math.exp(-1.702 * x)),
}


def activated(x: Tensor, kind: Activation) -> Value:
    return TorchOps({}).activation(Value(x), kind, "")


@pytest.mark.parametrize("kind", FORMULAS)
def test_an_activation_is_its_formula(kind: Activation) -> None:
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    wanted = torch.tensor([FORMULAS[kind](float(value)) for value in x], dtype=torch.float64)
    torch.testing.assert_close(activated(x, kind).data, wanted)
    others = [activated(x, other).data for other in FORMULAS if other != kind]
    assert all((other - wanted).abs().max() > 1e-4 for other in others), "the three can be told apart"


@pytest.mark.parametrize("kind", FORMULAS)
def test_an_activation_is_never_below_its_least_value(kind: Activation) -> None:
    value = activated(torch.linspace(-3, 0, 100_001, dtype=torch.float64), kind)
    least = float(value.data.min())
    assert LEAST[kind] < least < LEAST[kind] + 1e-4
    assert value.origin.least == LEAST[kind]
