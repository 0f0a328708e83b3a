"""Makes the channels of a linear layer's input alike in range, so that int8 loses less of them and of the weights.

What is left of the outliers, a rotation spreads (:mod:`.rotation`).

SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438, section 4): where every channel j of the input is
divided by s_j and the weights' column j multiplied by it, the product stays and the input's outliers shrink. Before
that each channel is moved to the middle of its range (Wei et al. 2023, https://arxiv.org/abs/2304.09145, section 4.1),
which the layer's bias takes back. Both cost nothing where a norm, or the values that attention mixes, can take them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .parts import Part
from .precision import Scheme
from .rotation import block_of, orthogonal, rotate
from .torch_ops import TorchOps, Value

INPUT_FACTOR = "input_factor"
"""Suffix of the tensor a linear layer's input is multiplied by, where nothing before it could take the division."""
INPUT_ROTATION = "input_rotation"
"""Suffix of the rotation block for a linear layer's input, if no earlier layer can absorb the rotation."""
STRENGTHS = (0.0, 0.5)
"""How much of the range moves into the weights (alpha, in the paper's equation 4), tried in turn: none, or one half.
Where rounding errs alike in all channels, as after a rotation, one half is the least error (by Cauchy's inequality)."""
SMALLEST_RANGE = 1e-5
"""A channel that was never seen active, or has no weights, keeps finite factors."""


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same tensor, and what can move and divide that tensor's channels.

    With neither ``norm`` nor ``values`` the graph divides, by ``<linear>.input_factor``, and nothing is moved.
    """

    linears: tuple[str, ...]
    norm: str = ""
    """Name of the norm whose output the tensor is."""
    norm_has_bias: bool = True
    """Whether the norm has a bias; without one (RMSNorm) it can divide but not shift."""
    values: str = ""
    """The fused q, k, v layer of the attention that the tensor comes from: each channel mixes one row of v."""
    heads: int = 0
    """Number of heads of that attention."""
    least: float | None = None
    """Lower bound of the tensor's values."""


@dataclass(frozen=True)
class Smoothing:
    """What the input x of a group becomes: (x - shift) / factor, each float32 [channels], and then rotated."""

    shift: Tensor
    factor: Tensor
    biases: tuple[Tensor, ...]
    """What the shift takes off each linear layer's output and its bias gives back, float32 [rows]."""
    rotation: Tensor | None = None
    """The block of a rotation, float32 [size, size]; None for none."""
    error: float = 0.0
    """Squared int8 error of the group's products, relative to the output: mean over tokens, summed over layers."""

    def apply(self, x: Tensor) -> Tensor:
        """Apply the smoothing to an input [tokens, channels]."""
        return _rotated((x - self.shift) / self.factor, self.rotation)

    @property
    def nothing(self) -> bool:
        """Whether the smoothing leaves the input unchanged."""
        return self.rotation is None and not self.shift.any() and bool((self.factor == 1).all())


def groups_of(part: Part, sizes: Any) -> tuple[Group, ...]:
    """The groups of a part in the order of computation, found by running it on the meta device."""
    shapes = part.tensors(sizes)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    readers: dict[Value, list[str]] = {}
    ops: Any = _Listening(TorchOps(tensors, lambda name, x: readers.setdefault(x, []).append(name)))
    result = part.run(ops, sizes, Value(torch.empty(part.example_input(sizes), device="meta")))
    return tuple(_group(x, linears, x in ops.read_otherwise or x is result) for x, linears in readers.items())


def _group(x: Value, linears: Sequence[str], read_otherwise: bool) -> Group:
    if read_otherwise:  # what reads it so would get the divided channels, too
        return Group(tuple(linears), least=x.origin.least)
    origin = x.origin
    return Group(tuple(linears), origin.norm, origin.norm_has_bias, origin.values, origin.heads, origin.least)


class _Listening:
    """Forwards operations, and records the tensors that are read by anything but a linear layer."""

    def __init__(self, ops: TorchOps) -> None:
        self._ops = ops
        self.read_otherwise: set[Value] = set()

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def listening(*arguments: Any) -> Any:
            if verb not in PASSING:
                self.read_otherwise |= {x for x in arguments if isinstance(x, Value)}
            return getattr(self._ops, verb)(*arguments)

        return listening


PASSING = ("linear", "split_linear", "wide_linear", "chunked", "last_positions")
"""Operations that only feed linear layers or pass a tensor on; not ``tap``, which exposes it."""


