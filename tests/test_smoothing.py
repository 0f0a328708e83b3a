"""Smoothing keeps the function, divides what int8 rounds, and is done only where it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN_STAGES, computed, golden_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import CASES, Networks, open_decoder, random_input, random_tensors, run_vision, write
from tinygptv.export.ops import LEAST
from tinygptv.export.precision import GroupWise, PerChannel, Scheme
from tinygptv.export.rotation import block_of, orthogonal, rotate
from tinygptv.export.smoothing import (
    INPUT_FACTOR,
    INPUT_ROTATION,
    SMALLEST_RANGE,
    STRENGTHS,
    Group,
    Smoothed,
    Smoothing,
    find_smoothing,
    groups_of,
)
from tinygptv.export.torch_ops import Value
from tinygptv.runtime.bundle.manifest import DECODER, VISION_ENCODER
from tinygptv.runtime.language.decoder import ALL_LOGITS
from torch import Tensor

Expected = Callable[[int], dict[str, np.ndarray]]
TOLERANCE = 1e-3
"""Of the largest difference, in standard deviations: factors of 0.1 to 10 cost some of float32's digits."""
SCHEMES = (PerChannel(), PerChannel(LEAST["erf"]), GroupWise(16))
SMOOTHED = (VISION_ENCODER, DECODER)
INPUTS = {VISION_ENCODER: "pixel_values", DECODER: "inputs_embeds"}


def all_groups(networks: Networks, graphs: Sequence[str] = SMOOTHED) -> list[Group]:
    return [group for graph in graphs for group in groups_of(networks[graph].part, networks[graph].sizes)]


def random_smoothings(
    networks: Networks, tensors: Mapping[str, Tensor], graphs: Sequence[str] = SMOOTHED
) -> dict[Group, Smoothing]:
    """For every group: factors of 0.1 to 10 for most channels, a rotation, and a shift where something can take it."""
    generator = torch.Generator().manual_seed(5)
    smoothings = {}
    for group in all_groups(networks, graphs):
        shift, factor = torch.randn(2, tensors[f"{group.linears[0]}.weight"].shape[1], generator=generator)
        shift = shift if (group.norm and group.norm_has_bias) or group.values else torch.zeros_like(shift)
        given_back = tuple(tensors[f"{linear}.weight"] @ shift for linear in group.linears)
        size = len(shift) // group.heads if group.values else block_of(len(shift))
        smoothings[group] = Smoothing(shift, factor.exp(), given_back, orthogonal(size))
    return smoothings


