"""From pixel values to image embeddings: the vision encoder's and the projector's graphs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.sessions import check_finite
from ..cancel import Cancellation


class CancellableSession(Protocol):
    """A session of one graph, whose runs can be cancelled."""

    def run(self, outputs: list[str], inputs: dict[str, Any], cancellation: Cancellation, /) -> list[Any]:
        """The outputs named, for these inputs."""


class Vision:
    """The two graphs that see; may be used by several threads at once."""

    def __init__(self, encoder: CancellableSession, projector: CancellableSession) -> None:
        self._encoder = encoder
        self._projector = projector

    def image_features(
        self, pixel_values: NDArray[np.float32], cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """[batch, 3, size, size] to [batch, tokens, width]."""
        inputs = {"pixel_values": pixel_values}
        features: NDArray[np.float32]
        (features,) = self._encoder.run(["image_features"], inputs, cancellation or Cancellation())
        return features

    def image_embeds(
        self, image_features: NDArray[np.float32], cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """[batch, tokens, width] to [batch, image tokens, hidden].

        Raises:
            BundleError: The embeddings are not numbers.
        """
        inputs = {"image_features": image_features}
        embeds: NDArray[np.float32]
        (embeds,) = self._projector.run(["image_embeds"], inputs, cancellation or Cancellation())
        check_finite(embeds, "image_embeds")
        return embeds
