"""The quantisation of keys and values in an int8 KV cache: a shift, a rotation, and a scale for each channel.

Keys go into the cache after rotary positions, less their mean: to softmax, what is the same for all keys is nothing.
Then keys and queries are rotated alike (:mod:`.rotation`), head by head, which spreads what is loud in a few channels
over all of them; their products stay. Values were rotated with the weights where that helps (:mod:`.smoothing`).

Steps are fixed here, for what was seen in calibration. What is larger than 127 of them saturates, which costs far more
than larger steps do: a channel's range is the geometric mean of its own reach and its head's, and a margin for keys.
On a language model (benchmarks/fidelity) a cache with one step a layer costs a KL of 0.0044, this one 0.0010.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

from .rotation import orthogonal, rotate
from .rounding import LARGEST, SMALLEST_STEP
from .smoothing import Smoothing
from .torch_ops import Value

KEY_SHIFT, KEY_STEP, VALUE_STEP = "key_shift", "key_step", "value_step"
"""Suffixes of an attention's tensors, float32 [heads * head_dim]: the shift of keys, and the scales."""
KEY_MARGIN, VALUE_MARGIN = 1.2, 1.0


@dataclass(frozen=True)
class Cache:
    """How a decoder's KV cache is stored."""

    dtype: str
    """Data type: ``int8``, ``float16`` or ``float32``."""
    rounding: Mapping[str, Tensor] = field(default_factory=dict)
    """For ``int8``, the result of :class:`CacheRounding`."""


FLOAT32_CACHE = Cache("float32")


class CacheRounding:
    """Finds the quantisation of each attention while a decoder computes; see :class:`.torch_ops.TorchOps`.

    Args:
        smoothings: What becomes of each layer's values, by the linear layer that computes them.
        bar: Counts the attentions.
    """

    def __init__(self, smoothings: Mapping[str, Smoothing], bar: tqdm) -> None:
        self.found: dict[str, Tensor] = {}
        """The tensors found so far, by name."""
        self._smoothings, self._bar = smoothings, bar

    def observe(self, name: str, keys: Value, values: Value, heads: int) -> None:
        """Find the tensors of one attention, from keys and values [batch, sequence, heads * head_dim]."""
        k, v = (x.data.flatten(0, -2) for x in (keys, values))
        if values.origin.values in self._smoothings:
            v = self._smoothings[values.origin.values].apply(v)
        shift = k.mean(dim=0)
        k = rotate(k - shift, orthogonal(k.shape[1] // heads))
        self.found[f"{name}.{KEY_SHIFT}"] = shift
        self.found[f"{name}.{KEY_STEP}"] = _steps(k, heads) * KEY_MARGIN
        self.found[f"{name}.{VALUE_STEP}"] = _steps(v, heads) * VALUE_MARGIN
        self._bar.update()


def _steps(x: Tensor, heads: int) -> Tensor:
    """Scales of each channel, float32 [channels], from observed values [tokens, channels]."""
    reach = x.abs().amax(dim=0).unflatten(0, (heads, -1))
    spread = (reach * reach.amax(dim=1, keepdim=True)).sqrt().flatten()
    return (spread / LARGEST).clamp_min(SMALLEST_STEP)
