"""Which linear layer is quantised how."""

from __future__ import annotations

import pytest
import torch
from tinygptv.export import precision
from tinygptv.export.ops import LEAST
from tinygptv.export.precision import GroupWise, PerChannel, candidates, chosen
from tinygptv.export.rounding import round_groups, round_rows
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_rounding_leaves() -> None:
    x, factor = some(6, 32), torch.exp(some(32, seed=2))
    assert torch.equal(GroupWise(16).round_weight(x), round_groups(x, 16))
    assert torch.equal(GroupWise(16).round_input(x, factor), round_groups(x, 16))
    assert torch.equal(PerChannel().round_weight(x), round_rows(x))
    assert torch.equal(PerChannel().round_input(x, factor), round_rows(x))
    least = LEAST["erf"]
    above = torch.nn.functional.gelu(2 * x) / factor
    error = (PerChannel(least).round_input(above, factor) - above).abs()
    assert error.max() > 0
    assert (error <= (above - least / factor).amax(1, keepdim=True) / 255 / 2 * 1.001).all()


def test_only_channels_make_use_of_a_least_value() -> None:
    assert PerChannel().above(-0.25) == PerChannel(-0.25)
    assert GroupWise(32).above(-0.25) == GroupWise(32)


@pytest.mark.parametrize("group_size", [16, 32, 128])
def test_candidates_of_a_group_size(group_size: int) -> None:
    of = candidates("int8", group_size)
    assert set(of) == {VISION_ENCODER, PROJECTOR, DECODER}
    for name in ("llama_proj", "projector.0"):
        assert of[PROJECTOR](name) == (GroupWise(min(group_size, 32)),)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert of[VISION_ENCODER](f"visual.blocks.1.{name}") == (PerChannel(),)
    for name in ("self_attn.qkv", "self_attn.dense", "mlp.fc1", "mlp.fc2"):
        assert of[DECODER](f"model.layers.2.{name}") == (GroupWise(group_size),)
    assert of[DECODER]("lm_head") == (GroupWise(16),)


def test_candidates_of_the_default() -> None:
    of = candidates("int8", None)
    assert of[PROJECTOR]("llama_proj") == (GroupWise(32),)
    for name in ("self_attn.qkv", "mlp.fc1", "mlp.fc2"):
        wider = GroupWise(256), GroupWise(128)
        assert of[DECODER](f"model.layers.2.{name}") == (PerChannel(), *wider, GroupWise(64))
    assert of[DECODER]("model.layers.2.self_attn.dense") == (GroupWise(64),)
    assert of[DECODER]("lm_head") == (GroupWise(16),)


def test_a_scheme_is_worthwhile_where_it_costs_less_than_more_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    schemes = GroupWise(128, bits=4), PerChannel(), GroupWise(128), GroupWise(64)
    costs = dict(zip(schemes, (0.5, 0.8, 0.7, 1.0), strict=True))
    monkeypatch.setattr(precision, "cost", costs.__getitem__)
    assert precision.worthwhile(schemes) == (schemes[0], schemes[2], schemes[3])
    costs[schemes[3]] = 0.4
    assert precision.worthwhile(schemes) == (schemes[3],)


def test_costs_are_in_proportion_to_groups_of_64() -> None:
    """On every CPU of the table, of which not all measured every way."""
    assert precision.cost(GroupWise(64)) == 1
    for scheme in (PerChannel(), GroupWise(32), GroupWise(128), GroupWise(32, bits=4), GroupWise(128, bits=4)):
        assert 0.2 < precision.cost(scheme) < 2
    assert precision.cost(GroupWise(32)) > 1 > precision.cost(GroupWise(128))


def test_candidates_of_4_bits() -> None:
    """Of the decoder alone, but for its last layer; the last resort is 8 bits, and 4 bits are allowed to cost more."""
    of, of_int8 = candidates("int4", None), candidates("int8", None)
    for name in ("self_attn.qkv", "self_attn.dense", "mlp.fc1", "mlp.fc2"):
        schemes = of[DECODER](f"model.layers.2.{name}")
        assert schemes == (GroupWise(128, bits=4), GroupWise(32, bits=4), GroupWise(64))
        assert [scheme.close_enough for scheme in schemes] == [0.02, 0.02, 3e-4]
        assert candidates("int4", 64)[DECODER](f"model.layers.2.{name}") == (GroupWise(64, bits=4), GroupWise(64))
    assert of[DECODER]("lm_head") == (GroupWise(32),) and of_int8[DECODER]("lm_head") == (GroupWise(16),)
    for graph, name in ((PROJECTOR, "llama_proj"), (VISION_ENCODER, "visual.blocks.1.mlp.fc1")):
        assert of[graph](name) == of_int8[graph](name)


def test_the_choice_or_the_most_exact() -> None:
    scheme_of = chosen(candidates("int8", None)[DECODER], {"a": PerChannel()})
    assert scheme_of("a") == PerChannel() and scheme_of("b") == GroupWise(64)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_layer_that_is_exact_has_none_in_any_graph(precision: str) -> None:
    for of in candidates(precision, 64, {"layer"}).values():
        scheme_of = chosen(of, {})
        assert scheme_of("layer") is None
        assert (scheme_of("another") is None) == (precision == "fp32")
