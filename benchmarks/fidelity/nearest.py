"""4 bits as llama.cpp's Q4_0 has them, for comparison: groups of 32, each value rounded by itself.

A group's value of largest magnitude becomes the step -8; a scale is that value / -8.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinygptv.export.gptq import PACKED_INT4, SCALES_INT4
from tinygptv.export.precision import GroupWise, SchemeOf, pack_int4, steps_int4
from torch import Tensor

Q4_0 = GroupWise(32, bits=4)


def rounded(tensors: Mapping[str, Tensor], scheme_of: SchemeOf) -> dict[str, Tensor]:
    """The packed weights of every linear layer whose scheme is :data:`Q4_0`."""
    found = {}
    for key, weight in tensors.items():
        name = key.removesuffix(".weight")
        if weight.ndim == 2 and scheme_of(name) == Q4_0:
            values = weight.unflatten(1, (-1, Q4_0.size))
            scales = values.gather(2, values.abs().argmax(dim=2, keepdim=True)) / -8
            found[f"{name}.{PACKED_INT4}"] = pack_int4(steps_int4(values, scales))
            found[f"{name}.{SCALES_INT4}"] = scales.squeeze(2)
    return found
