"""What each phase of training draws, optimises and measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from adapters import add_adapters
from answering import answer_all
from network import VisionHeads, pixel_values, vision_labels
from numpy.typing import NDArray
from packing import PackedBatch, answer_loss, pack
from pictures import Scene, Split
from questions import QuestionBank, draw_conversation
from scoring import derived_items, intersection_over_union, package_items, score
from shapes import generate, mirror
from tinygptv.export.verify.oracle import Oracle
from torch import Tensor, nn
from vocabulary import Vocabulary, build_vocabulary


@dataclass(frozen=True)
class Batch:
    """One step's pictures, and what is asked about them."""

    pixel_values: Tensor
    scenes: list[Scene]
    questions: PackedBatch | None = None


class Phase(ABC):
    """One stretch of training with its own data and learning rates."""

    name: str
    steps: int
    validation_steps: int
    training: Split
    validation: Split

    @abstractmethod
    def prepare(self, model: Oracle) -> None:
        """Changes the model's modules as this phase needs them."""

    def bind(self, training: Split, validation: Split) -> None:
        """Takes the pictures and questions."""
        self.training = training
        self.validation = validation

    @abstractmethod
    def parameter_groups(self, model: Oracle, heads: VisionHeads) -> list[dict[str, Any]]:
        """Gives AdamW's groups, each with its ``peak`` learning rate; what is in none stays as it is."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Batch:
        """Draws one step's batch."""

    @abstractmethod
    def loss(self, model: Oracle, heads: VisionHeads, batch: Batch) -> Tensor:
        """Gives a batch's loss."""

    @abstractmethod
    def validate(self, model: Oracle, heads: VisionHeads, complete: bool) -> dict[str, float]:
        """Measures the model on the validation part, or on some of it unless ``complete``."""


class VisionPhase(Phase):
    """Vision encoder, Q-Former and projections learn to tell shape, colour and box."""

    name = "vision"
    steps = 900
    validation_steps = 300

    def prepare(self, model: Oracle) -> None:
        # On CPU the backward pass of fused attention takes as long as all the rest at these sizes.
        model.vision.model.config._attn_implementation = "eager"

    def parameter_groups(self, model: Oracle, heads: VisionHeads) -> list[dict[str, Any]]:
        return groups_of(vision_parameters(model), peak=1e-3) + groups_of(heads.named_parameters(), peak=1e-3)

    def draw(self, rng: np.random.Generator) -> Batch:
        pixels, scenes = draw_pictures(self.training, rng, drawn=64, generated=192)
        return Batch(pixel_values(pixels), scenes)

    def loss(self, model: Oracle, heads: VisionHeads, batch: Batch) -> Tensor:
        return heads.loss(model.image_embeds(model.image_features(batch.pixel_values)), batch.scenes)

    def validate(self, model: Oracle, heads: VisionHeads, complete: bool) -> dict[str, float]:
        return measure_vision(model, heads, self.validation)


class LanguagePhase(Phase):
    """The language model learns to answer; what it sees may shift a little, held by the heads."""

    name = "language"
    steps = 3400
    validation_steps = 250
    vocabulary: Vocabulary
    bank: QuestionBank

    def prepare(self, model: Oracle) -> None:
        """Leaves the model as the phase before it did."""

    def bind(self, training: Split, validation: Split) -> None:
        super().bind(training, validation)
        self.vocabulary = build_vocabulary(training)
        self.bank = QuestionBank(training)

    def parameter_groups(self, model: Oracle, heads: VisionHeads) -> list[dict[str, Any]]:
        return (
            groups_of(vision_parameters(model), peak=1e-4)
            + groups_of(heads.named_parameters(), peak=1e-4)
            + groups_of(language_parameters(model), peak=1.5e-3)
        )

    def draw(self, rng: np.random.Generator) -> Batch:
        pixels, scenes = draw_pictures(self.training, rng, drawn=16, generated=16)
        conversations = [[draw_conversation(scene, self.bank, rng) for _ in range(13)] for scene in scenes]
        return Batch(pixel_values(pixels), scenes, pack(conversations, self.vocabulary, rng))

    def loss(self, model: Oracle, heads: VisionHeads, batch: Batch) -> Tensor:
        assert batch.questions is not None
        image_embeds = model.image_embeds(model.image_features(batch.pixel_values))
        return answer_loss(model, image_embeds, batch.questions) + 0.2 * heads.loss(image_embeds, batch.scenes)

    def validate(self, model: Oracle, heads: VisionHeads, complete: bool) -> dict[str, float]:
        items = package_items(self.validation, tags=("[vqa] ", "")) + derived_items(self.validation)
        if not complete:
            items = items[::5]
        asked = [(item.picture, item.question) for item in items]
        return score(items, answer_all(model, self.vocabulary, self.validation.pixels, asked))


