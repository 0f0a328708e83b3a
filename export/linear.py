"""Linear layers: the one place where a precision becomes operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tinygptv.runtime.bundle.manifest import Quantization
from torch import Tensor

from .graph import CONTRIB, GraphWriter
from .precision import (
    LARGEST,
    LARGEST_UNSIGNED,
    SMALLEST_STEP,
    ZERO_POINT,
    GroupWise,
    PerChannel,
    Scheme,
    quantize_channels,
    quantize_groups,
)
from .smoothing import INPUT_FACTOR

ACCURACY_LEVEL_INT8 = 4
"""MatMulNBits computes with int8 activations; levels 0 and 1 unpack every weight to float32 at every token."""


class Linears:
    """Writes a graph's linear layers.

    Args:
        graph: Where to.
        tensors: ``<name>.weight`` float32 [rows, columns], ``<name>.bias`` float32 [rows] where the layer has one, and
            where smoothing needs one ``<name>.input_factor`` float32 [columns], that the input is multiplied by.
    """

    def __init__(self, graph: GraphWriter, tensors: Mapping[str, Tensor]) -> None:
        self._graph, self._tensors = graph, tensors

    def __call__(self, x: str, name: str, outputs: Sequence[str], scheme: Scheme | None) -> list[str]:
        """``x @ weight.T + bias``, in as many equal parts along the last axis as there are ``outputs``.

        Args:
            x: Tensor [..., columns].
            name: Of the layer.
            outputs: Names of the results.
            scheme: How it is quantised; None: not at all.
        """
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        biases = [None] * len(outputs) if bias is None else bias.tensor_split(len(outputs))
        parts = list(zip(outputs, weight.tensor_split(len(outputs)), biases, strict=True))
        factor = f"{name}.{INPUT_FACTOR}"
        divisor = torch.ones(weight.shape[1])
        minimum = scheme.minimum if isinstance(scheme, PerChannel) else None
        if minimum is not None:
            # Shifted by a constant, so that the steps begin at 0; the bias takes the constant back.
            least = self._graph.constant(f"minimum_{minimum}", np.float32(minimum))
            x = self._graph.op("Sub", [x, least], name=f"{name}.up")
        if factor in self._tensors:
            divisor = self._tensors[factor]
            x = self._graph.op("Mul", [x, self._graph.constant(factor, divisor)], name=f"{name}.smooth")
        if isinstance(scheme, GroupWise):
            return [self._group_wise(x, *part, scheme.size) for part in parts]
        if isinstance(scheme, PerChannel):
            tokens = self._quantized_tokens(x, name, None if minimum is None else minimum * divisor)
            return [self._per_channel(tokens, *part) for part in parts]
        return [self._floats(x, *part) for part in parts]

    def _floats(self, x: str, name: str, weight: Tensor, bias: Tensor | None) -> str:
        inputs = [x, self._graph.constant(f"{name}.weight", weight.t())]
        return self._biased(self._graph.op("MatMul", inputs, name=f"{name}.product"), name, bias)

    def _biased(self, product: str, name: str, bias: Tensor | None) -> str:
        graph = self._graph
        if bias is None:
            return graph.op("Identity", [product], name=name)
        return graph.op("Add", [product, graph.constant(f"{name}.bias", bias)], name=name)

    def _group_wise(self, x: str, name: str, weight: Tensor, bias: Tensor | None, size: int) -> str:
        graph = self._graph
        rows, columns = weight.shape
        packed, scales = quantize_groups(weight, size)
        graph.quantized(Quantization(bits=8, block_size=size, symmetric=True, operator="MatMulNBits", layers=1))
        inputs = [x, graph.constant(f"{name}.weight_int8", packed), graph.constant(f"{name}.scales", scales)]
        return str(
            graph.op(
                "MatMulNBits",
                inputs if bias is None else [*inputs, "", "", graph.constant(f"{name}.bias", bias)],
                name=name,
                domain=CONTRIB,
                K=columns,
                N=rows,
                bits=8,
                block_size=size,
                accuracy_level=ACCURACY_LEVEL_INT8,
            )
        )

    def _quantized_tokens(self, x: str, name: str, minimum: Tensor | None) -> _Tokens:
        """``minimum``, float32 [columns]: what ``x`` had taken off, so that it is never below 0."""
        graph = self._graph
        axis = graph.constant("last_axis", [-1])
        if minimum is None:
            size, steps, zero = graph.op("Abs", [x], name=f"{name}.abs"), LARGEST, ZERO_POINT
        else:
            size, steps, zero = x, LARGEST_UNSIGNED, 0
        largest = graph.op("ReduceMax", [size, axis], name=f"{name}.largest", keepdims=1)
        step = graph.op("Mul", [largest, graph.constant(f"one_{steps}th", np.float32(1 / steps))], name=f"{name}.range")
        step = graph.op("Max", [step, graph.constant("smallest_step", np.float32(SMALLEST_STEP))], name=f"{name}.step")
        scaled = graph.op("Div", [x, step], name=f"{name}.scaled")
        one, zero_point = graph.constant("one", np.float32(1)), graph.constant(f"zero_point_{zero}", np.uint8(zero))
        steps_taken = graph.op("QuantizeLinear", [scaled, one, zero_point], name=f"{name}.uint8")
        return _Tokens(steps_taken, step, zero_point, minimum)

    def _per_channel(self, tokens: _Tokens, name: str, weight: Tensor, bias: Tensor | None) -> str:
        graph = self._graph
        packed, scales = quantize_channels(weight)
        graph.quantized(
            Quantization(bits=8, block_size=None, symmetric=True, operator="MatMulIntegerToFloat", layers=1)
        )
        if tokens.minimum is not None:
            given_back = (packed.float() @ tokens.minimum) * scales
            bias = given_back if bias is None else bias + given_back
        product = graph.op(
            "MatMulIntegerToFloat",
            [
                tokens.uint8,
                graph.constant(f"{name}.weight_int8", packed.t()),
                graph.constant("one", np.float32(1)),
                graph.constant(f"{name}.scales", scales),
                tokens.zero_point,
            ],
            name=f"{name}.product",
            domain=CONTRIB,
        )
        return self._biased(graph.op("Mul", [product, tokens.step], name=f"{name}.restored"), name, bias)


@dataclass(frozen=True)
class _Tokens:
    """An input that was quantised with one scale for each token."""

    uint8: str
    step: str
    """Tensor [..., 1]: what one step of ``uint8`` is worth."""
    zero_point: str
    minimum: Tensor | None
    """What was taken off before, float32 [columns]."""
