"""What every vision encoder here is given: one picture of 448 x 448 as pixel_values, float32 [1, 3, 448, 448]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, PATCH, WIDTH = 448, 14, 1408
TOKENS = 1 + (SIZE // PATCH) ** 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CALIBRATION_PHOTOS = ("chelsea", "coffee", "rocket", "hubble_deep_field")
UNSEEN_PHOTO = "astronaut"
"""Fidelity is looked at on a photo that calibration did not see. All of them ship with scikit-image."""


def noise() -> NDArray[np.float32]:
    """The same noise for every peer: how long a picture takes does not depend on what it shows."""
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)


def photo(name: str) -> NDArray[np.float32]:
    """A photo of scikit-image, resized and normalised as this project's runtime does it."""
    from PIL import Image
    from skimage import data

    image = Image.fromarray(getattr(data, name)()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[np.newaxis] / 255
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return np.ascontiguousarray((pixels - mean) / std)


def fidelity(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """How near image_features [1, tokens, width] are to the exact ones: cosine a token, and relative error of all."""
    found, expected = (np.asarray(features, np.float64)[0] for features in (found, expected))
    cosines = (found * expected).sum(axis=1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))
    return {
        "mean_token_cosine": float(cosines.mean()),
        "worst_token_cosine": float(cosines.min()),
        "relative_error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
    }
