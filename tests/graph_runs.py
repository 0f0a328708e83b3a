"""A bundle's graphs run one by one, as docs/bundle.md says, and comparisons of what they give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.bundle.sessions import open_session

Array = NDArray[np.float32]
CACHE_DTYPES = {"tensor(int8)": np.int8, "tensor(float16)": np.float16, "tensor(float)": np.float32}
TOLERANCE = 2e-4
"""Of the largest difference in fp32, in standard deviations of what is expected."""


def deviation(found: Array, expected: Array) -> float:
    """Largest difference in standard deviations of what is expected; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    return float(np.abs(found - expected).max() / expected.std())


def cosines(found: Array, expected: Array) -> Array:
    """Over the last axis."""
    assert found.shape == expected.shape
    products = (found * expected).sum(-1)
    return products / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)


class GraphRuns:
    """One bundle."""

    def __init__(self, bundle: Path) -> None:
        graphs = read_manifest(bundle).graphs
        self._vision, self._projector, self._decoder = (
            open_session(bundle, graphs[name], None) for name in ("vision_encoder", "projector", "decoder")
        )
        self._table = np.load(bundle / "embed_tokens.npy")

    def image_features(self, pixel_values: Array) -> Array:
        return self._vision.run(["image_features"], {"pixel_values": pixel_values})[0]

    def image_embeds(self, image_features: Array) -> Array:
        return self._projector.run(["image_embeds"], {"image_features": image_features})[0]

    def embed(self, ids: NDArray[np.int64]) -> Array:
        return self._table[ids][np.newaxis].astype(np.float32)

    def logits(self, inputs_embeds: Array, ids: NDArray[np.int64]) -> tuple[Array, Array]:
        """Of all positions of a prompt, [1, sequence, rows]; and where each id is read in turn, [1 + ids, rows]."""
        names = [output.name for output in self._decoder.get_outputs()]
        cache: dict[str, Any] = {}
        for spec in self._decoder.get_inputs():
            if spec.name.startswith("past_key_values."):
                cache[spec.name] = np.zeros((1, spec.shape[1], 0, spec.shape[3]), CACHE_DTYPES[spec.type])
        length, logits = 0, []
        for embeds in (inputs_embeds, *(self.embed(ids[i : i + 1]) for i in range(len(ids)))):
            start, length = length, length + embeds.shape[1]
            inputs = {
                "inputs_embeds": embeds,
                "position_ids": np.arange(start, length)[np.newaxis],
                "seqlens_k": np.array([length - 1], np.int32),
                "total_sequence_length": np.array(length, np.int32),
                "num_logits_to_keep": np.array(0, np.int64),
            }
            outputs = dict(zip(names, self._decoder.run(names, inputs | cache), strict=True))
            logits.append(outputs["logits"])
            cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        prefill = logits[0]
        return prefill, np.concatenate([prefill[0, -1:], *(step[0] for step in logits[1:])])

    def run(self, expected: dict[str, NDArray[Any]]) -> dict[str, Array]:
        """Everything from the pixel values on; each stage reads what the one before it gave."""
        features = self.image_features(expected["pixel_values"])
        embeds = self.image_embeds(features)
        before, after = (self.embed(expected[f"input_ids_{side}"]) for side in ("before", "after"))
        prefill, steps = self.logits(np.concatenate((before, embeds, after), axis=1), expected["greedy_ids"])
        return {"image_features": features, "image_embeds": embeds, "prefill_logits": prefill, "step_logits": steps}
