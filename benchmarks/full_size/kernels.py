"""Measures the operators that graphs could be made of, at the published sizes: what was chosen beside what was not.

Random numbers; samples of all ways alternate within one process whose threads don't spin, so that ways that wait take
nothing from the one that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kernel_table import table
from reporting import describe, write_section

PACKAGES = ("onnxruntime", "numpy")
CONTRIB = "com.microsoft"
VISION_TOKENS, VISION_WIDTH, VISION_MLP, VISION_HEADS = 1025, 1408, 6144, 16
WIDTH, MLP, HEADS, HEAD_DIM = 2560, 10240, 32, 80
LAYERS = 4
"""MLPs one after the other, or caches in turn: enough to be read from memory, not from the CPU's caches."""
TOKENS = (1, 8, 70)
Run = Callable[[], object]
Document = dict[str, Any]


class Model:
    """A graph of a few nodes, float32 inputs of any shape."""

    def __init__(self) -> None:
        self.nodes: list[object] = []
        self.constants: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: object) -> str:
        names = [f"{kind}{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, columns: int, rows: int, way: str) -> str:
        if way == "fp32":
            return self.op("MatMul", [x, self.constant(self.random.standard_normal((columns, rows), np.float32))])
        if "blocks" in way:
            bits, size = 4 if way.startswith("4 bits") else 8, int(way.split("blocks ")[1].split(",")[0])
            inner = 1 if way.endswith("in float32") else 4
            packed = self.random.integers(1, 255, (rows, columns // size, size * bits // 8), dtype=np.uint8)
            scales = np.full((rows, columns // size), 1e-3, np.float32)
            inputs = [x, self.constant(packed), self.constant(scales)]
            sizes = {"K": columns, "N": rows, "bits": bits, "block_size": size, "accuracy_level": inner}
            return self.op("MatMulNBits", inputs, domain=CONTRIB, **sizes)
        packed = self.constant(self.random.integers(-127, 127, (columns, rows), dtype=np.int8))
        scales = self.constant(np.full(rows, 1e-3, np.float32))
        if way == "one scale for all tokens":
            return self.op("DynamicQuantizeMatMul", [x, packed, scales], domain=CONTRIB)
        one, zero = self.constant(np.float32(1)), self.constant(np.uint8(128))
        largest = self.op("ReduceMax", [self.op("Abs", [x]), self.constant(np.array([-1]))], keepdims=1)
        step = self.op("Mul", [largest, self.constant(np.float32(1 / 127))])
        tokens = self.op("QuantizeLinear", [self.op("Div", [x, step]), one, zero])
        product = self.op("MatMulIntegerToFloat", [tokens, packed, one, scales, zero], domain=CONTRIB)
        return self.op("Mul", [product, step])

    def session(
        self, output: str, inputs: dict[str, int], threads: int, more_outputs: dict[str, int] | None = None
    ) -> onnxruntime.InferenceSession:
        """``inputs`` and ``more_outputs``: ONNX dtypes by name."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "kernels",
            [helper.make_tensor_value_info(name, dtype, None) for name, dtype in inputs.items()],
            [
                helper.make_tensor_value_info(name, dtype, None)
                for name, dtype in {"y": TensorProto.FLOAT, **(more_outputs or {})}.items()
            ],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
        content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def mlps(way: str, tokens: int, threads: int) -> Run:
    """The decoder's largest products: ``LAYERS`` times 2560 -> 10240 -> 2560."""
    model, x = Model(), "x"
    for _ in range(LAYERS):
        x = model.linear(model.linear(x, WIDTH, MLP, way), MLP, WIDTH, way)
    session = model.session(x, {"x": TensorProto.FLOAT}, threads)
    feed = {"x": np.random.default_rng(1).standard_normal((tokens, WIDTH), np.float32)}
    return lambda: session.run(None, feed)


def vision_block(way: str, threads: int) -> Run:
    """One block of the vision encoder; ``attention``: its attention alone."""
    model = Model()
    width, shape = VISION_WIDTH, (1, VISION_TOKENS, VISION_WIDTH)
    ones, zeros = (model.constant(np.full(width, value, np.float32)) for value in (1, 0))
    norm = model.op("LayerNormalization", ["x", ones, zeros], axis=-1)
    whole = way == "attention"
    qkv = model.op("Concat", [norm] * 3, axis=-1) if whole else model.linear(norm, width, 3 * width, way)
    query, key, value = model.op("Split", [qkv], 3, axis=-1, num_outputs=3)
    mixed = model.op("MultiHeadAttention", [query, key, value], domain=CONTRIB, num_heads=VISION_HEADS)
    if not whole:
        total = model.op("Sum", ["x", model.linear(mixed, width, width, way)])
        norm = model.op("LayerNormalization", [total, ones, zeros], axis=-1)
        inner = model.op("Gelu", [model.linear(norm, width, VISION_MLP, way)], domain=CONTRIB)
        mixed = model.op("Sum", [total, model.linear(inner, VISION_MLP, width, way)])
    session = model.session(mixed, {"x": TensorProto.FLOAT}, threads)
    feed = {"x": np.random.default_rng(1).standard_normal(shape, np.float32)}
    return lambda: session.run(None, feed)


def sums(way: str, threads: int) -> Run:
    """A sum and its norm, over a picture's tokens."""
    model = Model()
    ones, zeros = (model.constant(np.full(VISION_WIDTH, value, np.float32)) for value in (1, 0))
    if way == "SkipLayerNormalization":
        y = model.op(way, ["x", "x", ones, zeros], domain=CONTRIB, epsilon=1e-6)
    else:
        y = model.op("LayerNormalization", [model.op("Sum", ["x", "x"]), ones, zeros], axis=-1)
    session = model.session(y, {"x": TensorProto.FLOAT}, threads)
    feed = {"x": np.random.default_rng(1).standard_normal((1, VISION_TOKENS, VISION_WIDTH), np.float32)}
    return lambda: session.run(None, feed)


def attention(way: str, past: int, threads: int) -> Run:
    """One decode step's attention in ``LAYERS`` layers, each with its own cache of ``way``'s dtype."""
    model, capacity = Model(), past + 8
    numpy_dtype = {"float32": np.float32, "float16": np.float16, "int8": np.int8}[way]
    onnx_dtype = helper.np_dtype_to_tensor_dtype(np.dtype(numpy_dtype))
    mixing = "float32" if way == "int8" else way
    x = "x"
    inputs = {"x": TensorProto.FLOAT, "last": TensorProto.INT32, "total": TensorProto.INT32}
    same: dict[str, str] = {}
    """Each present cache's name, and that of the past one whose buffer it shares."""
    quantised = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
    scale = [""] * 5 + [model.constant(np.array([0.05], np.float32))] * 2
    for i in range(LAYERS):
        part = x if mixing == "float32" else model.op("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(mixing)))
        caches = [f"past{i}.key", f"past{i}.value"]
        inputs |= dict.fromkeys(caches, onnx_dtype)
        x, *present = model.op(
            "GroupQueryAttention",
            [part, part, part, *caches, "last", "total", *(scale if way == "int8" else ())],
            3,
            domain=CONTRIB,
            num_heads=HEADS,
            kv_num_heads=HEADS,
            **(quantised if way == "int8" else {}),
        )
        same |= dict(zip(present, caches, strict=True))
        if mixing != "float32":
            x = model.op("Cast", [x], to=TensorProto.FLOAT)
    session = model.session(x, inputs, threads, dict.fromkeys(same, onnx_dtype))
    binding = session.io_binding()
    kept = {
        "x": np.random.default_rng(1).standard_normal((1, 1, WIDTH), np.float32),
        "last": np.array([past], np.int32),
        "total": np.array(past + 1, np.int32),
    }
    shape = (1, HEADS, capacity, HEAD_DIM)
    caches = {name: np.ones(shape, numpy_dtype) for name in inputs if name.startswith("past")}
    for name, array in (kept | caches).items():
        binding.bind_cpu_input(name, array)
    for present_name, past_name in same.items():
        array = caches[past_name]
        binding.bind_output(present_name, "cpu", 0, numpy_dtype, array.shape, array.ctypes.data)
    binding.bind_output("y")

    def run() -> object:
        session.run_with_iobinding(binding)
        return kept, caches  # which the binding reads: they live as long as this function

    return run


def products(tokens: int) -> str:
    """What the group of the decoder's products is called."""
    return f"decoder MLP, {LAYERS} layers, {tokens} tokens"


def measure(threads: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of each way, by group."""
    blocks = tuple(f"{bits}blocks {size}" for bits in ("", "4 bits, ") for size in (32, 64, 128, 256))
    groups: dict[str, dict[str, Callable[[], Run]]] = {}
    for tokens in TOKENS:
        groups[products(tokens)] = {
            way: lambda way=way, tokens=tokens: mlps(way, tokens, threads)
            for way in (*blocks, "4 bits, blocks 128, in float32", "rows", "one scale for all tokens")
        }
    for past in (64, 1500):
        groups[f"decoder attention, {LAYERS} layers, after {past} tokens"] = {
            f"cache {way}": lambda way=way, past=past: attention(way, past, threads)
            for way in ("float32", "float16", "int8")
        }
    groups["vision block, 1025 tokens"] = {
        way: lambda way=way: vision_block(way, threads)
        for way in ("fp32", "blocks 128", "rows", "one scale for all tokens", "attention")
    }
    groups["sum and norm, 1025 tokens"] = {
        way: lambda way=way: sums(way, threads) for way in ("SkipLayerNormalization", "Sum, LayerNormalization")
    }
    found = {}
    for group, makers in tqdm(groups.items(), desc="groups"):
        ways = {name: make() for name, make in makers.items()}
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if number:  # the first warms up
                    samples[name].append(1000 * (time.perf_counter() - started))
        found[group] = {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in samples.items()
        }
    return found


def add_costs(path: Path, document: Document) -> None:
    """Put the medians of the decoder's products into the table that the exporter chooses by, in this CPU's place."""
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = document["machine"]
    costs[f"{machine['cpu']} ({', '.join(machine['instruction_sets'])})"] = {
        "date": document["date"],
        "onnxruntime": machine["onnxruntime"],
        "threads": document["threads"],
        "milliseconds": {
            str(tokens): {way: figures["median"] for way, figures in document["milliseconds"][products(tokens)].items()}
            for tokens in TOKENS
        },
    }
    path.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each way (default: 15)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file to put the table into")
    parser.add_argument(
        "--costs", type=Path, metavar="JSON", help="the exporter's table, to put this CPU's figures into"
    )
    options = parser.parse_args(argv)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "milliseconds": measure(options.threads, options.rounds),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))
    if options.costs is not None:
        add_costs(options.costs, document)
    if options.readme is not None:
        write_section(options.readme, "kernels", table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
