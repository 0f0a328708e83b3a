"""From pixel values to image embeddings: the graphs of the vision encoder and the projector."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.sessions import check_finite
from ..cancel import Cancellation


class CancellableSession(Protocol):
    """A session of one graph, whose runs can be cancelled."""

    def run(self, outputs: list[str], inputs: dict[str, Any], cancellation: Cancellation, /) -> list[Any]:
        """Run the graph with these inputs; returns the named outputs."""


class Vision:
    """The vision encoder's and the projector's graphs; safe for concurrent use."""

    def __init__(self, encoder: CancellableSession, projector: CancellableSession) -> None:
        self._encoder = encoder
        self._projector = projector

    def image_features(
        self, pixel_values: NDArray[np.float32], cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Encode pixel values [batch, 3, size, size] to features [batch, tokens, width]."""
        inputs = {"pixel_values": pixel_values}
        features: NDArray[np.float32]
        (features,) = self._encoder.run(["image_features"], inputs, cancellation or Cancellation())
        return features

    def image_embeds(
        self, image_features: NDArray[np.float32], cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Project features [batch, tokens, width] to embeddings [batch, image tokens, hidden].

        Raises:
            BundleError: The embeddings are not finite.
        """
        inputs = {"image_features": image_features}
        embeds: NDArray[np.float32]
        (embeds,) = self._projector.run(["image_embeds"], inputs, cancellation or Cancellation())
        check_finite(embeds, "image_embeds")
        return embeds
