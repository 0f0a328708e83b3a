"""4-bit weights from a calibration: what is rounded, on which inputs, and that it helps the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refusal, export_arguments, published_files
from test_golden import cosines, run_bundle
from tinygptv.export.cli import main as export_main
from tinygptv.export.compensation import Compensator
from tinygptv.export.gptq import PACKED_INT4, SCALES_INT4, hessians, quantize_gptq
from tinygptv.export.precision import GroupWise, PerChannel, Scheme
from tinygptv.export.rotation import orthogonal
from tinygptv.export.smoothing import Group, Smoothed, Smoothing
from tinygptv.export.torch_ops import Value
from torch import Tensor
from tqdm import tqdm


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_rounded_for_their_smoothed_and_rotated_inputs(tmp_path: Path) -> None:
    """Groups of 4 bits alone, all layers of each; the tensors are read from the folder's files."""
    tensors = {f"{name}.weight": some(20, 64, seed=i) for i, name in enumerate("abcd")}
    groups = [Group(("a", "b")), Group(("c",)), Group(("d",))]
    schemes: dict[str, Scheme] = dict.fromkeys("ab", GroupWise(32, bits=4))
    schemes |= {"c": PerChannel(), "d": GroupWise(16, bits=4)}
    smoothing = Smoothing(some(64, seed=8), some(64, seed=9).exp(), (some(20), some(20)), orthogonal(64))
    smoothed = Smoothed(tensors, {groups[0]: smoothing})
    x = some(2, 30, 64, seed=7)
    with tqdm(disable=True) as bar:
        compensator = Compensator(smoothed, {groups[0]: smoothing}, schemes, groups, tmp_path, bar)
        assert compensator.awaited
        for name in "abcd":
            compensator.observe(name, Value(x))
    suffixes = (PACKED_INT4, SCALES_INT4)
    assert set(compensator.rounded) == {f"{name}.{suffix}" for name in "abd" for suffix in suffixes}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "d.pt"]
    inputs = ((x - smoothing.shift) / smoothing.factor).flatten(0, 1) @ orthogonal(64)
    for name, seen, size in (("a", inputs, 32), ("b", inputs, 32), ("d", x.flatten(0, 1), 16)):
        packed, scales = quantize_gptq(smoothed[f"{name}.weight"], hessians(seen), size)
        assert (compensator.rounded[f"{name}.{PACKED_INT4}"] != packed).float().mean() < 0.01, "sums in another order"
        torch.testing.assert_close(compensator.rounded[f"{name}.{SCALES_INT4}"], scales, rtol=1e-3, atol=0)


def test_nothing_to_round(tmp_path: Path) -> None:
    with tqdm(disable=True) as bar:
        compensator = Compensator({}, {}, {"a": PerChannel(), "b": GroupWise(32)}, [Group(("a",))], tmp_path, bar)
    assert not compensator.awaited


@pytest.mark.parametrize("stage", [3, 4])
def test_compensation_brings_logits_closer(
    stage: int,
    golden_bundle: Callable[[int, str], Path],
    expected: Callable[[int], dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Than the same weights, smoothed and rotated alike, each rounded to the nearest step."""
    compensated, nearest = golden_bundle(stage, "int4"), tmp_path / "nearest"
    monkeypatch.setattr(Compensator, "awaited", False)
    assert export_main(export_arguments(published_files(stage), nearest, "--precision", "int4")) == 0
    wanted = expected(stage)
    lost = [
        1 - cosines(run_bundle(folder, wanted)["prefill_logits"], wanted["prefill_logits"]).mean()
        for folder in (compensated, nearest)
    ]
    assert lost[0] < 0.95 * lost[1]


def test_calibration_is_needed(refusal: Refusal) -> None:
    message = refusal(published_files(3), "--precision", "int4", "--calibration", "none")
    assert "--precision int4 needs calibration" in message
