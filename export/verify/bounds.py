"""Limits on the difference between a bundle and the oracle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

from .agreement import Agreement


@dataclass(frozen=True)
class Bounds:
    """Limits on the values of :class:`.agreement.Agreement`: minimum for ``min_``, maximum for ``max_``."""

    min_image_features_cosine: float
    """Mean over the vision encoder's tokens."""
    min_image_features_worst_cosine: float
    """Worst token of the vision encoder."""
    min_image_embeds_cosine: float
    """Mean over the projector's tokens."""
    min_logits_cosine: float
    """Mean over the text's positions, like the two below."""
    max_kl: float
    """KL divergence of the bundle's next-token distribution from the oracle's, in nats."""
    min_top1: float
    """Share of positions at which both select the same token."""


class Checked(TypedDict):
    """One bound, and the measured value."""

    name: str
    value: float
    bound: float
    holds: bool


DEFAULTS = {
    "int4": Bounds(
        min_image_features_cosine=0.999,
        min_image_features_worst_cosine=0.99,
        min_image_embeds_cosine=0.999,
        min_logits_cosine=0.95,
        max_kl=0.2,
        min_top1=0.8,
    ),
    "int8": Bounds(
        min_image_features_cosine=0.999,
        min_image_features_worst_cosine=0.99,
        min_image_embeds_cosine=0.999,
        min_logits_cosine=0.998,
        max_kl=0.01,
        min_top1=0.95,
    ),
    "fp32": Bounds(
        min_image_features_cosine=0.999999,
        min_image_features_worst_cosine=0.99999,
        min_image_embeds_cosine=0.99999,
        min_logits_cosine=0.99999,
        max_kl=1e-5,
        min_top1=0.99,
    ),
}
"""Bounds by the precision of a bundle's least precise graph, that one first."""


def check(bounds: Bounds, found: Agreement) -> list[Checked]:
    """Check the measured values against each bound; NaN violates every bound."""
    features, embeds = found.row("image_features"), found.row("image_embeds")
    values = {
        "min_image_features_cosine": features.cosine_mean,
        "min_image_features_worst_cosine": features.cosine_worst,
        "min_image_embeds_cosine": embeds.cosine_mean,
        "min_logits_cosine": found.row("logits").cosine_mean,
        "max_kl": found.kl_mean,
        "min_top1": found.top1,
    }
    checked: list[Checked] = []
    for name, bound in dataclasses.asdict(bounds).items():
        value = values[name]
        holds = value <= bound if name.startswith("max_") else value >= bound
        checked.append(Checked(name=name, value=value, bound=bound, holds=holds))
    return checked
