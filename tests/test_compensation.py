"""4-bit weights from a calibration: what is rounded, on which inputs, and that it helps the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN_STAGES, Refusal, golden_checkpoint, published_files
from tinygptv.export.calibration import PACKAGED, calibrate, find_calibration_set
from tinygptv.export.compensation import Compensator
from tinygptv.export.gptq import PACKED_INT4, SCALES_INT4, hessians, quantize_gptq
from tinygptv.export.precision import GroupWise, PerChannel, Scheme, candidates
from tinygptv.export.rotation import orthogonal
from tinygptv.export.rounding import quantize_groups_int4
from tinygptv.export.smoothing import Group, Smoothed, Smoothing, groups_of
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.export.torch_ops import Value
from tinygptv.runtime.bundle.manifest import DECODER
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


def dequantised(packed: Tensor, scales: Tensor, columns: int) -> Tensor:
    values = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(2).float() - 8
    return (values * scales.unsqueeze(2)).flatten(1)[:, :columns]


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_every_layer_of_a_model_loses_less(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what it reads in calibration, than where the same weights are each rounded to the nearest step."""
    model = golden_checkpoint(stage)
    tokenizer = build_tokenizer(model.description.tokenizer, model.networks[DECODER].sizes.vocab_size)
    inputs: dict[str, Tensor] = {}
    observe = Compensator.observe

    def watched(compensator: Compensator, name: str, x: Value) -> None:
        inputs[name] = x.data.flatten(0, -2)
        observe(compensator, name, x)

    monkeypatch.setattr(Compensator, "observe", watched)
    template = model.description.family.templates[0]
    with tqdm(disable=True) as bar:
        of_int4 = candidates("int4", None)
        found = calibrate(model, template, tokenizer, find_calibration_set(PACKAGED), of_int4, tmp_path, bar)
    smoothed = Smoothed(model, found.smoothings)
    groups = groups_of(model.networks[DECODER].part, model.networks[DECODER].sizes)
    ratios = []
    for group in groups:
        scheme = found.schemes[group.linears[0]]
        if not isinstance(scheme, GroupWise) or scheme.bits == 8:
            continue
        x = inputs[group.linears[0]]
        x = found.smoothings[group].apply(x) if group in found.smoothings else x
        for linear in group.linears:
            weight = smoothed[f"{linear}.weight"]
            compensated = found.rounded[f"{linear}.{PACKED_INT4}"], found.rounded[f"{linear}.{SCALES_INT4}"]
            lost, lost_by_nearest = (
                float((x @ (dequantised(*packed, weight.shape[1]) - weight).t()).norm())
                for packed in (compensated, quantize_groups_int4(weight, scheme.size))
            )
            ratios.append(lost / lost_by_nearest)
    assert len(found.rounded) == 2 * len(ratios) == 2 * 4 * model.networks[DECODER].sizes.num_hidden_layers
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.9


def test_calibration_is_needed(refusal: Refusal) -> None:
    message = refusal(published_files(3), "--precision", "int4", "--calibration", "none")
    assert "--precision int4 needs calibration" in message
