"""From pixel values to image embeddings: the vision encoder's and the projector's graphs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """What of an onnxruntime session is used here."""

    def run(self, outputs: list[str], inputs: dict[str, Any], /) -> list[Any]:
        """The outputs named, for these inputs."""


class Vision:
    """The two graphs that see; may be used by several threads at once."""

    def __init__(self, encoder: Session, projector: Session) -> None:
        self._encoder = encoder
        self._projector = projector

    def image_features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[batch, 3, size, size] to [batch, tokens, width]."""
        features: NDArray[np.float32] = self._encoder.run(["image_features"], {"pixel_values": pixel_values})[0]
        return features

    def image_embeds(self, image_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[batch, tokens, width] to [batch, queries, hidden]."""
        embeds: NDArray[np.float32] = self._projector.run(["image_embeds"], {"image_features": image_features})[0]
        return embeds
