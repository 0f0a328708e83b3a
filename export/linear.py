"""Linear layers: the one place where a precision becomes operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tinygptv.runtime.manifest import Quantization
from torch import Tensor

from .graph import CONTRIB, GraphWriter
from .quantize import LARGEST, LARGEST_UNSIGNED, SMALLEST_STEP, ZERO_POINT, quantize_blocks, quantize_rows
from .schemes import Blocks, Rows, SchemeOf
from .smoothing import INPUT_FACTOR

ACCURACY_LEVEL_INT8 = 4
"""MatMulNBits computes with int8 activations; levels 0 and 1 unpack every weight to float32 at every token."""


class Linears:
    """Writes a graph's linear layers.

    Args:
        graph: Where to.
        tensors: Weights and biases, ``<name>.weight`` float32 [rows, columns] and ``<name>.bias`` float32 [rows], and
            where smoothing needs one ``<name>.input_factor`` float32 [columns], that the input is multiplied by.
        scheme_of: How each layer is quantised.
    """

    def __init__(self, graph: GraphWriter, tensors: Mapping[str, Tensor], scheme_of: SchemeOf) -> None:
        self._graph, self._tensors, self._scheme_of = graph, tensors, scheme_of

    def __call__(self, x: str, name: str, *layers: str) -> str:
        """``x @ weight.T + bias`` as the tensor ``name``.

        Args:
            x: Tensor [..., columns].
            name: Of the result; also prefixes its weights' names.
            layers: Linear layers that share ``x``, whose outputs follow one another; the one called ``name`` if none.
        """
        layers = layers or (name,)
        weight, bias = (
            torch.cat(parts) if len(parts) > 1 else parts[0]
            for parts in ([self._tensors[f"{layer}.{p}"] for layer in layers] for p in ("weight", "bias"))
        )
        factor = f"{name}.{INPUT_FACTOR}"
        divisor = torch.ones(weight.shape[1])
        scheme = self._scheme_of(name)
        minimum = scheme.minimum if isinstance(scheme, Rows) else None
        if minimum is not None:
            # Shifted by a constant, so that the steps begin at 0; the bias takes the constant back.
            least = self._graph.constant(f"minimum_{minimum}", np.float32(minimum))
            x = self._graph.op("Sub", [x, least], name=f"{name}.up")
        if factor in self._tensors:
            divisor = self._tensors[factor]
            x = self._graph.op("Mul", [x, self._graph.constant(factor, divisor)], name=f"{name}.smooth")
        if isinstance(scheme, Blocks):
            return self._blocks(x, name, weight, bias, scheme.size)
        if isinstance(scheme, Rows):
            return self._rows(x, name, weight, bias, None if minimum is None else minimum * divisor)
        product = self._graph.op(
            "MatMul", [x, self._graph.constant(f"{name}.weight", weight.t())], name=f"{name}.product"
        )
        return str(self._graph.op("Add", [product, self._graph.constant(f"{name}.bias", bias)], name=name))

    def _blocks(self, x: str, name: str, weight: Tensor, bias: Tensor, size: int) -> str:
        graph = self._graph
        rows, columns = weight.shape
        packed, scales = quantize_blocks(weight, size)
        graph.quantized(Quantization(bits=8, block_size=size, symmetric=True, operator="MatMulNBits", layers=1))
        inputs = [x, graph.constant(f"{name}.weight_int8", packed), graph.constant(f"{name}.scales", scales)]
        return str(
            graph.op(
                "MatMulNBits",
                [*inputs, "", "", graph.constant(f"{name}.bias", bias)],
                name=name,
                domain=CONTRIB,
                K=columns,
                N=rows,
                bits=8,
                block_size=size,
                accuracy_level=ACCURACY_LEVEL_INT8,
            )
        )

    def _rows(self, x: str, name: str, weight: Tensor, bias: Tensor, minimum: Tensor | None) -> str:
        """``minimum``, float32 [columns]: what ``x`` had taken off, so that it is never below 0."""
        graph = self._graph
        packed, scales = quantize_rows(weight)
        graph.quantized(
            Quantization(bits=8, block_size=None, symmetric=True, operator="MatMulIntegerToFloat", layers=1)
        )
        one, axis = graph.constant("one", np.float32(1)), graph.constant("last_axis", [-1])
        if minimum is None:
            size, steps, zero = graph.op("Abs", [x], name=f"{name}.abs"), LARGEST, ZERO_POINT
        else:
            size, steps, zero = x, LARGEST_UNSIGNED, 0
            bias = bias + (packed.float() @ minimum) * scales
        largest = graph.op("ReduceMax", [size, axis], name=f"{name}.largest", keepdims=1)
        step = graph.op("Mul", [largest, graph.constant(f"one_{steps}th", np.float32(1 / steps))], name=f"{name}.range")
        step = graph.op("Max", [step, graph.constant("smallest_step", np.float32(SMALLEST_STEP))], name=f"{name}.step")
        scaled = graph.op("Div", [x, step], name=f"{name}.scaled")
        zero_point = graph.constant(f"zero_point_{zero}", np.uint8(zero))
        tokens = graph.op("QuantizeLinear", [scaled, one, zero_point], name=f"{name}.uint8")
        product = graph.op(
            "MatMulIntegerToFloat",
            [
                tokens,
                graph.constant(f"{name}.weight_int8", packed.t()),
                one,
                graph.constant(f"{name}.scales", scales),
                zero_point,
            ],
            name=f"{name}.product",
            domain=CONTRIB,
        )
        product = graph.op("Mul", [product, step], name=f"{name}.restored")
        return str(graph.op("Add", [product, graph.constant(f"{name}.bias", bias)], name=name))
