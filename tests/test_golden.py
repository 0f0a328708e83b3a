"""Exported bundles and the torch oracle against what the published code computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN_STAGES, golden_checkpoint
from golden_runs import cosines, run_bundle
from numpy.typing import NDArray
from tinygptv.export.verify.oracle import Oracle, load
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.language.decoder import ALL_LOGITS

Array = NDArray[np.float32]
Expected = Callable[[int], dict[str, Array]]
Bundle = Callable[[int, str], Path]
STAGES = ("image_features", "image_embeds", "prefill_logits", "step_logits")
TOLERANCE = 2e-4
"""Of the largest difference, in standard deviations of what is expected."""


def deviation(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


@pytest.fixture(scope="module", params=GOLDEN_STAGES)
def golden(request: pytest.FixtureRequest, expected: Expected) -> tuple[int, dict[str, Array]]:
    return request.param, expected(request.param)


@pytest.fixture(scope="module")
def fp32(golden: tuple[int, dict[str, Array]], golden_bundle: Bundle) -> dict[str, Array]:
    stage, expected = golden
    return run_bundle(golden_bundle(stage, "fp32"), expected)


@pytest.fixture(scope="module")
def int8(golden: tuple[int, dict[str, Array]], golden_bundle: Bundle) -> dict[str, Array]:
    stage, expected = golden
    return run_bundle(golden_bundle(stage, "int8"), expected)


@pytest.fixture(scope="module")
def int4(golden: tuple[int, dict[str, Array]], golden_bundle: Bundle) -> dict[str, Array]:
    stage, expected = golden
    return run_bundle(golden_bundle(stage, "int4"), expected)


@pytest.fixture(scope="module")
def oracle(golden: tuple[int, dict[str, Array]]) -> Oracle:
    checkpoint = golden_checkpoint(golden[0])
    model = Oracle(checkpoint.networks)
    load(model, checkpoint)
    return model.eval()


@pytest.mark.parametrize("name", STAGES)
def test_fp32_bundle_is_exact(name: str, golden: tuple[int, dict[str, Array]], fp32: dict[str, Array]) -> None:
    assert deviation(fp32[name], golden[1][name]) < TOLERANCE


def test_fp32_bundle_is_exact_from_picture_to_logits(
    golden: tuple[int, dict[str, Array]], golden_bundle: Bundle
) -> None:
    stage, expected = golden
    with TinyGPTV.load(golden_bundle(stage, "fp32")) as model:
        assert model._vision is not None and model._decoder is not None
        image_embeds = model._vision.image_embeds(model._vision.image_features(expected["pixel_values"]))
        before, after = (model._engine.table.rows(expected[f"input_ids_{side}"][0]) for side in ("before", "after"))
        inputs_embeds = np.concatenate((before, image_embeds[0], after))[np.newaxis]
        assert deviation(inputs_embeds, expected["inputs_embeds"]) < TOLERANCE
        logits = model._decoder.start().run(inputs_embeds, ALL_LOGITS)[np.newaxis]
    assert deviation(logits, expected["prefill_logits"]) < TOLERANCE


def test_fp32_bundle_chooses_the_same_ids(golden: tuple[int, dict[str, Array]], golden_bundle: Bundle) -> None:
    stage, expected = golden
    ids = expected["greedy_ids"].tolist()
    with TinyGPTV.load(golden_bundle(stage, "fp32")) as model:
        assert not set(ids) & set(model.manifest.eos_token_ids), "the published run did not stop at end of text"
        assert list(model.generate_ids(expected["inputs_embeds"], max_new_tokens=len(ids))) == ids


@pytest.mark.parametrize(
    ("name", "least"), [("image_embeds", 0.999), ("prefill_logits", 0.998), ("step_logits", 0.998)]
)
def test_int8_bundle_is_close(
    name: str, least: float, golden: tuple[int, dict[str, Array]], int8: dict[str, Array]
) -> None:
    assert cosines(int8[name], golden[1][name]).min() >= least
    assert deviation(int8[name], golden[1][name]) > TOLERANCE, "these weights are not int8"


@pytest.mark.parametrize(
    ("name", "mean", "least"),
    [("image_embeds", 0.999, 0.999), ("prefill_logits", 0.98, 0.95), ("step_logits", 0.98, 0.95)],
)
def test_int4_bundle_is_near(
    name: str, mean: float, least: float, golden: tuple[int, dict[str, Array]], int4: dict[str, Array]
) -> None:
    """Random weights of 100 columns have no redundancy: those of a trained model lose less."""
    found = cosines(int4[name], golden[1][name])
    assert found.mean() >= mean
    assert found.min() >= least
    if name != "image_embeds":
        assert found.mean() < 0.998, "these weights are not int4"


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_the_oracle_is_exact(name: str, golden: tuple[int, dict[str, Array]], oracle: Oracle) -> None:
    expected = {key: torch.from_numpy(array) for key, array in golden[1].items()}
    if name == "image_features":
        found = oracle.image_features(expected["pixel_values"])
    elif name == "image_embeds":
        found = oracle.image_embeds(expected["image_features"])
    elif name == "prefill_logits":
        found = oracle.logits(expected["inputs_embeds"])
    else:
        # Without a cache: a second way to the same numbers.
        tokens = oracle.embed(expected["greedy_ids"][None])
        found = oracle.logits(torch.cat((expected["inputs_embeds"], tokens), dim=1))[0, -tokens.shape[1] - 1 :]
    assert deviation(found.numpy(), golden[1][name]) < TOLERANCE


def test_the_oracle_chooses_the_same_ids_with_its_cache(golden: tuple[int, dict[str, Array]], oracle: Oracle) -> None:
    expected = golden[1]
    ids = expected["greedy_ids"].tolist()
    assert oracle.generate_ids(torch.from_numpy(expected["inputs_embeds"]), len(ids)) == [ids]
