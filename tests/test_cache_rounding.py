"""An int8 KV cache: what keys and values are rounded by, and that the graph's attention reads just those numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal, published_files
from networks import PHI, SIGLIP, Networks, open_decoder, random_tensors, together, write
from tinygptv.export.cache_attention import MANY
from tinygptv.export.cache_rounding import KEY_SHIFT, KEY_STEP, VALUE_STEP, Cache, CacheRounding
from tinygptv.export.parts import siglip
from tinygptv.export.rotation import orthogonal, rotate
from tinygptv.export.smoothing import Smoothing
from tinygptv.export.sources.model import Network
from tinygptv.export.torch_ops import Origin, TorchOps, Value
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, read_manifest
from tinygptv.runtime.bundle.sessions import check_version
from tinygptv.runtime.errors import BundleError
from tinygptv.runtime.language.decoder import ALL_LOGITS, Decoder
from torch import Tensor
from tqdm import tqdm

POSITIONS = 150
NETWORKS: Networks = together(Network(siglip, SIGLIP), language=replace(PHI, max_position_embeddings=POSITIONS))
CLOSE = 2e-4
"""Mean difference in standard deviations of logits, of which rounding makes ten times as much. The largest may be more:
a key at the border of two steps is rounded to either."""


class RoundedOps(TorchOps):
    """Computes with keys and values as an int8 cache has them."""

    def __init__(self, tensors: dict[str, Tensor], rounding: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self._rounding = rounding

    def causal_attention(self, q: Value, k: Value, v: Value, layer: int, name: str, heads: int) -> Value:
        shift, key_step, value_step = (self._rounding[f"{name}.{kind}"] for kind in (KEY_SHIFT, KEY_STEP, VALUE_STEP))
        block = orthogonal(k.data.shape[-1] // heads)
        keys = rotate(rounded(rotate(k.data - shift, block), key_step), block.t()) + shift
        return super().causal_attention(q, Value(keys), Value(rounded(v.data, value_step)), layer, name, heads)


def rounded(x: Tensor, step: Tensor) -> Tensor:
    return (x / step).round().clamp(-128, 127) * step


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Tensor, Tensor]:
    """A decoder with an int8 cache and float32 weights, an input [1, 150, hidden], and what torch makes of it."""
    folder = tmp_path_factory.mktemp("decoder")
    tensors = random_tensors(NETWORKS)
    network = NETWORKS[DECODER]
    x = some(1, POSITIONS, network.sizes.hidden_size, seed=3)
    with tqdm(disable=True) as bar:
        rounding = CacheRounding({}, bar)
        network.part.run(TorchOps(tensors, lambda name, x: None, rounding.observe), network.sizes, Value(x))
    wanted = network.part.run(RoundedOps(tensors, rounding.found), network.sizes, Value(x)).data[0]
    exact = network.part.run(TorchOps(tensors), network.sizes, Value(x)).data[0]
    assert 0.002 < float((wanted - exact).norm() / exact.norm()) < 0.05, "rounding shows, and is no more than that"
    graph = write(folder, NETWORKS, DECODER, tensors, cache=Cache("int8", rounding.found))
    return open_decoder(folder, graph, NETWORKS, "int8"), x, wanted


@pytest.mark.parametrize(
    "pieces",
    [
        (POSITIONS,),
        (MANY,) * 3,
        (MANY - 1,) * 3,
        (MANY, MANY, 1, 1, 1, MANY - 1),
        (1,) * 20,
        (5, MANY + 2, 1, 2, MANY + 20),
    ],
    ids=str,
)
def test_attention_reads_what_the_cache_holds(pieces: tuple[int, ...], case: tuple[Decoder, Tensor, Tensor]) -> None:
    """A token, a few, or as many as are attended to in float32; one after another."""
    decoder, x, wanted = case
    state, start = decoder.start(), 0
    for count in pieces:
        logits = torch.from_numpy(state.run(x[:, start : start + count].numpy(), ALL_LOGITS).copy())
        expected = wanted[start : start + count]
        differences = (logits - expected).abs() / expected.std()
        assert differences.mean() < CLOSE
        assert differences.max() < 0.02
        start += count


def test_both_ways_write_the_same_numbers(case: tuple[Decoder, Tensor, Tensor]) -> None:
    """In the first layer, whose keys and values are the same; further on a step may be the next one."""
    decoder, x, _ = case
    at_once, one_by_one = decoder.start(), decoder.start()
    at_once.run(x[:, :60].numpy())
    for i in range(60):
        one_by_one.run(x[:, i : i + 1].numpy())
    for number, (a, b) in enumerate(zip(at_once.cache.buffers, one_by_one.cache.buffers, strict=True)):
        apart = abs(a[:, :, :60].astype(int) - b[:, :, :60].astype(int))
        assert apart.max() <= (1 if number < 2 else 3)
        assert (apart > 0).mean() < (0.001 if number < 2 else 0.1)
        assert abs(a).max() > 60, "int8 is not made use of"


def test_steps_are_for_what_was_seen() -> None:
    """Of keys without their mean, rotated by head; of values as their layer's smoothing leaves them."""
    keys, values = some(2, 40, 32, seed=4) + 10, some(2, 40, 32, seed=5)
    smoothing = Smoothing(some(32, seed=6), some(32, seed=7).exp(), (), None)
    with tqdm(disable=True) as bar:
        rounding = CacheRounding({"qkv": smoothing}, bar)
        rounding.observe("attn", Value(keys), Value(values, Origin(values="qkv")), 2)
    found = rounding.found
    assert set(found) == {f"attn.{kind}" for kind in (KEY_SHIFT, KEY_STEP, VALUE_STEP)}
    seen = rotate(keys.flatten(0, 1) - found[f"attn.{KEY_SHIFT}"], orthogonal(16))
    torch.testing.assert_close(found[f"attn.{KEY_SHIFT}"], keys.mean((0, 1)))
    for x, step in ((seen, KEY_STEP), (smoothing.apply(values.flatten(0, 1)), VALUE_STEP)):
        reach = x.abs().amax(0) / found[f"attn.{step}"]
        largest = reach.unflatten(0, (2, 16)).amax(1)
        assert (largest > 60).all() and (reach < 128).all(), "saturates, or wastes most of its steps"


