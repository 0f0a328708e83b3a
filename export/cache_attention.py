"""Causal attention with an int8 KV cache, as nodes of a graph.

ONNX Runtime's GroupQueryAttention reads and writes such a cache itself. For one token or a few, that is the fastest
way; for many it takes three times as long as its own float32 attention, which multiplies matrices. Many tokens
therefore attend in float32, to exactly the numbers that the cache will hold, and the graph writes these to the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .cache_rounding import KEY_SHIFT, KEY_STEP, VALUE_STEP
from .graph import CONTRIB, TO_END, GraphWriter
from .rotation import orthogonal

MANY = 48
"""Number of tokens from which float32 is faster, measured with a few hundred positions in the cache."""
POSITIONS = 2
"""Axis of a cache [batch, heads, capacity, head_dim]."""
UNUSED = ("",) * 5
"""Unused inputs of GroupQueryAttention between lengths and scales: rotary tables, positions, bias, sinks."""


class CacheAttention:
    """Writes the attention of each layer.

    Args:
        graph: The graph to write to.
        rounding: The result of :class:`.cache_rounding.CacheRounding`.
    """

    def __init__(self, graph: GraphWriter, rounding: Mapping[str, Tensor]) -> None:
        self._graph, self._rounding = graph, rounding
        lengths, total = (graph.cast(name, f"cache.{name}", "int64") for name in ("seqlens_k", "total_sequence_length"))
        one = graph.constant("one_value", [1])
        self._now = graph.op("Shape", ["position_ids"], name="cache.now", start=1, end=2)
        self._total = graph.op("Reshape", [total, one], name="cache.total")
        self._before = graph.op("Sub", [self._total, self._now], name="cache.before")
        least = graph.op("ReduceMin", [lengths], name="cache.least", keepdims=0)
        # Rows of other lengths are for GroupQueryAttention to sort out.
        alike = graph.op(
            "Equal", [graph.op("Add", [least, one], name="cache.shortest"), self._total], name="cache.alike"
        )
        many = graph.op("GreaterOrEqual", [self._now, graph.constant("many", [MANY])], name="cache.many")
        self._in_float32 = graph.op("And", [alike, many], name="cache.in_float32")

    def write(self, q: str, k: str, v: str, layer: int, name: str, heads: int) -> str:
        """Write the nodes of one layer; returns the name of the result, whose shape is that of q.

        Args:
            q: Queries, float32 [batch, sequence, heads * head_dim].
            k: Keys, as q.
            v: Values, as q.
            layer: Index of the layer.
            name: Name of the attention.
            heads: Number of heads.
        """
        graph = self._graph
        shift, *steps = (
            graph.constant(f"{name}.{kind}", self._rounding[f"{name}.{kind}"])
            for kind in (KEY_SHIFT, KEY_STEP, VALUE_STEP)
        )
        block = orthogonal(len(self._rounding[f"{name}.{KEY_STEP}"]) // heads)
        k = graph.op("Sub", [k, shift], name=f"{name}.shifted")
        q, k = (graph.by_blocks(x, block, f"{name}.{part}_spread") for x, part in ((q, "q"), (k, "k")))
        key, value = (
            _Cached(x, f"{name}.{part}", f"past_key_values.{layer}.{part}", step)
            for x, part, step in zip((k, v), ("key", "value"), steps, strict=True)
        )
        graph.either(
            self._in_float32,
            f"{name}.either",
            {name: "float32", f"present.{layer}.key": "int8", f"present.{layer}.value": "int8"},
            lambda: self._attend_in_float32(q, key, value, name, heads),
            lambda: self._attend(
                [q, k, v, key.past, value.past],
                [*UNUSED, *steps],
                [f"{name}.int8", f"{key.name}.int8", f"{value.name}.int8"],
                heads,
                k_quant_type="PER_CHANNEL",
                v_quant_type="PER_CHANNEL",
                kv_cache_bit_width=8,
            ),
        )
        return name

    def _attend_in_float32(self, q: str, key: _Cached, value: _Cached, name: str, heads: int) -> list[str]:
        graph = self._graph
        # In steps, whose sizes the queries and the mixture take: none of the cache need be multiplied.
        q = graph.op("Mul", [q, key.step], name=f"{name}.q_by_step")
        (k, past_key, present_key), (v, past_value, present_value) = (
            self._in_steps(one, heads) for one in (key, value)
        )
        outputs = [f"{name}.mixed_steps", f"{key.name}.unused", f"{value.name}.unused"]
        mixed, *_ = self._attend([q, k, v, past_key, past_value], [], outputs, heads)
        return [graph.op("Mul", [mixed, value.step], name=f"{name}.float32"), present_key, present_value]

    def _in_steps(self, one: _Cached, heads: int) -> tuple[str, str, str]:
        """The new and the past values, float32, in quantisation steps; and the cache of both, with its free room."""
        graph, name = self._graph, one.name
        scaled = graph.op("Div", [one.new, one.step], name=f"{name}.scaled")
        no_scale = graph.constant("one", np.float32(1)), graph.constant("zero_step", np.int8(0))
        steps = graph.op("QuantizeLinear", [scaled, *no_scale], name=f"{name}.steps")
        by_head = graph.op("Reshape", [steps, graph.constant("heads_shape", [0, 0, heads, -1])], name=f"{name}.by_head")
        written = graph.op("Transpose", [by_head], name=f"{name}.written", perm=[0, POSITIONS, 1, 3])
        axis, start, end = (
            graph.constant(f"cache.{kind}", [place])
            for kind, place in (("axis", POSITIONS), ("start", 0), ("end", TO_END))
        )
        past = graph.op("Slice", [one.past, start, self._before, axis], name=f"{name}.past")
        room = graph.op("Slice", [one.past, self._total, end, axis], name=f"{name}.room")
        cache = graph.op("Concat", [past, written, room], name=f"{name}.cache", axis=POSITIONS)
        return (
            graph.cast(steps, f"{name}.steps_float32", "float32"),
            graph.cast(past, f"{name}.past_float32", "float32"),
            cache,
        )

    def _attend(
        self, inputs: Sequence[str], more: Sequence[str], outputs: Sequence[str], heads: int, **form: Any
    ) -> Sequence[str]:
        self._graph.op(
            "GroupQueryAttention",
            [*inputs, "seqlens_k", "total_sequence_length", *more],
            name=outputs[0],
            outputs=outputs,
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=heads,
            **form,
        )
        return outputs


@dataclass(frozen=True)
class _Cached:
    """The keys or values of a layer."""

    new: str
    """Tensor [batch, sequence, heads * head_dim]."""
    name: str
    past: str
    """The cache that was passed in."""
    step: str
