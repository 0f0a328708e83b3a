"""How linear layers are quantised: the schemes, which of them a layer may get, and what each costs.

Group-wise: a scale for each group of values along the input dimension, of the weights (8 or 4 bits) and of the
activations (8 bits) alike; what MatMulNBits computes, fastest for one token at a time. Per-channel: a scale for each
output channel of the weights and one for each token of the activations; what MatMulIntegerToFloat computes, fastest for
many tokens at once. Which layer gets which is a kernel's speed against what its rounding costs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor

from .rounding import round_groups, round_groups_int4, round_rows, round_rows_above

PROJECTOR_GROUP_SIZE, CAREFUL_GROUP_SIZE = 32, 64
"""Group sizes of the projector, and of decoder layers for which faster schemes are not exact enough."""
LM_HEAD_GROUP_SIZES = {"int8": 16, "int4": 32}
"""Group size of the decoder's last layer, by precision. With 4-bit layers, 16 would not change the answers."""
LARGER_GROUP_SIZES = (256, 128)
"""Larger group sizes for decoder layers, tried first."""
INT4_GROUP_SIZES = (128, 32)
"""Group sizes of 4-bit weights, the fastest first: 128 decodes a token, and reads a prompt, 1.4 times as fast as 32
(MatMulNBits at Phi-2's sizes, Zen 4)."""
CLOSE_ENOUGH = 3e-4
"""Squared error of a layer's products in proportion to them, up to which calibration takes a faster scheme. Rounding
normally distributed inputs and weights costs half of it per-channel: (4 / 127)^2 / 12 each, where the largest of
thousands are four standard deviations. More is outliers that neither smoothing nor rotation could help."""
CLOSE_ENOUGH_INT4 = 0.02
"""As CLOSE_ENOUGH, for 4-bit weights: normally distributed ones in groups of 128 cost half of it too, each rounded
by itself."""


@dataclass(frozen=True)
class GroupWise:
    """MatMulNBits: weights of 8 or 4 bits and int8 activations, a scale for each group of values along the input.

    Args:
        size: Number of values in a group.
        bits: Bits of a weight.
    """

    size: int
    bits: int = 8

    @property
    def way(self) -> str:
        """Name in the table of costs."""
        return f"{'4 bits, ' if self.bits == 4 else ''}blocks {self.size}"

    @property
    def close_enough(self) -> float:
        """Maximum accepted squared error, relative to the products."""
        return CLOSE_ENOUGH if self.bits == 8 else CLOSE_ENOUGH_INT4

    def above(self, least: float) -> GroupWise:
        """The scheme for an input with a lower bound: unchanged, as groups do not use it."""
        return self

    def round_weight(self, weight: Tensor) -> Tensor:
        """A weight matrix [rows, columns] after quantisation and back."""
        return (round_groups if self.bits == 8 else round_groups_int4)(weight, self.size)

    def round_input(self, x: Tensor, factor: Tensor) -> Tensor:
        """An input [tokens, columns] after quantisation and back; a smoothing factor changes no group."""
        return round_groups(x, self.size)


@dataclass(frozen=True)
class PerChannel:
    """MatMulIntegerToFloat: weights int8 with a scale for each output channel, activations uint8 with one a token.

    Args:
        minimum: The input is never less, before smoothing: its 256 steps begin there. None: they are symmetric.
    """

    minimum: float | None = None

    @property
    def way(self) -> str:
        """Name in the table of costs."""
        return "rows"

    @property
    def close_enough(self) -> float:
        """Maximum accepted squared error, relative to the products."""
        return CLOSE_ENOUGH

    def above(self, least: float) -> PerChannel:
        """The scheme for an input with a lower bound."""
        return PerChannel(least)

    def round_weight(self, weight: Tensor) -> Tensor:
        """A weight matrix [rows, columns] after quantisation and back."""
        return round_rows(weight)

    def round_input(self, x: Tensor, factor: Tensor) -> Tensor:
        """An input [tokens, columns] divided by ``factor`` [columns], after quantisation and back."""
        return round_rows(x) if self.minimum is None else round_rows_above(x, self.minimum / factor)