def test_calibration_is_needed(refusal: Refusal) -> None:
    for precision in ("int8", "fp32"):
        arguments = ("--precision", precision, "--kv-cache", "int8", "--calibration", "none")
        assert "--kv-cache int8 needs calibration" in refusal(published_files(3), *arguments)


@pytest.mark.parametrize(("version", "runs"), [("1.26.9", False), ("1.27.0", True), ("1.32.0", True), ("2.0.1", True)])
def test_older_versions_are_told(version: str, runs: bool, golden_bundle: Callable[[int, str], Path]) -> None:
    graphs = {kind: read_manifest(golden_bundle(3, kind)).graphs[DECODER] for kind in ("int8", "int8 cache")}
    check_version(Path("decoder.onnx"), graphs["int8"], version)
    if runs:
        check_version(Path("decoder.onnx"), graphs["int8 cache"], version)
    else:
        with pytest.raises(BundleError, match=f"int8 KV cache, which .* {version} .* install onnxruntime 1.27"):
            check_version(Path("decoder.onnx"), graphs["int8 cache"], version)


def test_answers_alone_and_together(golden_bundle: Callable[[int, str], Path], photo: Path) -> None:
    """Rows of a batch have other lengths than each other; a prefix is used again."""
    with TinyGPTV.load(golden_bundle(4, "int8 cache")) as model:
        assert model.manifest.contract.cache_dtype == "int8"
        image = model.encode_image(photo)
        questions = ["what?", "how many are there, and why?", "[caption]"]
        how: dict[str, Any] = {"max_new_tokens": 12}
        alone = [model.ask(image, question, **how).token_ids for question in questions]
        again = [model.ask(image, question, **how).token_ids for question in questions]
        together = [answer.token_ids for answer in model.ask_many([(image, question) for question in questions], **how)]
    assert alone == again == together
