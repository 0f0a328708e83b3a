"""Makes the channels of a linear layer's input alike in range, so that int8 loses less of them and of the weights.

SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438, section 4): where every channel j of the input is
divided by s_j and the weights' column j multiplied by it, the product stays and the input's outliers shrink. Before
that each channel is moved to the middle of its range (Wei et al. 2023, https://arxiv.org/abs/2304.09145, section 4.1),
which the layer's bias takes back. Both cost nothing where a norm, or the values that attention mixes, can take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from tinygptv.runtime.architecture import LanguageArchitecture, VisionArchitecture
from torch import Tensor

INPUT_FACTOR = "input_factor"
"""Suffix of the tensor a linear layer's input is multiplied by, where nothing before it could take the division."""
STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of the range moves into the weights (alpha, in the paper's equation 4), tried in turn."""
SMALLEST_RANGE = 1e-5
"""A channel that was never seen active, or has no weights, keeps finite factors."""

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same tensor, and what can move and divide that tensor's channels.

    With neither ``norm`` nor ``values`` the graph divides, by ``<linear>.input_factor``, and nothing is moved.
    """

    linears: tuple[str, ...]
    norm: str = ""
    """The norm that the tensor comes from."""
    norm_has_bias: bool = True
    """An RMSNorm has none, and can divide but not move."""
    values: str = ""
    """The fused q, k, v layer of the attention that the tensor comes from: each channel mixes one row of v."""


@dataclass(frozen=True)
class Smoothing:
    """What the input x of a group becomes: (x - shift) / factor, each float32 [channels]."""

    shift: Tensor
    factor: Tensor
    biases: tuple[Tensor, ...]
    """What the shift takes off each linear layer's output and its bias gives back, float32 [rows]."""


def vision_groups(sizes: VisionArchitecture) -> Iterator[Group]:
    """The groups of the vision encoder, in the order of computation; names as in :mod:`.checkpoint`."""
    for i in range(sizes.num_hidden_layers):
        block = f"visual.blocks.{i}"
        yield Group((f"{block}.attn.qkv",), norm=f"{block}.norm1")
        yield Group((f"{block}.attn.proj",), values=f"{block}.attn.qkv")
        yield Group((f"{block}.mlp.fc1",), norm=f"{block}.norm2")
        yield Group((f"{block}.mlp.fc2",))


def decoder_groups(sizes: LanguageArchitecture) -> Iterator[Group]:
    """The groups of the decoder: one norm feeds both of a layer's branches."""
    for i in range(sizes.num_hidden_layers):
        layer = f"model.layers.{i}"
        qkv = f"{layer}.self_attn.qkv"
        yield Group((qkv, f"{layer}.mlp.fc1"), norm=f"{layer}.input_layernorm")
        yield Group((f"{layer}.self_attn.dense",), values=qkv)
        yield Group((f"{layer}.mlp.fc2",))
    yield Group(("lm_head",), norm="model.final_layernorm")


class Smoothed(Mapping[str, Tensor]):
    """A checkpoint's tensors with smoothing folded in: the same function, of weights that quantise better.

    Args:
        tensors: As :class:`.checkpoint.Checkpoint` gives them.
        smoothings: Of the groups that have one.
    """

    def __init__(self, tensors: Mapping[str, Tensor], smoothings: Mapping[Group, Smoothing]) -> None:
        self._tensors = tensors
        self._edits: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        self._factors: dict[str, Tensor] = {}
        for group, smoothing in smoothings.items():
            self._fold(group, smoothing)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._factors:
            return self._factors[name]
        tensor = self._tensors[name]
        for edit in self._edits.get(name, ()):
            tensor = edit(tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._factors

    def __len__(self) -> int:
        return len(self._tensors) + len(self._factors)

    def _fold(self, group: Group, smoothing: Smoothing) -> None:
        shift, factor = smoothing.shift, smoothing.factor
        for linear, given_back in zip(group.linears, smoothing.biases, strict=True):
            self._edit(f"{linear}.weight", lambda tensor: tensor * factor)
            # First: another group may divide the bias with the rest of a row.
            self._edits.setdefault(f"{linear}.bias", []).insert(0, partial(torch.add, given_back))
        if group.norm:
            self._edit(f"{group.norm}.weight", lambda tensor: tensor / factor)
            self._edit(f"{group.norm}.bias", lambda tensor: (tensor - shift) / factor)
        elif group.values:
            # v's rows are the last third; q and k stay. What attention mixes sums to one, so a shift of v is its own.
            rest = 2 * len(factor)
            moved, divisor = torch.cat((torch.zeros(rest), shift)), torch.cat((torch.ones(rest), factor))
            self._edit(f"{group.values}.weight", lambda tensor: tensor / divisor[:, None])
            self._edit(f"{group.values}.bias", lambda tensor: (tensor - moved) / divisor)
        else:
            for linear in group.linears:
                self._factors[f"{linear}.{INPUT_FACTOR}"] = 1 / factor

    def _edit(self, name: str, edit: Callable[[Tensor], Tensor]) -> None:
        self._edits.setdefault(name, []).append(edit)


def find_smoothing(
    group: Group,
    x: Tensor,
    weights: Iterable[Tensor],
    round_input: Callable[[Tensor, Tensor], Tensor],
    round_weight: Rounding,
) -> Smoothing | None:
    """The smoothing of a group with which int8 products come closest to exact ones, None where none is better.

    Args:
        group: Whose input it is.
        x: Input seen in calibration, float32 [tokens, channels].
        weights: Of the group's linear layers, float32 [rows, channels] each.
        round_input: What quantising does to (the smoothed input, its factor).
        round_weight: What quantising does to a weight matrix.
    """
    matrices = list(weights)
    movable = group.values or (group.norm and group.norm_has_bias)
    shifts = [torch.zeros(x.shape[1]), *([(x.amax(dim=0) + x.amin(dim=0)) / 2] if movable else [])]
    weight_reach = torch.stack([_reach(w) for w in matrices]).amax(dim=0)
    tokens, rows = _spread(x, SAMPLED_TOKENS), [_spread(w, SAMPLED_ROWS) for w in matrices]
    # Each layer's error in proportion to its own output: else the loudest would decide.
    loudness = [(tokens @ w.t()).norm().clamp_min(SMALLEST_RANGE) for w in rows]
    shift, factor, least = shifts[0], torch.ones_like(shifts[0]), torch.inf
    for tried in shifts:
        reach = _reach(x - tried)
        moved = tokens - tried
        exact = [moved @ w.t() for w in rows]
        for strength in STRENGTHS:
            divisor = reach**strength / weight_reach ** (1 - strength) if strength else torch.ones_like(reach)
            seen = round_input(moved / divisor, divisor)
            error = sum(
                float((seen @ round_weight(w * divisor).t() - wanted).norm() / loud) ** 2
                for w, wanted, loud in zip(rows, exact, loudness, strict=True)
            )
            if error < least * CLEARLY_LESS:
                shift, factor, least = tried, divisor, error
    if not shift.any() and bool((factor == 1).all()):
        return None
    return Smoothing(shift, factor, tuple(w @ shift for w in matrices))


CLEARLY_LESS = 0.9
"""Of the squared error of a weaker smoothing: what gains less was fitted to what calibration happened to see."""
SAMPLED_TOKENS, SAMPLED_ROWS = 512, 1024
"""Of the input and of each weight matrix, evenly spread: enough to tell strengths apart, in a fraction of the time."""


def _reach(x: Tensor) -> Tensor:
    """Root mean square of each column; the paper's largest magnitude did a little worse on a language model."""
    return x.square().mean(dim=0).sqrt().clamp_min(SMALLEST_RANGE)


def _spread(x: Tensor, count: int) -> Tensor:
    """At most ``count`` rows, evenly spread."""
    return x[:: -(-len(x) // count)]
