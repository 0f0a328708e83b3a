"""The operations of :class:`.ops.Ops` as nodes of a graph; decides what is fused or computed in chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor
from torch.nn import functional

from .cache_attention import CacheAttention
from .cache_rounding import FLOAT32_CACHE, Cache
from .graph import CONTRIB, HIDDEN, TO_END, GraphWriter
from .linear import Linears
from .ops import LEAST, Activation, Rotary
from .precision import SchemeOf

LARGEST_CHUNK, SMALLEST_CHUNK = 256, 64
"""Limits of an MLP's chunk, in tokens. Larger: its intermediate results leave the cache; smaller: slower products.
448 px of ViT-g give 1025 tokens, five chunks of 205: less time, and half the memory, than all at once."""


class GraphOps:
    """Implements :class:`.ops.Ops` by writing nodes.

    Args:
        graph: The graph to write to; its contract must be declared.
        tensors: The part's tensors by name; float32.
        scheme_of: The quantisation of each linear layer.
        cache: The KV cache's storage; attention computes in float16 if the cache does.
        on_layer: Called with (number, count) before each layer.
    """

    def __init__(
        self,
        graph: GraphWriter,
        tensors: Mapping[str, Tensor],
        scheme_of: SchemeOf,
        cache: Cache = FLOAT32_CACHE,
        on_layer: Callable[[int, int], object] = lambda number, count: None,
    ) -> None:
        self._graph, self._tensors, self._scheme_of = graph, tensors, scheme_of
        self._linears = Linears(graph, tensors)
        self._cache, self._on_layer = cache, on_layer
        self._least: dict[str, float] = {}
        """Lower bounds of tensors that are outputs of a GELU."""

    def layers(self, count: int) -> Iterator[int]:
        for number in range(count):
            self._on_layer(number, count)
            yield number

    def tap(self, row: str, x: str) -> None:
        self._graph.tap(row, x)

    def patches(self, pixel_values: str, name: str, size: int) -> str:
        graph = self._graph
        weight = self._tensors[f"{name}.weight"]
        inputs = [pixel_values, graph.constant(f"{name}.weight", weight)]
        if f"{name}.bias" in self._tensors:
            inputs.append(self._constant(f"{name}.bias"))
        patches = graph.op("Conv", inputs, name=name, kernel_shape=[size, size], strides=[size, size])
        shape = graph.constant(f"{name}.shape", [0, weight.shape[0], -1])
        rows = graph.op("Reshape", [patches, shape], name=f"{name}.rows")
        return str(graph.op("Transpose", [rows], name=f"{name}.tokens", perm=[0, 2, 1]))

    def class_token(self, x: str, name: str) -> str:
        token = self._graph.expand_to_batch(self._constant(name), x, f"{name}.batch", 3)
        return str(self._graph.op("Concat", [token, x], name=f"{name}.tokens", axis=1))

    def add_positions(self, x: str, name: str, output: str) -> str:
        return str(self._graph.op("Add", [x, self._constant(name)], name=output))

    def without_first(self, x: str, name: str) -> str:
        graph = self._graph
        start, axis, end = graph.constant("one_value", [1]), graph.constant("sequence_axis", [1]), self._end()
        return str(graph.op("Slice", [x, start, end, axis], name=name))

    def queries(self, name: str, norm: str, epsilon: float, like: str) -> str:
        # They never change: their norm is computed here, once.
        weight, bias = self._tensors[f"{norm}.weight"], self._tensors[f"{norm}.bias"]
        normed = functional.layer_norm(self._tensors[name], weight.shape, weight, bias, epsilon)
        return self._graph.expand_to_batch(self._graph.constant(f"{name}.normed", normed), like, name, 3)

    def layer_norm(self, x: str, name: str, epsilon: float) -> str:
        inputs = [x, self._constant(f"{name}.weight"), self._constant(f"{name}.bias")]
        return str(self._graph.op("LayerNormalization", inputs, name=name, axis=-1, epsilon=epsilon))

    def rms_norm(self, x: str, name: str, epsilon: float) -> str:
        inputs = [x, self._constant(f"{name}.weight")]
        return str(self._graph.op("SimplifiedLayerNormalization", inputs, name=name, axis=-1, epsilon=epsilon))

    def head_norm(self, x: str, name: str, heads: int, epsilon: float) -> str:
        graph = self._graph
        by_head = graph.op("Reshape", [x, graph.constant("heads_shape", [0, 0, heads, -1])], name=f"{name}.by_head")
        normed = self.layer_norm(by_head, name, epsilon)
        return str(graph.op("Reshape", [normed, graph.constant(*HIDDEN)], name=f"{name}.whole"))

    def add(self, x: str, y: str, name: str) -> str:
        return str(self._graph.op("Add", [x, y], name=name))

    def add_norm(self, x: str, update: str, name: str, epsilon: float) -> tuple[str, str]:
        total = f"{name}.sum"
        # ``Sum``, since ONNX Runtime would fuse an ``Add`` into SkipLayerNormalization, which is slower: several times
        # for many tokens, and a little for one.
        self._graph.op("Sum", [x, update], name=total)
        return total, self.layer_norm(total, name, epsilon)

    def linear(self, x: str, name: str) -> str:
        (output,) = self._parts(x, name, (name,))
        return output

    def split_linear(self, x: str, name: str, parts: int) -> tuple[str, ...]:
        # By a product for each, so that nothing need be cut and copied afterwards.
        return tuple(self._parts(x, name, [f"{name}.{number}" for number in range(parts)]))

    def wide_linear(self, x: str, name: str, parts: int) -> str:
        return str(self._graph.op("Concat", self.split_linear(x, name, parts), name=name, axis=-1))

    def activation(self, x: str, kind: Activation, name: str) -> str:
        graph = self._graph
        if kind == "quick":
            output = graph.op("QuickGelu", [x], name=name, domain=CONTRIB, alpha=1.702)
        else:
            output = graph.op("Gelu" if kind == "erf" else "FastGelu", [x], name=name, domain=CONTRIB)
        self._least[output] = LEAST[kind]
        return str(output)

    def chunked(self, x: str, name: str, sizes: tuple[int, int], body: Callable[[str], str]) -> str:
        chunk = chunk_size(sizes[0])
        return body(x) if chunk == sizes[0] else self._graph.by_chunks(x, name, sizes, chunk, body)

    def attention(self, q: str, k: str, v: str, name: str, heads: int) -> str:
        return str(self._graph.op("MultiHeadAttention", [q, k, v], name=name, domain=CONTRIB, num_heads=heads))

    def rotate(self, x: str, name: str, heads: int, rotary: Rotary) -> str:
        graph, angles = self._graph, rotary.angles(rotary.positions)
        inputs = [x, "position_ids", graph.constant("rotary.cos", angles.cos())]
        inputs.append(graph.constant("rotary.sin", angles.sin()))
        return str(
            graph.op(
                "RotaryEmbedding",
                inputs,
                name=name,
                domain=CONTRIB,
                num_heads=heads,
                rotary_embedding_dim=rotary.dim,
            )
        )

    def causal_attention(self, q: str, k: str, v: str, layer: int, name: str, heads: int) -> str:
        graph, dtype = self._graph, self._cache.dtype
        if dtype == "int8":
            return self._cache_attention.write(q, k, v, layer, name, heads)
        if dtype != "float32":
            q, k, v = (graph.cast(x, f"{name}.{part}_cast", dtype) for x, part in ((q, "q"), (k, "k"), (v, "v")))
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        output = graph.op(
            "GroupQueryAttention",
            [q, k, v, *past, "seqlens_k", "total_sequence_length"],
            name=name,
            outputs=(name, f"present.{layer}.key", f"present.{layer}.value"),
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=heads,
        )
        return str(output) if dtype == "float32" else graph.cast(str(output), f"{name}.output", "float32")

    def last_positions(self, x: str) -> str:
        graph = self._graph
        axis, end = graph.constant("sequence_axis", [1]), self._end()
        count = graph.op("Reshape", ["num_logits_to_keep", graph.constant("one_value", [1])], name="kept.count")
        start = graph.op("Neg", [count], name="kept.start")  # a slice from -0 takes all
        return str(graph.op("Slice", [x, start, end, axis], name="kept"))

    @functools.cached_property
    def _cache_attention(self) -> CacheAttention:
        return CacheAttention(self._graph, self._cache.rounding)

    def _parts(self, x: str, name: str, outputs: tuple[str, ...] | list[str]) -> list[str]:
        scheme = self._scheme_of(name)
        if scheme is not None and x in self._least:
            scheme = scheme.above(self._least[x])
        return self._linears(x, name, outputs, scheme)

    def _constant(self, name: str) -> str:
        return self._graph.constant(name, self._tensors[name])

    def _end(self) -> str:
        return self._graph.constant("sequence_end", [TO_END])


def chunk_size(tokens: int) -> int:
    """Number of tokens in a chunk of an MLP: a divisor of all tokens, or all of them if no divisor is suitable."""
    return next((size for size in range(LARGEST_CHUNK, SMALLEST_CHUNK - 1, -1) if tokens % size == 0), tokens)