Scheme = GroupWise | PerChannel
SchemeOf = Callable[[str], Scheme | None]
"""Maps a linear layer's name to its quantisation; None for none."""
CandidatesOf = Callable[[str], tuple[Scheme, ...]]
"""Maps a linear layer's name to possible quantisations, from the fastest to the most exact; empty for none."""


def candidates(precision: str, group_size: int | None, exact: Collection[str] = ()) -> dict[str, CandidatesOf]:
    """How each linear layer of each graph may be quantised, at a precision of ``int8``, ``int4`` or ``fp32``.

    Layers in ``exact`` are not. ``group_size``, where given, is that of all the decoder's layers, the last one's at
    most.

    The vision encoder reads hundreds of tokens at once, so its products are bound by arithmetic: per-channel. So is a
    prompt in the decoder, whose layers are per-channel too where that is close enough, or else in the largest groups
    that are, as far as those cost less (:func:`worthwhile`); but its last layer, whose
    rounding changes the answers most and which sees one token of a prompt, and its attention's, a twelfth of the
    weights and the least exact of them (benchmarks/fidelity). The projector is small itself, and its last product is
    what the decoder sees of an image: small groups.

    At ``int4`` the decoder's layers, but for the last one, have 4 bits where that is close enough.
    """
    if precision == "fp32":
        return dict.fromkeys((VISION_ENCODER, PROJECTOR, DECODER), lambda name: ())

    lm_head = LM_HEAD_GROUP_SIZES[precision]

    def decoder(name: str) -> tuple[Scheme, ...]:
        if name == "lm_head":
            return (GroupWise(min(group_size or lm_head, lm_head)),)
        if precision == "int4":
            sizes = INT4_GROUP_SIZES if group_size is None else (group_size,)
            return *(GroupWise(size, bits=4) for size in sizes), GroupWise(CAREFUL_GROUP_SIZE)
        if group_size is not None:
            return (GroupWise(group_size),)
        careful = GroupWise(CAREFUL_GROUP_SIZE)
        if name.endswith(".dense"):
            return (careful,)
        return worthwhile((PerChannel(), *(GroupWise(size) for size in LARGER_GROUP_SIZES), careful))

    def but_exact(candidates_of: CandidatesOf) -> CandidatesOf:
        return lambda name: () if name in exact else candidates_of(name)

    projector = GroupWise(min(group_size or PROJECTOR_GROUP_SIZE, PROJECTOR_GROUP_SIZE))
    return {
        VISION_ENCODER: but_exact(lambda name: (PerChannel(),)),
        PROJECTOR: but_exact(lambda name: (projector,)),
        DECODER: but_exact(decoder),
    }


COSTS = Path(__file__).with_name("costs.json")
"""Milliseconds of the decoder's products with each scheme, by CPU and number of tokens; benchmarks/full_size/kernels.py
measured them."""
PROMPTS, STEPS = 5, 32
"""What a question costs: passes of 70 tokens (a prompt has 70 with TinyGPT-V, 750 with some siblings), and of one."""


def cost(scheme: Scheme) -> float:
    """Cost of a question with its answer, relative to groups of 64; mean of the measured CPUs."""

    def on(milliseconds: Mapping[str, Mapping[str, float]], way: str) -> float:
        return PROMPTS * milliseconds["70"][way] + STEPS * milliseconds["1"][way]

    measured = [one for one in _costs() if scheme.way in one["1"]]
    return sum(on(one, scheme.way) / on(one, GroupWise(64).way) for one in measured) / len(measured)


def worthwhile(schemes: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    """Filters schemes, of which the most exact is last: keeps those that cost less than all later ones."""
    kept: list[Scheme] = []
    for scheme in reversed(schemes):
        if not kept or cost(scheme) < cost(kept[0]):
            kept.insert(0, scheme)
    return tuple(kept)


@functools.cache
def _costs() -> list[dict[str, dict[str, float]]]:
    return [cpu["milliseconds"] for cpu in json.loads(COSTS.read_text(encoding="utf-8")).values()]


def chosen(candidates_of: CandidatesOf, choice: Mapping[str, Scheme]) -> SchemeOf:
    """The scheme of each layer: the one in ``choice``, or the most exact one if it was not measured."""

    def scheme_of(name: str) -> Scheme | None:
        left = candidates_of(name)
        return choice.get(name, left[-1]) if left else None

    return scheme_of
