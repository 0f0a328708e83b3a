"""4 bits as llama.cpp has them, for comparison: Q4_0, by its definition, and Q4_K_M, by llama.cpp's own library.

Q4_0 has groups of 32, each value rounded by itself: a group's value of largest magnitude becomes the step -8; a scale
is that value / -8. Q4_K_M is Q4_K, with Q6_K for some layers' values and second products of the MLP.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from tinygptv.export.gptq import PACKED_INT4, SCALES_INT4
from tinygptv.export.precision import GroupWise, SchemeOf
from tinygptv.export.rounding import pack_int4, steps_int4
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


def q4_k_m(tensors: Mapping[str, Tensor], library: Path, layers: int) -> dict[str, Tensor]:
    """Weights of a vision transformer's blocks as they are after Q4_K_M, in float32.

    Super-blocks of 256 run on from a row to the next, so that a width of 384 has them too: llama.cpp itself would take
    more bits there (Q5_0 and Q8_0), and the comparison would be of 5.5 bits with 4.5.

    Args:
        tensors: Those of :mod:`vision_model`.
        library: ``libggml-base`` of an installed llama-cpp-python.
        layers: How many blocks there are.
    """
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
        ctypes.c_void_p,
    ]

    def rounded(weight: Tensor, kind: GGMLQuantizationType) -> Tensor:
        values = weight.contiguous().numpy().reshape(1, -1)
        packed = np.empty(values.nbytes, np.uint8)
        size = ggml.ggml_quantize_chunk(kind, values.ctypes.data, packed.ctypes.data, 0, 1, values.size, None)
        return torch.from_numpy(dequantize(packed[:size], kind).reshape(weight.shape).astype(np.float32))

    found = {}
    for i in range(layers):
        # llama.cpp's use_more_bits: the first and last eighth, and every third between.
        more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
        careful = GGMLQuantizationType.Q6_K if more else GGMLQuantizationType.Q4_K
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            key = f"visual.blocks.{i}.{name}.weight"
            parts = tensors[key].chunk(3 if name == "attn.qkv" else 1)
            kinds = {"attn.qkv": (GGMLQuantizationType.Q4_K,) * 2 + (careful,), "mlp.fc2": (careful,)}
            of_parts = zip(parts, kinds.get(name, (GGMLQuantizationType.Q4_K,)), strict=True)
            found[key] = torch.cat([rounded(part, kind) for part, kind in of_parts])
    return found