def deviation(found: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> float:
    assert found.shape == expected.shape
    return float(abs(found - expected).max() / expected.std())


# The groups


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_a_group_is_all_the_layers_that_read_one_tensor(stage: int, expected: Expected) -> None:
    """As their inputs have it: each linear layer is in one group, and a group's first is computed first."""
    checkpoint = golden_checkpoint(stage)
    for graph, entry in INPUTS.items():
        seen: list[tuple[str, Tensor]] = []

        def observe(name: str, x: Value, seen: list[tuple[str, Tensor]] = seen) -> None:
            seen.append((name, x.data.clone()))

        computed(checkpoint.networks, checkpoint, graph, torch.from_numpy(expected(stage)[entry]), observe)
        together: list[list[str]] = []
        for i, (name, x) in enumerate(seen):
            same = (names for names in together if torch.equal(dict(seen[:i])[names[0]], x))
            if (names := next(same, None)) is None:
                together.append([name])
            else:
                names.append(name)
        assert together == [list(group.linears) for group in all_groups(checkpoint.networks, [graph])]


def tower_groups(activation: float) -> list[Group]:
    """Of a tower's three blocks; what comes before the first and after the last takes part in no group."""
    groups = []
    for i in range(3):
        block = f"visual.blocks.{i}"
        groups += [
            Group((f"{block}.attn.qkv",), norm=f"{block}.norm1"),
            Group((f"{block}.attn.proj",), values=f"{block}.attn.qkv", heads=2),
            Group((f"{block}.mlp.fc1",), norm=f"{block}.norm2"),
            Group((f"{block}.mlp.fc2",), least=activation),
        ]
    return groups


def phi_groups() -> list[Group]:
    groups = []
    for i in range(2):
        layer = f"model.layers.{i}"
        groups += [
            Group((f"{layer}.self_attn.qkv", f"{layer}.mlp.fc1"), norm=f"{layer}.input_layernorm"),
            Group((f"{layer}.self_attn.dense",), values=f"{layer}.self_attn.qkv", heads=2),
            Group((f"{layer}.mlp.fc2",), least=LEAST["tanh"]),
        ]
    return [*groups, Group(("lm_head",), norm="model.final_layernorm")]


def qformer_groups() -> list[Group]:
    """Its norms' outputs are added to what comes next, so none of them may be divided."""
    groups = []
    layer = "Qformer.bert.encoder.layer"
    for i in range(3):
        attention, cross = f"{layer}.{i}.attention", f"{layer}.{i}.crossattention"
        groups += [
            Group(tuple(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
            Group((f"{attention}.output.dense",)),
        ]
        if i % 2 == 0:
            groups += [Group((f"{cross}.self.query",)), Group((f"{cross}.output.dense",))]
        groups += [
            Group((f"{layer}.{i}.intermediate_query.dense",)),
            Group((f"{layer}.{i}.output_query.dense",), least=LEAST["erf"]),
        ]
    # All layers look at the same picture.
    picture = Group(tuple(f"{layer}.{i}.crossattention.self.{part}" for i in (0, 2) for part in ("key", "value")))
    groups.insert(3, picture)
    # Of the last norm, which no other layer reads, verify shows the output: it stays what it is.
    return [*groups, Group(("llama_proj",)), Group(("llama_proj2",))]


GROUPS = {
    "eva_clip": tower_groups(LEAST["erf"]),
    "qformer": qformer_groups(),
    "phi": phi_groups(),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_of_every_part(name: str) -> None:
    graph, networks = CASES[name]
    network = networks[graph]
    if network.name == "mlp":
        layers = network.sizes.num_hidden_layers
        expected = [Group((f"projector.{i}",), least=LEAST["erf"] if i else None) for i in range(layers)]
    elif network.name in ("clip", "siglip"):
        expected = tower_groups(LEAST[network.sizes.hidden_act])
    else:
        expected = GROUPS[network.name]
    assert all_groups(networks, [graph]) == expected


# Smoothed tensors


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_the_function_stays(stage: int, expected: Expected, tmp_path: Path) -> None:
    """In the graphs, in float32, with every group smoothed at random."""
    checkpoint, arrays = golden_checkpoint(stage), expected(stage)
    networks = checkpoint.networks
    tensors = Smoothed(checkpoint, random_smoothings(networks, checkpoint))
    graph = write(tmp_path, networks, VISION_ENCODER, tensors)
    features = run_vision(tmp_path, graph, torch.from_numpy(arrays["pixel_values"]))
    assert deviation(features.numpy(), arrays["image_features"]) < TOLERANCE
    decoder = open_decoder(tmp_path, write(tmp_path, networks, DECODER, tensors), networks)
    logits = decoder.start().run(arrays["inputs_embeds"], ALL_LOGITS)[np.newaxis]
    assert deviation(logits, arrays["prefill_logits"]) < TOLERANCE


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_rotations_alone_are_exact(stage: int, expected: Expected, tmp_path: Path) -> None:
    """As close to what the published code computed as a graph without them has to be."""
    checkpoint, arrays = golden_checkpoint(stage), expected(stage)
    networks = checkpoint.networks
    rotations = {
        group: Smoothing(one.shift * 0, one.factor**0, tuple(bias * 0 for bias in one.biases), one.rotation)
        for group, one in random_smoothings(networks, checkpoint).items()
    }
    tensors = Smoothed(checkpoint, rotations)
    graph = write(tmp_path, networks, VISION_ENCODER, tensors)
    features = run_vision(tmp_path, graph, torch.from_numpy(arrays["pixel_values"]))
    assert deviation(features.numpy(), arrays["image_features"]) < 2e-4
    decoder = open_decoder(tmp_path, write(tmp_path, networks, DECODER, tensors), networks)
    logits = decoder.start().run(arrays["inputs_embeds"], ALL_LOGITS)[np.newaxis]
    assert deviation(logits, arrays["prefill_logits"]) < 2e-4


@pytest.mark.parametrize("name", CASES)
def test_the_function_of_every_part_stays(name: str, tmp_path: Path) -> None:
    graph, networks = CASES[name]
    plain, x = random_tensors(networks), random_input(networks[graph])
    tensors = Smoothed(plain, random_smoothings(networks, plain, [graph]))
    written = write(tmp_path, networks, graph, tensors)
    if graph == DECODER:
        logits = open_decoder(tmp_path, written, networks).start().run(x.numpy(), ALL_LOGITS)
        found = torch.from_numpy(logits)[None]
    else:
        found = run_vision(tmp_path, written, x)
    assert deviation(found, computed(networks, plain, graph, x)) < TOLERANCE


@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_inputs_are_moved_and_divided(stage: int, expected: Expected) -> None:
    """Where a norm or the values take it, which are rotated, too; elsewhere the graph does it."""
    checkpoint = golden_checkpoint(stage)
    found = random_smoothings(checkpoint.networks, checkpoint)
    smoothings = {
        group: one if group.values else replace(one, rotation=None)
        for group, one in found.items()
        if group.norm or group.values
    }
    smoothing_of = {linear: smoothing for group, smoothing in smoothings.items() for linear in group.linears}
    plain: dict[str, Tensor] = {}
    smooth: dict[str, Tensor] = {}
    for tensors, seen in ((checkpoint, plain), (Smoothed(checkpoint, smoothings), smooth)):
        observe = lambda name, x, seen=seen: seen.update({name: x.data.clone()})  # noqa: E731
        for graph, entry in INPUTS.items():
            computed(checkpoint.networks, tensors, graph, torch.from_numpy(expected(stage)[entry]), observe)
    assert {name for name in plain if name not in smoothing_of} == {name for name in plain if name.endswith("mlp.fc2")}
    for name, x in plain.items():
        if one := smoothing_of.get(name):
            assert deviation(smooth[name], x) > 0.1, name
            x = (x - one.shift) / one.factor
            x = x if one.rotation is None else rotate(x, one.rotation)
        assert deviation(smooth[name], x) < TOLERANCE, name


HEADLESS = "phi without head bias"


@pytest.mark.parametrize("moved", [True, False])
def test_a_layer_without_a_bias_gets_one_where_its_input_is_moved(moved: bool) -> None:
    """Bunny's lm_head."""
    graph, networks = CASES[HEADLESS]
    plain, x = random_tensors(networks), random_input(networks[graph])
    (group,) = (group for group in all_groups(networks, [graph]) if group.linears == ("lm_head",))
    smoothing = random_smoothings(networks, plain, [graph])[group]
    smoothing = replace(smoothing, rotation=None)
    if not moved:
        smoothing = Smoothing(torch.zeros_like(smoothing.shift), smoothing.factor, (torch.zeros(44),))
    assert "lm_head.bias" not in plain
    tensors = Smoothed(plain, {group: smoothing})
    assert ("lm_head.bias" in tensors) == ("lm_head.bias" in list(tensors)) == moved
    if moved:
        assert torch.equal(tensors["lm_head.bias"], smoothing.biases[0])
    found, wanted = (computed(networks, weights, graph, x) for weights in (tensors, plain))
    assert deviation(found, wanted) < TOLERANCE


def test_folding_reads_nothing() -> None:
    """A model's tensors are read from its files, and only once."""
    checkpoint = golden_checkpoint(3)
    smoothings = random_smoothings(checkpoint.networks, checkpoint)
    read: list[int] = []
    checkpoint.on_read(read.append)
    tensors = Smoothed(checkpoint, smoothings)
    assert "lm_head.weight" in tensors and "lm_head.bias" in tensors and "surprise" not in tensors
    assert read == []
    assert tensors["lm_head.weight"].isfinite().all()
    assert len(read) == 1


def test_it_is_a_mapping() -> None:
    checkpoint = golden_checkpoint(3)
    smoothings = random_smoothings(checkpoint.networks, checkpoint)
    tensors = Smoothed(checkpoint, smoothings)
    factors = {
        f"{group.linears[0]}.{INPUT_FACTOR}": 1 / smoothing.factor
        for group, smoothing in smoothings.items()
        if not (group.norm or group.values)
    }
    assert set(factors) == {name.replace("weight", INPUT_FACTOR) for name in checkpoint if "mlp.fc2.weight" in name}
    blocks = {
        f"{linear}.{INPUT_ROTATION}": smoothing.rotation
        for group, smoothing in smoothings.items()
        for linear in group.linears
        if not group.values
    }
    added = factors | blocks
    assert list(tensors)[: len(checkpoint)] == list(checkpoint)
    assert set(tensors) == {*checkpoint, *added}
    assert len(tensors) == len(list(tensors)) == len(checkpoint) + len(added)
    for name in tensors:
        assert name in tensors
        assert tensors[name].dtype == torch.float32
        assert tensors[name].shape == (added[name].shape if name in added else checkpoint.shape(name))
    for name, factor in added.items():
        assert torch.equal(tensors[name], factor)
    for unknown in ("lm_head.weigth", "", f"lm_head.{INPUT_FACTOR}", f"visual.blocks.0.attn.proj.{INPUT_FACTOR}"):
        assert unknown not in tensors
        with pytest.raises(KeyError):
            tensors[unknown]


def test_what_is_in_no_group_is_untouched() -> None:
    checkpoint = golden_checkpoint(3)
    group, smoothing = next(iter(random_smoothings(checkpoint.networks, checkpoint).items()))
    assert group.norm
    changed = {f"{layer}.{part}" for layer in (group.norm, *group.linears) for part in ("weight", "bias")}
    tensors = Smoothed(checkpoint, {group: replace(smoothing, rotation=None)})
    assert set(tensors) == set(checkpoint)
    assert {name for name in checkpoint if not torch.equal(tensors[name], checkpoint[name])} == changed
    none = Smoothed(checkpoint, {})
    assert all(torch.equal(none[name], checkpoint[name]) for name in checkpoint)


# Which factor and which rotation


PRIME = 67
"""Channels that only a block of 1 divides: nothing can be rotated."""
NORM, PLAIN = Group(("layer",), norm="norm"), Group(("layer",))
WITHOUT_BIAS = Group(("layer",), norm="norm", norm_has_bias=False)


@dataclass(frozen=True)
class Exact:
    """A scheme that rounds nothing, and keeps what it was asked to round."""

    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def above(self, least: float) -> Exact:
        self.limits.append(least)
        return self

    def round_weight(self, weight: Tensor) -> Tensor:
        return weight

    def round_input(self, x: Tensor, factor: Tensor) -> Tensor:
        self.asked.append((x, factor))
        return x


def found_for(x: Tensor, weights: list[Tensor], scheme: Scheme | Exact, group: Group = PLAIN) -> Smoothing | None:
    group = replace(group, linears=tuple(f"layer {i}" for i in range(len(weights))))
    found = find_smoothing(group, x, weights, scheme)
    return None if found.nothing else found


def relative_error(x: Tensor, weights: list[Tensor], one: Smoothing | None, scheme: Scheme) -> float:
    """Of the products in int8, each layer's in proportion to its own size."""
    by = torch.ones(x.shape[1]) if one is None else one.factor
    turned = (lambda values: values) if one is None or one.rotation is None else lambda v: rotate(v, one.rotation)
    seen = scheme.round_input(turned(x / by), by)
    total = 0.0
    for weight in weights:
        exact = x @ weight.t()
        error = (seen @ scheme.round_weight(turned(weight * by)).t() - exact).norm()
        total += float(error / exact.norm().clamp_min(SMALLEST_RANGE)) ** 2
    return total


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_is_picked_where_nothing_helps() -> None:
    x, weight = some(40, 32), some(24, 32, seed=2)
    assert found_for(torch.zeros(7, 32), [weight], PerChannel()) is None
    assert found_for(x, [torch.zeros(24, 32)], PerChannel()) is None
    # Without rounding, dividing and multiplying again can only lose.
    powers = 2.0 ** torch.arange(32).remainder(5)
    assert found_for(powers.expand(4, -1), [torch.eye(32)], Exact()) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_outlier_channel_is_smoothed(scheme: Scheme) -> None:
    """More tokens and rows than are looked at: the others gain as much."""
    x, weights = some(700, PRIME), [some(1500, PRIME, seed=2), 5 * some(96, PRIME, seed=3)]
    x[:, 5] *= 60
    if scheme == PerChannel(LEAST["erf"]):
        x = torch.nn.functional.gelu(x)
    found = found_for(x, weights, scheme)
    assert found is not None and found.rotation is None
    assert found.factor.shape == (PRIME,)
    assert found.factor[5] > 2 * found.factor[torch.arange(PRIME) != 5].max()
    assert relative_error(x, weights, found, scheme) < 0.5 * relative_error(x, weights, None, scheme)


@pytest.mark.parametrize("group", [PLAIN, Group(("layer",), values="qkv", heads=4)], ids=["blocks", "heads"])
def test_outliers_are_rotated(group: Group) -> None:
    """Each in its own token, so that no factor helps; what attention mixes, head by head."""
    x, weights = some(700, 320), [some(1500, 320, seed=2), 5 * some(96, 320, seed=3)]
    spikes = torch.arange(700) * 7 % 320
    x[torch.arange(700), spikes] += 40 * some(700, seed=4).sign()
    found = found_for(x, weights, PerChannel(), group)
    assert found is not None and found.rotation is not None
    assert found.rotation.shape == ((80, 80) if group.values else (64, 64))
    assert relative_error(x, weights, found, PerChannel()) < 0.1 * relative_error(x, weights, None, PerChannel())


def test_what_is_rotated_may_be_below_its_least_value() -> None:
    scheme = Exact()
    x = torch.nn.functional.gelu(some(40, 32))
    assert found_for(x, [torch.eye(32)], scheme, Group(("layer",), least=-0.17)) is None
    assert 0 < len(scheme.limits) < len(scheme.asked)


def test_dead_channels_keep_no_other_from_being_smoothed() -> None:
    """One never seen active, one that no weight reads."""
    x, weight = some(100, PRIME), some(48, PRIME, seed=2)
    x[:, 5] *= 60
    x[:, 7] = 0
    weight[:, 9] = 0
    found = found_for(x, [weight], PerChannel())
    assert found is not None
    assert found.factor.isfinite().all() and found.factor.gt(0).all()
    assert relative_error(x, [weight], found, PerChannel()) < 0.5 * relative_error(x, [weight], None, PerChannel())


def test_every_layer_of_a_group_counts() -> None:
    """What helps the loudest of them is left alone where it costs another more."""
    x = some(100, PRIME)
    x[:, 5] *= 10
    plain, spiked = some(48, PRIME, seed=2), 30 * some(48, PRIME, seed=3)
    spiked[:, 5] *= 50
    assert found_for(x, [spiked], PerChannel()) is not None
    for order in ([plain, spiked], [spiked, plain]):
        assert found_for(x, order, PerChannel()) is None


def test_rounding_is_given_the_factor() -> None:
    """What a channel's least value has become depends on it."""
    scheme = Exact()
    x, weight = some(20, PRIME), some(8, PRIME, seed=2)
    find_smoothing(PLAIN, x, [weight], scheme)
    assert len(scheme.asked) == len(STRENGTHS)
    assert torch.equal(scheme.asked[0][1], torch.ones(PRIME)), "no smoothing is tried too"
    for divided, factor in scheme.asked:
        assert torch.equal(divided, x / factor)


VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False),
    st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False),
)


@st.composite
def products(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """An input [tokens, channels] and weights [rows, channels], with a constant and a dead channel at times."""
    channels = draw(st.integers(1, 24))
    x = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), channels), elements=VALUES))
    weight = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), channels), elements=VALUES))
    x[:, draw(st.integers(0, channels - 1))] = draw(VALUES)
    weight[:, draw(st.integers(0, channels - 1))] = draw(VALUES)
    return x, weight


