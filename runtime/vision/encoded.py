"""An encoded image: encoded once, used for many questions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image that was encoded: encode once, ask many times.

    Two are equal, and have the same hash, if their embeddings and sizes are equal.
    """

    embeds: NDArray[np.float32]
    """What the decoder reads, float32 [image tokens, hidden]; read-only."""
    width: int
    """Width of the upright original picture, in pixels."""
    height: int
    preprocess_seconds: float
    """Reading, decoding and resizing the picture."""
    encode_seconds: float
    """Vision encoder."""
    project_seconds: float
    """Projector. All three are close to 0 for a cached image."""
    view: tuple[float, float, float, float]
    """What the model saw as its square: left, top, right and bottom in pixels of the original picture. Negative and
    beyond the picture where it was padded, less than the picture where it was cropped."""

    def __post_init__(self) -> None:
        if self.embeds.flags.writeable:  # somebody else's array, who may go on to write in it
            embeds = self.embeds.copy()
            embeds.setflags(write=False)
            object.__setattr__(self, "embeds", embeds)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the embeddings: the same whatever file they came from."""
        return hashlib.sha256(self.embeds.tobytes()).hexdigest()

    def __reduce__(self) -> tuple[type[EncodedImage], tuple[object, ...]]:
        return EncodedImage, tuple(getattr(self, field.name) for field in fields(self))  # a copy is read-only, too

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedImage) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[object, ...]:
        return self.key, self.embeds.shape, self.width, self.height, self.view
