"""The forward pass in plain torch against what the published code computed, and what it lets calibration see."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from conftest import GOLDEN_STAGES, golden_checkpoint
from tinygptv.export.checkpoint import Checkpoint
from tinygptv.export.forward import decoder_hidden_states, image_embeds, vision_features
from tinygptv.export.reference import TinyGPTVReference, load_merged, module_tensors
from torch import Tensor

TOLERANCE = 2e-4
"""Of the largest difference, in standard deviations of what is expected: that of the exported graphs in fp32."""


@dataclass(frozen=True)
class Golden:
    """A golden checkpoint, what is expected of it, and what was observed while computing that."""

    checkpoint: Checkpoint
    expected: dict[str, Tensor]
    found: dict[str, Tensor]
    observed: list[tuple[str, Tensor]]


@pytest.fixture(scope="module", params=GOLDEN_STAGES)
def golden(request: pytest.FixtureRequest, expected: Callable[[int], dict]) -> Golden:
    checkpoint = golden_checkpoint(request.param)
    sizes = checkpoint.architecture
    arrays = {name: torch.from_numpy(array) for name, array in expected(request.param).items()}
    observed: list[tuple[str, Tensor]] = []

    def observe(name: str, x: Tensor) -> None:
        observed.append((name, x.clone()))

    found = {
        "image_features": vision_features(checkpoint, sizes.vision, arrays["pixel_values"], observe),
        "image_embeds": image_embeds(checkpoint, sizes.qformer, arrays["image_features"]),
    }
    hidden = decoder_hidden_states(checkpoint, sizes.language, arrays["inputs_embeds"], observe)
    found["prefill_logits"] = hidden @ checkpoint["lm_head.weight"].t() + checkpoint["lm_head.bias"]
    return Golden(checkpoint, arrays, found, observed)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", ["image_features", "image_embeds", "prefill_logits"])
def test_it_is_exact(name: str, golden: Golden) -> None:
    assert golden.found[name].dtype == torch.float32
    assert deviation(golden.found[name], golden.expected[name]) < TOLERANCE


def test_every_linear_layer_is_seen_in_order(golden: Golden) -> None:
    sizes = golden.checkpoint.architecture
    vision = [
        f"visual.blocks.{i}.{name}"
        for i in range(sizes.vision.num_hidden_layers)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    language = [
        f"model.layers.{i}.{name}"
        for i in range(sizes.language.num_hidden_layers)
        for name in ("self_attn.qkv", "self_attn.dense", "mlp.fc1", "mlp.fc2")
    ]
    assert [name for name, _ in golden.observed] == [*vision, *language, "lm_head"]
    for name, x in golden.observed:
        tokens = "image_features" if name.startswith("visual.") else "inputs_embeds"
        assert x.shape == (golden.expected[tokens].shape[1], golden.checkpoint.shape(f"{name}.weight")[1])
    # None is forgotten: these are all the matrices there are, but for the projector's and the table of embeddings.
    matrices = {
        name.removesuffix(".weight")
        for name in golden.checkpoint
        if name.startswith(("visual.blocks.", "model.layers.", "lm_head.")) and len(golden.checkpoint.shape(name)) == 2
    }
    assert matrices == {name for name, _ in golden.observed}


@torch.no_grad()
def test_what_is_seen_is_what_the_reference_multiplies(golden: Golden) -> None:
    """Layer by layer: of the right layer, before and not after something else."""
    reference = TinyGPTVReference(golden.checkpoint.architecture)
    load_merged(reference, golden.checkpoint)
    seen: dict[str, Tensor] = {}
    for name, _ in golden.observed:
        weight = f"{name}.weight"
        for key in module_tensors(weight, golden.checkpoint[weight]):  # q, k and v are three modules there
            module = reference.eval().get_submodule(key.removesuffix(".weight"))
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].flatten(0, -2)}))
    reference.image_features(golden.expected["pixel_values"])
    reference.logits(golden.expected["inputs_embeds"])
    assert len(seen) == len(golden.observed)
    for name, x in golden.observed:
        assert deviation(x, seen[name]) < TOLERANCE, name


def test_several_at_once_are_those_one_by_one(golden: Golden) -> None:
    checkpoint, sizes = golden.checkpoint, golden.checkpoint.architecture
    shapes: set[int] = set()

    def observe(name: str, x: Tensor) -> None:
        shapes.add(len(x))

    def both(x: Tensor) -> Tensor:
        return torch.cat((x, x.flip(1) * 0.5))

    pixels = both(golden.expected["pixel_values"])
    features = vision_features(checkpoint, sizes.vision, pixels, observe)
    assert shapes == {2 * features.shape[1]}
    embeds = image_embeds(checkpoint, sizes.qformer, features)
    prompts = both(golden.expected["inputs_embeds"])
    hidden = decoder_hidden_states(checkpoint, sizes.language, prompts, observe)
    assert shapes == {2 * features.shape[1], 2 * prompts.shape[1]}
    for i in range(2):
        one = slice(i, i + 1)
        assert deviation(vision_features(checkpoint, sizes.vision, pixels[one], observe), features[one]) < TOLERANCE
        assert deviation(image_embeds(checkpoint, sizes.qformer, features[one]), embeds[one]) < TOLERANCE
        alone = decoder_hidden_states(checkpoint, sizes.language, prompts[one], observe)
        assert deviation(alone, hidden[one]) < TOLERANCE
    assert deviation(features[:1], features[1:]) > 0.1, "the two pictures are different"


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
    sizes = checkpoint.architecture
    tensors = Watched(checkpoint)
    hidden = torch.randn(1, 5, sizes.language.hidden_size, generator=torch.Generator().manual_seed(1))
    decoder_hidden_states(tensors, sizes.language, hidden, lambda name, x: None)
    side = sizes.vision.image_size
    vision_features(tensors, sizes.vision, torch.zeros(1, 3, side, side), lambda name, x: None)
    layers = (name for name in checkpoint if name.startswith(("visual.blocks.", "model.layers.")))
    largest = max(math.prod(checkpoint.shape(name)) for name in layers)
    assert largest <= tensors.most <= 1.1 * largest
    assert tensors.held == 0