@settings(deadline=None, max_examples=100)
@given(products(), st.sampled_from(SCHEMES))
@example((np.full((1, 1), 3e38, np.float32), np.full((1, 1), 3e38, np.float32)), PerChannel())
@example((np.full((1, 2), 3e38, np.float32), np.zeros((1, 2), np.float32)), GroupWise(16))
def test_it_is_never_worse_and_always_finite(drawn: tuple[np.ndarray, np.ndarray], scheme: Scheme) -> None:
    x, weight = (torch.from_numpy(array) for array in drawn)
    found = found_for(x, [weight], scheme)
    if found is None:
        return
    for values in (found.factor, 1 / found.factor, x / found.factor, weight * found.factor):
        assert values.isfinite().all()
    assert found.factor.gt(0).all()
    without = relative_error(x, [weight], None, scheme)
    # Where float32 itself overflows without smoothing, anything finite is better.
    assert relative_error(x, [weight], found, scheme) <= without or math.isnan(without)


# Where the middle of a channel is


@pytest.mark.parametrize("scheme", [PerChannel(), GroupWise(16)], ids=str)
def test_channels_far_from_zero_are_moved(scheme: Scheme) -> None:
    """Only where a norm or the values can take that."""
    x, weight = some(100, 32), some(48, 32, seed=2)
    x[:, 5] += 60
    found = found_for(x, [weight], scheme, NORM)
    assert found is not None
    torch.testing.assert_close(found.shift, (x.amax(0) + x.amin(0)) / 2)
    moved = relative_error(x - found.shift, [weight], found, scheme)
    # In proportion to smaller products: what was moved is exact.
    products = [(by @ weight.t()).norm() for by in (x, x - found.shift)]
    assert moved * float(products[1] / products[0]) ** 2 < 0.1 * relative_error(x, [weight], None, scheme)
    for group in (PLAIN, WITHOUT_BIAS):
        stays = found_for(x, [weight], scheme, group)
        assert stays is not None
        assert torch.equal(stays.shift, torch.zeros(32))


def test_nothing_is_done_where_nothing_can_be_moved_and_no_factor_helps() -> None:
    assert found_for(torch.zeros(7, 32), [some(24, 32)], PerChannel()) is None
