"""What a bundle computes of what the published code computed; for the tests, and for check.py on other machines.

It needs the runtime and what that depends on, no more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.language.decoder import ALL_LOGITS

Array = NDArray[np.float32]


def cosines(found: Array, expected: Array) -> Array:
    """Over the last axis."""
    assert found.shape == expected.shape
    products = (found * expected).sum(-1)
    return products / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)


def run_bundle(bundle: Path, expected: dict[str, Array]) -> dict[str, Array]:
    """What a bundle computes from the pixel values, and from the expected prompt and ids."""
    with TinyGPTV.load(bundle) as model:
        vision, decoder = model._vision, model._decoder
        assert vision is not None and decoder is not None
        state = decoder.start()
        prefill = state.run(expected["inputs_embeds"], ALL_LOGITS).copy()
        steps = [prefill[-1]]
        for token_id in expected["greedy_ids"]:
            steps.append(state.run(model._engine.table.rows([int(token_id)])[np.newaxis])[0].copy())
        features = vision.image_features(expected["pixel_values"])
        return {
            "image_features": features,
            "image_embeds": vision.image_embeds(features),
            "prefill_logits": prefill[np.newaxis],
            "step_logits": np.stack(steps),
        }
