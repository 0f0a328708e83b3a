"""Writes one ONNX graph node by node, and streams its weights to an external data file.

Operators of the ``com.microsoft`` domain are ONNX Runtime's own fused ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from tinygptv.runtime.bundle.manifest import FileRecord, Graph, Quantization, TensorSpec

CONTRIB = "com.microsoft"
OPSET, CONTRIB_OPSET, IR_VERSION = 21, 1, 10
ALIGNMENT = 4096
"""Bytes; external data must start at a page to be memory-mapped, and 4 KiB is every platform's smallest page."""
TAPS = "tinygptv.taps"
"""Key in a graph's metadata: JSON that maps row names in ``verify`` to names of tensors."""
TO_END = int(np.iinfo(np.int64).max)
"""End index of a slice without an upper bound."""
INLINE_BYTES = 1024
"""Smaller constants stay in the .onnx file, where shape inference can see them."""
HIDDEN, ROWS = ("hidden_shape", (0, 0, -1)), ("row_shape", (0, -1))
"""Shapes for Reshape that restore an activation: [batch, sequence, width]; in chunks [tokens,
width]."""
DTYPES = {
    "int8": TensorProto.INT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class GraphWriter:
    """Collects the nodes of one graph and streams its weights to ``<name>.onnx.data``.

    Args:
        folder: Where the two files are written.
        name: Name of the graph; files are ``name.onnx`` and ``name.onnx.data``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._taps: dict[str, str] = {}
        self._quantized: Counter[Quantization] = Counter()
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._working_bytes = 0
        self._hidden_shape: tuple[str, tuple[int, ...]] = HIDDEN
        self._specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
        self._data_file = f"{name}.onnx.data"
        self._data: BinaryIO = (folder / self._data_file).open("wb")
        self._digest = hashlib.sha256()
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def contract(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], working_bytes: int) -> None:
        """Declare the graph's inputs and outputs, and the estimated memory of a run."""
        self._specs, self._working_bytes = (tuple(inputs), tuple(outputs)), working_bytes

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        *,
        name: str,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; returns its first output's name, which is the node's own unless ``outputs`` names all of them.

        An unused optional input or output is an empty string.
        """
        names = list(outputs) or [name]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0]

    def tap(self, row: str, tensor: str) -> None:
        """Record in the graph's metadata which tensor ``verify`` compares under the name ``row``."""
        self._taps[row] = tensor

    def rename_output(self, old: str, new: str) -> None:
        """Give the tensor ``old`` the name ``new`` that the contract promises."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        self._taps = {row: new if name == old else name for row, name in self._taps.items()}

    def constant(self, name: str, value: torch.Tensor | np.ndarray[Any, Any] | np.generic | Sequence[int]) -> str:
        """Add an initializer under ``name`` unless it is there already."""
        if name in self._initializers:
            return name
        array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        array = np.ascontiguousarray(array) if array.ndim else array
        if array.nbytes < INLINE_BYTES:
            self._initializers[name] = onnx.numpy_helper.from_array(array, name)
            return name
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        self._write(bytes(-self._offset % ALIGNMENT))
        for key, text in (("location", self._data_file), ("offset", self._offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(text))
        self._write(array.reshape(-1).view(np.uint8).data)
        self._initializers[name] = tensor
        return name

    def quantized(self, how: Quantization) -> None:
        """Record for the manifest one more linear layer with this quantisation."""
        self._quantized[how] += 1

    def cast(self, x: str, name: str, dtype: str) -> str:
        """Convert to another dtype, such as ``float16``."""
        return str(self.op("Cast", [x], name=name, to=DTYPES[dtype]))

    def by_blocks(self, x: str, block: torch.Tensor, name: str) -> str:
        """Split the last axis of ``x`` into blocks, and multiply each by ``block`` [size, size]."""
        size = len(block)
        name_of_shape, shape = self._hidden_shape
        shapes = self.constant(f"{name_of_shape}_by_{size}", (*shape, size)), self.constant(name_of_shape, shape)
        blocks = self.op("Reshape", [x, shapes[0]], name=f"{name}.blocks")
        product = self.op("MatMul", [blocks, self.constant(f"rotation_{size}", block)], name=f"{name}.product")
        return self.op("Reshape", [product, shapes[1]], name=name)

    def by_chunks(self, x: str, name: str, sizes: tuple[int, int], chunk: int, body: Callable[[str], str]) -> str:
        """Apply ``body`` to chunks of the tokens, so that its intermediate results stay in the CPU's cache.

        Args:
            x: Tensor [batch, tokens, width].
            name: Name of the result.
            sizes: (tokens, width).
            chunk: Number of tokens in a chunk; must divide the number of all tokens.
            body: Writes the nodes for a tensor [chunk, width]; returns the name of the result, of the same shape.
        """
        tokens, width = sizes
        nodes, self._nodes = self._nodes, []
        shape, self._hidden_shape = self._hidden_shape, ROWS
        inner = f"{name}.chunk"
        result = body(inner)
        self._hidden_shape = shape
        given, made = (
            helper.make_tensor_value_info(part, TensorProto.FLOAT, [chunk, width]) for part in (inner, result)
        )
        graph = helper.make_graph(self._nodes, f"{name}.body", [given], [made])
        self._nodes = nodes
        chunks = self.op("Reshape", [x, self.constant(f"chunks_of_{chunk}", [-1, chunk, width])], name=f"{name}.chunks")
        done = self.op("Scan", [chunks], name=f"{name}.scan", body=graph, num_scan_inputs=1)
        return str(self.op("Reshape", [done, self.constant("whole", [-1, tokens, width])], name=name))

    def either(
        self,
        condition: str,
        name: str,
        outputs: Mapping[str, str],
        then: Callable[[], Sequence[str]],
        otherwise: Callable[[], Sequence[str]],
    ) -> None:
        """Write two alternative subgraphs for the same tensors, of which each run executes one.

        Args:
            condition: A bool tensor: whether to run ``then``.
            name: Name of the node.
            outputs: Name and data type of each tensor.
            then: Writes the nodes of one alternative; returns its tensors' names, in the order of ``outputs``.
            otherwise: Writes the nodes of the other alternative.
        """
        nodes, graphs = self._nodes, list[onnx.GraphProto]()
        for number, way in enumerate((then, otherwise)):
            self._nodes = []
            results = [
                helper.make_tensor_value_info(result, DTYPES[dtype], None)
                for result, dtype in zip(way(), outputs.values(), strict=True)
            ]
            graphs.append(helper.make_graph(self._nodes, f"{name}.{number}", [], results))
        self._nodes = nodes
        self.op("If", [condition], name=name, outputs=list(outputs), then_branch=graphs[0], else_branch=graphs[1])

    def expand_to_batch(self, constant: str, like: str, name: str, rank: int) -> str:
        """Repeat a tensor [1, ...] of ``rank`` dimensions along the batch of ``like``."""
        batch = self.op("Shape", [like], name=f"{name}.batch", start=0, end=1)
        ones = self.constant(f"{name}.ones", np.ones(rank - 1, np.int64))
        shape = self.op("Concat", [batch, ones], name=f"{name}.shape", axis=0)
        return str(self.op("Expand", [constant, shape], name=name))

    def finish(self) -> tuple[Graph, list[FileRecord]]:
        """Write ``<name>.onnx``; returns the manifest's entries for the graph and its two files."""
        self._data.close()
        inputs, outputs = self._specs
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [info for spec in inputs for info in _value_infos(spec)],
            [info for spec in outputs for info in _value_infos(spec)],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)],
            ir_version=IR_VERSION,
            producer_name="tinygptv-export",
        )
        model.metadata_props.add(key=TAPS, value=json.dumps(self._taps))
        content = model.SerializeToString(deterministic=True)
        file = f"{self.name}.onnx"
        (self._folder / file).write_bytes(content)
        quantization = tuple(replace(how, layers=count) for how, count in self._quantized.items())
        described = Graph(
            file,
            self._data_file,
            f"int{min(how.bits for how in quantization)}" if quantization else "fp32",
            quantization,
            *self._specs,
            self._working_bytes,
        )
        return described, [
            FileRecord(file, len(content), hashlib.sha256(content).hexdigest()),
            FileRecord(self._data_file, self._offset, self._digest.hexdigest()),
        ]

    def _write(self, content: bytes | memoryview) -> None:
        self._data.write(content)
        self._digest.update(content)
        self._offset += len(content)


def _value_infos(spec: TensorSpec) -> list[onnx.ValueInfoProto]:
    shape = [axis.name if axis.size is None else axis.size for axis in spec.axes]
    names = [spec.name.replace("{i}", str(i)) for i in range(spec.count)]
    return [helper.make_tensor_value_info(name, DTYPES[spec.dtype], shape) for name in names]