class Smoothed(Mapping[str, Tensor]):
    """A model's tensors with smoothing folded in: the same function, of weights that quantise better.

    Args:
        tensors: The model's, by name; float32.
        smoothings: Smoothing by group; groups without one are left unchanged.
        rounded: Further tensors, that a :class:`.compensation.Compensator` made of the others.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        smoothings: Mapping[Group, Smoothing],
        rounded: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self._edits: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        self._added: dict[str, Tensor] = dict(rounded or {})
        for group, smoothing in smoothings.items():
            self._fold(group, smoothing)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._added[name] if name in self._added else self._tensors[name]
        for edit in self._edits.get(name, ()):
            tensor = edit(tensor)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self._tensors

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._added

    def __len__(self) -> int:
        return len(self._tensors) + len(self._added)

    def _fold(self, group: Group, smoothing: Smoothing) -> None:
        shift, factor, block = smoothing.shift, smoothing.factor, smoothing.rotation
        for linear, given_back in zip(group.linears, smoothing.biases, strict=True):
            self._edit(f"{linear}.weight", lambda tensor: _rotated(tensor * factor, block))
            self._need_bias(linear, len(given_back), shift)
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
            self._need_bias(group.values, len(divisor), shift)
            self._edit(f"{group.values}.bias", lambda tensor: (tensor - moved) / divisor)
            if block is not None:
                self._edit(f"{group.values}.weight", lambda tensor: _values_rotated(tensor, rest, block))
                self._edit(f"{group.values}.bias", lambda tensor: _values_rotated(tensor, rest, block))
        elif bool((factor != 1).any()):
            for linear in group.linears:
                self._added[f"{linear}.{INPUT_FACTOR}"] = 1 / factor
        if block is not None and not group.values:
            for linear in group.linears:
                self._added[f"{linear}.{INPUT_ROTATION}"] = block

    def _need_bias(self, linear: str, rows: int, shift: Tensor) -> None:
        """Give a layer without a bias one of zeros, so that a shift can be added to it."""
        if shift.any() and f"{linear}.bias" not in self:
            self._added[f"{linear}.bias"] = torch.zeros(rows)

    def _edit(self, name: str, edit: Callable[[Tensor], Tensor]) -> None:
        self._edits.setdefault(name, []).append(edit)


def _rotated(x: Tensor, block: Tensor | None) -> Tensor:
    return x if block is None else rotate(x, block)


def _values_rotated(x: Tensor, rest: int, block: Tensor) -> Tensor:
    """Rotate the rows of v, which follow the first ``rest``, of a weight [rows, columns] or a bias [rows]."""
    return torch.cat((x[:rest], rotate(x[rest:].t(), block).t()))


def find_smoothing(
    group: Group,
    x: Tensor,
    weights: Iterable[Tensor],
    scheme: Scheme,
) -> Smoothing:
    """The smoothing of a group that minimises the error of its int8 products.

    Args:
        group: The group that reads the input.
        x: Input seen in calibration, float32 [tokens, channels].
        weights: Weights of the group's linear layers, float32 [rows, channels] each.
        scheme: The quantisation of the layers.
    """
    matrices = list(weights)
    zero, width = torch.zeros(x.shape[1]), x.shape[1]
    movable = group.values or (group.norm and group.norm_has_bias)
    shifts = [zero, *([(x.amax(dim=0) + x.amin(dim=0)) / 2] if movable else [])]
    size = width // group.heads if group.values else block_of(width)
    blocks = [None, *([orthogonal(size)] if size > 1 else [])]
    weight_reach = torch.stack([_reach(w) for w in matrices]).amax(dim=0)
    tokens, rows = _spread(x, SAMPLED_TOKENS), [_spread(w, SAMPLED_ROWS) for w in matrices]
    loudness = [_loudness(tokens @ w.t()) for w in rows]
    found: list[Smoothing] = []
    for shift in shifts:
        reach = _reach(x - shift)
        moved = tokens - shift
        exact = [moved @ w.t() for w in rows]
        for strength, block in product(STRENGTHS, blocks):
            factor = reach**strength / weight_reach ** (1 - strength) if strength else torch.ones_like(reach)
            # A rotated input is as likely above 0 as below.
            fitting = scheme.above(group.least) if group.least is not None and block is None else scheme
            seen = fitting.round_input(_rotated(moved / factor, block), factor)
            error = sum(
                float(
                    (seen @ scheme.round_weight(_rotated(w * factor, block)).t() - wanted)
                    .norm(dim=1)
                    .div(loud)
                    .square()
                    .mean()
                )
                for w, wanted, loud in zip(rows, exact, loudness, strict=True)
            )
            # Where float32 overflows, anything finite is better.
            found.append(Smoothing(shift, factor, (), block, torch.inf if math.isnan(error) else error))
    best = min(found, key=lambda one: one.error)
    if best.error >= found[0].error * CLEARLY_LESS:
        best = found[0]
    return replace(best, biases=tuple(w @ best.shift for w in matrices))


CLEARLY_LESS = 0.97
"""Maximum error relative to no smoothing at all: a smaller gain would only be fitted to the calibration data."""
SAMPLED_TOKENS, SAMPLED_ROWS = 512, 1024
"""Rows sampled from the input and from each weight matrix, evenly spaced: enough to compare strengths, and faster."""


def _reach(x: Tensor) -> Tensor:
    """Root mean square of each column; on a language model, the paper's largest magnitude was slightly worse."""
    return x.square().mean(dim=0).sqrt().clamp_min(SMALLEST_RANGE)


def _loudness(products: Tensor) -> Tensor:
    """What the errors of a layer's output [tokens, rows] are in proportion to, float32 [tokens].

    To the root mean square of the tokens' magnitudes, so that no layer decides for being loud; and of louder tokens to
    their own, so that neither does one of these: some are a hundred times as loud as the rest, and then the rest came
    out worse (an image's worst token: cosine 0.9980 instead of 0.9992, benchmarks/fidelity).
    """
    magnitudes = products.norm(dim=1)
    return magnitudes.clamp_min(magnitudes.square().mean().sqrt()).clamp_min(SMALLEST_RANGE)


def _spread(x: Tensor, count: int) -> Tensor:
    """At most ``count`` rows, evenly spaced."""
    return x[:: -(-len(x) // count)]
