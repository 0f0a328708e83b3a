"""This machine's ceilings: how fast it reads memory, and how fast it multiplies in fp32 and in int8.

Every decoded token reads all weights once, and every image multiplies them all by its 1,025 tokens: no program can be
faster than memory and multipliers are. Each ceiling is measured in several ways, and the fastest counts.

memory: each thread reads 1 GiB of its own, many times the size of the caches. One stream (the largest float32, the sum
of int64, memchr) or a matrix-vector product is slower than memcmp, which reads two streams at once and so keeps more
requests under way; all but that compute so little that only memory can be what they wait for.
fp32 and int8: a product of two matrices of 4096 x 4096, and the multiply-add instruction alone where that is possible.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's products run in threads of our own; read when numpy is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
from ceilings_instructions import FP32, INT8, available, operations_per_second
from numpy.typing import NDArray
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe

BYTES_PER_THREAD = 1 << 30
COLUMNS = 4096
SIDE = 4096
PACKAGES = ("numpy", "onnxruntime")


def memory_read(threads: int, repeats: int) -> dict[str, list[float]]:
    """Bytes a second of all threads together, by method."""
    # Not zeros: untouched pages would all be the one page of zeros that the system keeps.
    buffers = [np.ones(BYTES_PER_THREAD // 4, np.float32) for _ in range(threads)]
    libc = ctypes.CDLL(None)
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    libc.memchr.restype = ctypes.c_void_p
    libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    vector = np.ones(COLUMNS, np.float32)
    absent, half = 0x55, BYTES_PER_THREAD // 2
    readers: dict[str, Callable[[NDArray[np.float32]], object]] = {
        "memcmp of two halves": lambda buffer: libc.memcmp(buffer.ctypes.data, buffer.ctypes.data + half, half),
        "memchr": lambda buffer: libc.memchr(buffer.ctypes.data, absent, BYTES_PER_THREAD),
        "numpy max, float32": lambda buffer: buffer.max(),
        "numpy sum, int64": lambda buffer: buffer.view(np.int64).sum(),
        "numpy matrix-vector product, float32": lambda buffer: buffer.reshape(-1, COLUMNS) @ vector,
    }
    figures: dict[str, list[float]] = {name: [] for name in readers}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):  # alternating, so that a slow moment of the machine meets all methods
            for name, read in readers.items():
                started = time.perf_counter()
                list(pool.map(read, buffers))
                figures[name].append(threads * BYTES_PER_THREAD / (time.perf_counter() - started))
    return figures


def fp32_products(threads: int, repeats: int) -> dict[str, list[float]]:
    """Operations (a multiplication and an addition are two) a second, by method."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    session = product_session("MatMul", right, TensorProto.FLOAT, TensorProto.FLOAT, threads)
    parts = np.array_split(left, threads)

    def numpy_product(pool: ThreadPoolExecutor) -> object:
        return list(pool.map(lambda part: part @ right, parts))

    with ThreadPoolExecutor(threads) as pool:
        figures = {
            "onnxruntime MatMul": product_speed(lambda: session.run(None, {"left": left}), repeats),
            "numpy matmul": product_speed(lambda: numpy_product(pool), repeats),
        }
    if available(FP32):
        figures["vfmadd231ps alone"] = operations_per_second(FP32, threads, repeats)
    return figures


def int8_products(threads: int, repeats: int) -> dict[str, list[float]]:
    """The same for uint8 x int8, summed in int32."""
    random = np.random.default_rng(0)
    left = random.integers(0, 256, (SIDE, SIDE), np.uint8)
    right = random.integers(-127, 128, (SIDE, SIDE), np.int8)
    session = product_session("MatMulInteger", right, TensorProto.UINT8, TensorProto.INT32, threads)
    figures = {"onnxruntime MatMulInteger": product_speed(lambda: session.run(None, {"left": left}), repeats)}
    if available(INT8):
        figures["vpdpbusd alone"] = operations_per_second(INT8, threads, repeats)
    return figures


def product_session(
    operator: str, right: NDArray[Any], left_type: int, output_type: int, threads: int
) -> onnxruntime.InferenceSession:
    """``left @ right`` with a constant ``right`` [SIDE, SIDE], which onnxruntime packs while it loads."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        operator,
        [helper.make_tensor_value_info("left", left_type, (SIDE, SIDE))],
        [helper.make_tensor_value_info("product", output_type, (SIDE, SIDE))],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def product_speed(multiply: Callable[[], object], repeats: int) -> list[float]:
    """Operations a second of each of ``repeats`` products of [SIDE, SIDE] matrices, after one to warm up."""
    multiply()
    figures = []
    for _ in range(repeats):
        started = time.perf_counter()
        multiply()
        figures.append(2 * SIDE**3 / (time.perf_counter() - started))
    return figures


def summarise(figures: dict[str, list[float]]) -> dict[str, object]:
    """The method with the best median, its median and largest figure, and every sample of all methods."""
    best = max(figures, key=lambda name: statistics.median(figures[name]))
    return {
        "method": best,
        "median": statistics.median(figures[best]),
        "max": max(figures[best]),
        "samples": figures,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each method (default: 7)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(argv)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "memory_read_bytes_per_second": summarise(memory_read(options.threads, options.repeats)),
        "fp32_flops": summarise(fp32_products(options.threads, options.repeats)),
        "int8_ops": summarise(int8_products(options.threads, options.repeats)),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
