"""How linear layers are quantised, and which gets which: a kernel's speed against what its rounding costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from torch import Tensor

from .quantize import round_blocks, round_rows, round_rows_above

GELU_MINIMUM = -0.17
"""Just below the least value of x * Phi(x), -0.16997: no output of GELU needs a step of int8 for less."""
PROJECTOR_BLOCK_SIZE, LM_HEAD_BLOCK_SIZE = 32, 16
"""At most, of the projector, and of the decoder's last layer."""


@dataclass(frozen=True)
class Blocks:
    """MatMulNBits: weights and activations int8, a scale for each block of values along the input dimension."""

    size: int

    def round_weight(self, weight: Tensor) -> Tensor:
        """What quantising leaves of a weight matrix [rows, columns]."""
        return round_blocks(weight, self.size)

    def round_input(self, x: Tensor, factor: Tensor) -> Tensor:
        """What quantising leaves of an input [tokens, columns]; a smoothing factor changes no block."""
        return round_blocks(x, self.size)


@dataclass(frozen=True)
class Rows:
    """MatMulIntegerToFloat: weights int8 with a scale for each output, activations uint8 with a scale for each token.

    Args:
        minimum: The input is never less, before smoothing: its 256 steps begin there. None: they are symmetric.
    """

    minimum: float | None = None

    def round_weight(self, weight: Tensor) -> Tensor:
        """What quantising leaves of a weight matrix [rows, columns]."""
        return round_rows(weight)

    def round_input(self, x: Tensor, factor: Tensor) -> Tensor:
        """What quantising leaves of an input [tokens, columns] that was divided by ``factor`` [columns]."""
        return round_rows(x) if self.minimum is None else round_rows_above(x, self.minimum / factor)


Scheme = Blocks | Rows
SchemeOf = Callable[[str], Scheme | None]
"""How the linear layer of a name is quantised; None: not at all."""


def schemes(precision: str, block_size: int) -> dict[str, SchemeOf]:
    """The scheme of each linear layer of each graph, at a precision of ``int8`` or ``fp32``.

    The vision encoder reads a thousand tokens at once, so its products are bound by arithmetic: rows. The decoder reads
    one token, and is bound by memory: blocks, the smallest for its last layer, whose rounding tells most in the answers
    (benchmarks/fidelity). The projector is small itself, and its last product is what the decoder sees of an image:
    small blocks.
    """
    if precision == "fp32":
        return dict.fromkeys((VISION_ENCODER, PROJECTOR, DECODER), lambda name: None)
    blocks, projector, lm_head = (
        Blocks(min(block_size, most)) for most in (block_size, PROJECTOR_BLOCK_SIZE, LM_HEAD_BLOCK_SIZE)
    )
    return {
        VISION_ENCODER: lambda name: Rows(GELU_MINIMUM if name.endswith(".mlp.fc2") else None),
        PROJECTOR: lambda name: projector,
        DECODER: lambda name: lm_head if name == "lm_head" else blocks,
    }
