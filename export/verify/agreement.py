"""The measures by which a bundle is compared with the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerAgreement:
    """One tensor of a graph compared with the oracle's, over all tokens of all photos or prompts."""

    graph: str
    row: str
    cosine_mean: float
    """Mean of the cosines of the tokens' vectors."""
    cosine_worst: float
    relative_error: float
    """Norm of the difference over norm of the oracle's, where both began with the same photos and texts."""
    own_error: float
    """The relative error if the oracle's layer gets the bundle's input: this layer's own share."""


@dataclass(frozen=True)
class Agreement:
    """How far a bundle is from the oracle."""

    layers: tuple[LayerAgreement, ...]
    """The layers in the order of computation."""
    positions: int
    """Number of text positions of the prompts, over which the three values below are computed."""
    kl_mean: float
    """KL divergence of the bundle's next-token distribution from the oracle's, in nats."""
    kl_worst: float
    top1: float
    """Share of positions at which both select the same token."""

    def row(self, name: str) -> LayerAgreement:
        """The only row called ``name``: ``image_features``, ``image_embeds`` or ``logits``."""
        (found,) = (layer for layer in self.layers if layer.row == name)
        return found

    @property
    def farthest(self) -> LayerAgreement:
        """The layer that adds most to the error; one with values that are not finite counts as the largest."""
        return max(self.layers, key=lambda layer: layer.own_error if layer.own_error >= 0 else float("inf"))


class LayerTally:
    """Accumulates a :class:`LayerAgreement`."""

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []
        self._norm = self._difference = self._own_norm = self._own_difference = 0.0

    def add(self, found: Tensor, reference: Tensor, own: Tensor) -> None:
        """Count tokens.

        Args:
            found: Output of the bundle, [tokens, width].
            reference: Output of the oracle from the same photos and texts.
            own: Output of the oracle's layer from the bundle's own input to this layer.
        """
        found, reference, own = found.double(), reference.double(), own.double()
        self._cosines.append(torch.nn.functional.cosine_similarity(found, reference, dim=-1))
        self._norm += float(reference.square().sum())
        self._difference += float((found - reference).square().sum())
        self._own_norm += float(own.square().sum())
        self._own_difference += float((found - own).square().sum())

    def result(self, graph: str, row: str) -> LayerAgreement:
        """The result over all tokens."""
        cosines = torch.cat(self._cosines)
        return LayerAgreement(
            graph=graph,
            row=row,
            cosine_mean=float(cosines.mean()),
            cosine_worst=float(cosines.min()),
            relative_error=(self._difference / self._norm) ** 0.5,
            own_error=(self._own_difference / self._own_norm) ** 0.5,
        )


class LogitsTally:
    """Accumulates the values of an :class:`Agreement` on next-token distributions."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []

    def add(self, found: Tensor, reference: Tensor) -> None:
        """Add positions: logits of the bundle and of the oracle, [positions, vocabulary]."""
        log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in (reference, found))
        self._kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
        self._same.append(found.argmax(dim=-1) == reference.argmax(dim=-1))

    def result(self, layers: tuple[LayerAgreement, ...]) -> Agreement:
        """The result over all positions."""
        kl, same = torch.cat(self._kl), torch.cat(self._same)
        return Agreement(
            layers=layers,
            positions=len(kl),
            kl_mean=float(kl.mean()),
            kl_worst=float(kl.max()),
            top1=float(same.double().mean()),
        )