class AdaptationPhase(LanguagePhase):
    """The published last stage: adapters, norms, Q-Former and projections are trained, the rest is frozen."""

    name = "adaptation"
    steps = 250
    validation_steps = 125

    def prepare(self, model: Oracle) -> None:
        add_adapters(model)

    def parameter_groups(self, model: Oracle, heads: VisionHeads) -> list[dict[str, Any]]:
        bridge = [entry for entry in vision_parameters(model) if not entry[0].startswith("vision.")]
        adapters = [entry for entry in language_parameters(model) if "factor_" in entry[0]]
        norms = [entry for entry in language_parameters(model) if entry[0].endswith("norm.weight")]
        layer_norms = [entry for entry in norms if "final" not in entry[0]]
        return groups_of(bridge, peak=1e-4) + groups_of(adapters, peak=3e-4) + groups_of(layer_norms, peak=1e-4)


def draw_pictures(
    split: Split, rng: np.random.Generator, drawn: int, generated: int
) -> tuple[NDArray[np.uint8], list[Scene]]:
    """Draws ``drawn`` of the split's pictures, half of them mirrored, and generates more."""
    pixels, scenes = generate(generated, rng)
    own_pixels, own_scenes = [], []
    for index in rng.choice(len(split.scenes), size=drawn, replace=False):
        picture, scene = split.pixels[index], split.scenes[index]
        if rng.random() < 0.5:
            picture, scene = mirror(picture, scene)
        own_pixels.append(picture)
        own_scenes.append(scene)
    return np.concatenate([np.stack(own_pixels), pixels]), own_scenes + scenes


def vision_parameters(model: Oracle) -> list[tuple[str, nn.Parameter]]:
    """Gives all parameters before the language model's."""
    return [(name, parameter) for name, parameter in model.named_parameters() if not name.startswith("language.")]


def language_parameters(model: Oracle) -> list[tuple[str, nn.Parameter]]:
    """Gives the language model's parameters but for the biases of q/k norms, which the published one doesn't train."""
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name.startswith("language.") and not name.endswith(("q_layernorm.bias", "k_layernorm.bias"))
    ]


def groups_of(parameters: Iterable[tuple[str, nn.Parameter]], peak: float) -> list[dict[str, Any]]:
    """Splits parameters into matrices, which decay, and the rest: norms, biases and embeddings."""
    matrices, others = [], []
    for name, parameter in parameters:
        decays = parameter.ndim == 2 and "embed" not in name
        (matrices if decays else others).append(parameter)
    return [
        {"params": matrices, "peak": peak, "weight_decay": 0.05},
        {"params": others, "peak": peak, "weight_decay": 0.0},
    ]


@torch.no_grad()
def measure_vision(model: Oracle, heads: VisionHeads, split: Split) -> dict[str, float]:
    """Gives the heads' accuracy and mean intersection over union on a split's pictures."""
    predicted = [
        torch.stack([logits.argmax(dim=1) for logits in heads(model.image_embeds(model.image_features(batch)))], dim=1)
        for batch in pixel_values(split.pixels).split(200)
    ]
    classes = torch.cat(predicted)
    labels = vision_labels(split.scenes)
    boxes = zip(classes[:, 2:].tolist(), labels[:, 2:].tolist(), strict=True)
    overlaps = [intersection_over_union(found, true) for found, true in boxes]
    return {
        "shape": (classes[:, 0] == labels[:, 0]).float().mean().item(),
        "colour": (classes[:, 1] == labels[:, 1]).float().mean().item(),
        "iou": sum(overlaps) / len(overlaps),
    }


PHASES: tuple[Phase, ...] = (VisionPhase(), LanguagePhase(), AdaptationPhase())
