"""Linear layers: the only module that turns a precision into operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tinygptv.runtime.bundle.manifest import Quantization
from torch import Tensor

from .gptq import PACKED_INT4, SCALES_INT4
from .graph import CONTRIB, GraphWriter
from .precision import GroupWise, PerChannel, Scheme
from .rounding import LARGEST, LARGEST_UNSIGNED, ZERO_POINT, quantize_channels, quantize_groups, quantize_groups_int4
from .smoothing import INPUT_FACTOR, INPUT_ROTATION

ACCURACY_LEVEL_INT8 = 4
"""Makes MatMulNBits compute with int8 activations; levels 0 and 1 unpack every weight to float32 at every token."""


class Linears:
    """Writes a graph's linear layers.

    Args:
        graph: The graph to write to.
        tensors: ``<name>.weight`` float32 [rows, columns], ``<name>.bias`` float32 [rows] where the layer has one, and
            where smoothing needs them ``<name>.input_factor`` float32 [columns], that the input is multiplied by, and
            ``<name>.input_rotation`` float32 [size, size], that blocks of it are multiplied by then; and where
            calibration rounded the weight to 4 bits, ``<name>.packed_int4`` and ``<name>.scales_int4``.
    """

    def __init__(self, graph: GraphWriter, tensors: Mapping[str, Tensor]) -> None:
        self._graph, self._tensors = graph, tensors
        self._smooth: dict[str, str] = {}
        self._quantized: dict[str, _Tokens] = {}

    def __call__(self, x: str, name: str, outputs: Sequence[str], scheme: Scheme | None) -> list[str]:
        """``x @ weight.T + bias``, split into equal parts along the last axis, one for each of ``outputs``.

        Args:
            x: Tensor [..., columns].
            name: Name of the layer.
            outputs: Names of the results.
            scheme: The quantisation; None for none.
        """
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        biases = [None] * len(outputs) if bias is None else bias.tensor_split(len(outputs))
        parts = list(zip(outputs, weight.tensor_split(len(outputs)), biases, strict=True))
        if isinstance(scheme, PerChannel):
            tokens = self._tokens(x, name, scheme)
            return [self._per_channel(tokens, *part) for part in parts]
        x = self._smoothed(x, name)
        if isinstance(scheme, GroupWise):
            return self._group_wise(x, name, outputs, weight, biases, scheme)
        return [self._floats(x, *part) for part in parts]

    def _smoothed(self, x: str, name: str) -> str:
        """``x`` with the layer's smoothing, computed once for all layers that read it."""
        if x not in self._smooth:
            graph, smooth = self._graph, x
            factor, rotation = (self._tensors.get(f"{name}.{kind}") for kind in (INPUT_FACTOR, INPUT_ROTATION))
            if factor is not None:
                smooth = graph.op("Mul", [x, graph.constant(f"{name}.{INPUT_FACTOR}", factor)], name=f"{name}.smooth")
            if rotation is not None:
                smooth = graph.by_blocks(smooth, rotation, name=f"{name}.rotated")
            self._smooth[x] = smooth
        return self._smooth[x]

    def _tokens(self, x: str, name: str, scheme: PerChannel) -> _Tokens:
        """``x`` quantised per-token, computed once for all layers that read it."""
        if x not in self._quantized:
            minimum = None
            if scheme.minimum is not None and f"{name}.{INPUT_ROTATION}" not in self._tensors:
                # Shifted by a constant, so that the steps begin at 0; the bias takes the constant back.
                least = self._graph.constant(f"minimum_{scheme.minimum}", np.float32(scheme.minimum))
                columns = self._tensors[f"{name}.weight"].shape[1]
                minimum = scheme.minimum * self._tensors.get(f"{name}.{INPUT_FACTOR}", torch.ones(columns))
                up = self._graph.op("Sub", [x, least], name=f"{name}.up")
            self._quantized[x] = self._quantized_tokens(
                self._smoothed(x if minimum is None else up, name), name, minimum
            )
        return self._quantized[x]

    def _floats(self, x: str, name: str, weight: Tensor, bias: Tensor | None) -> str:
        inputs = [x, self._graph.constant(f"{name}.weight", weight.t())]
        return self._biased(self._graph.op("MatMul", inputs, name=f"{name}.product"), name, bias)

    def _biased(self, product: str, name: str, bias: Tensor | None) -> str:
        graph = self._graph
        if bias is None or not bias.any():
            return graph.op("Identity", [product], name=name)
        return graph.op("Add", [product, graph.constant(f"{name}.bias", bias)], name=name)

    def _group_wise(
        self,
        x: str,
        name: str,
        outputs: Sequence[str],
        weight: Tensor,
        biases: Sequence[Tensor | None],
        scheme: GroupWise,
    ) -> list[str]:
        parts = [tensor.tensor_split(len(outputs)) for tensor in self._in_groups(name, weight, scheme)]
        how = Quantization(bits=scheme.bits, block_size=scheme.size, symmetric=True, operator="MatMulNBits", layers=1)
        graph = self._graph
        for output, packed, scales, bias in zip(outputs, *parts, biases, strict=True):
            graph.quantized(how)
            inputs = [
                x,
                graph.constant(f"{output}.weight_int{scheme.bits}", packed),
                graph.constant(f"{output}.scales", scales),
            ]
            graph.op(
                "MatMulNBits",
                inputs if bias is None else [*inputs, "", "", graph.constant(f"{output}.bias", bias)],
                name=output,
                domain=CONTRIB,
                K=weight.shape[1],
                N=len(packed),
                bits=scheme.bits,
                block_size=scheme.size,
                accuracy_level=ACCURACY_LEVEL_INT8,
            )
        return list(outputs)

    def _in_groups(self, name: str, weight: Tensor, scheme: GroupWise) -> tuple[Tensor, Tensor]:
        """Packed values and scales: those from calibration, or with each value rounded to nearest."""
        if scheme.bits == 8:
            return quantize_groups(weight, scheme.size)
        if f"{name}.{PACKED_INT4}" in self._tensors:
            return self._tensors[f"{name}.{PACKED_INT4}"], self._tensors[f"{name}.{SCALES_INT4}"]
        return quantize_groups_int4(weight, scheme.size)

    def _quantized_tokens(self, x: str, name: str, minimum: Tensor | None) -> _Tokens:
        """Quantise ``x`` per-token; ``minimum``, float32 [columns], was subtracted so that it is never below 0."""
        graph = self._graph
        axis = graph.constant("last_axis", [-1])
        if minimum is None:
            size, steps, zero = graph.op("Abs", [x], name=f"{name}.abs"), LARGEST, ZERO_POINT
        else:
            size, steps, zero = x, LARGEST_UNSIGNED, 0
        largest = graph.op("ReduceMax", [size, axis], name=f"{name}.largest", keepdims=1)
        # A token of zeros becomes 0 / 0, whatever integer that is, and is multiplied by its largest value, 0, again.
        scaled = graph.op("Div", [x, largest], name=f"{name}.scaled")
        step, zero_point = (
            graph.constant(f"one_{steps}th", np.float32(1 / steps)),
            graph.constant(f"zero_point_{zero}", np.uint8(zero)),
        )
        steps_taken = graph.op("QuantizeLinear", [scaled, step, zero_point], name=f"{name}.uint8")
        return _Tokens(steps_taken, largest, step, zero_point, minimum)

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
                tokens.step,
                graph.constant(f"{name}.scales", scales),
                tokens.zero_point,
            ],
            name=f"{name}.product",
            domain=CONTRIB,
        )
        return self._biased(graph.op("Mul", [product, tokens.largest], name=f"{name}.restored"), name, bias)


@dataclass(frozen=True)
class _Tokens:
    """An input quantised per-token."""

    uint8: str
    largest: str
    """Largest magnitude of each token, tensor [..., 1]."""
    step: str
    """Value of one ``uint8`` step, relative to it."""
    zero_point: str
    minimum: Tensor | None
    """Minimum that was subtracted before, float32 [columns]."""
