"""A graph that gives no numbers, since its weights are damaged or overflow: an error, where it was "!!!!" once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION, bundle_with, spoil
from tinygptv.runtime import BundleError, TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER

PAGE = 4096


@pytest.fixture(params=[np.nan, np.inf, -np.inf])
def damage(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    """Puts what is no number into the middle of a file of float32 weights."""

    def damaged(data: bytes) -> bytes:
        middle = len(data) // 2 // PAGE * PAGE
        numbers = np.full(PAGE // 4, request.param, np.float32).tobytes()
        return data[:middle] + numbers + data[middle + PAGE :]

    return damaged


@pytest.mark.parametrize(
    ("graph", "output"), [(VISION_ENCODER, "image_embeds"), (PROJECTOR, "image_embeds"), (DECODER, "logits")]
)
def test_an_error_tells(
    graph: str,
    output: str,
    damage: Callable[[bytes], bytes],
    golden_bundle: Callable[[int, str], Path],
    photo: Path,
    tmp_path: Path,
) -> None:
    bundle = bundle_with(golden_bundle(4, "fp32"), tmp_path / "bundle")
    spoil(bundle, f"{graph}.onnx.data", damage)
    with TinyGPTV.load(bundle, image_cache=tmp_path / "seen") as model:
        for _ in range(2):  # nothing of it is kept for the second time
            with pytest.raises(
                BundleError, match=f"^{output} of the bundle's graphs holds NaN or infinity: .* bundle verify"
            ):
                model.ask(photo, QUESTION)
        with pytest.raises(BundleError, match=output):
            list(model.ask_each([(photo, QUESTION)] * 3))
    assert list(tmp_path.glob("seen/*/*")) == [] or graph == DECODER
