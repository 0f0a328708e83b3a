"""Asks one machine, real or emulated, for what must be the same on all: answers, cosines, a bundle that tuning leaves
as it was.

It needs the runtime and what that depends on, no more. :mod:`run` starts it on each machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import io
import itertools
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import numpy as np
from golden_runs import cosines, run_bundle
from numpy.typing import NDArray
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle import sessions
from tinygptv.runtime.cli import main
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.system.machine import NUMPY_NAMES
from tinygptv.runtime.tuning.find import FOLDER
from tinygptv.runtime.tuning.packed_weights import packed_weights

Array = NDArray[np.float32]
Document = dict[str, Any]
PACKAGES = ("tinygptv", "onnxruntime", "numpy", "pillow", "tokenizers")
QUESTIONS = (
    "what shape is in the image?",
    "[vqa] what color is the circle?",
    "[vqa] is a triangle present?",
    "is there not a red shape?",
    "does the image contain a teal shape?",
    "[caption]",
    "[caption] describe the image",
    "[detection] triangle",
    "[detection] circle",
)
"""Of each picture."""
PRODUCTS = ("MatMulNBits", "MatMulIntegerToFloat", "MatMulInteger", "MatMul", "Gemm", "FusedMatMul")
HWCAP, HWCAP2 = 16, 26
"""Of getauxval: what Linux tells a program on Arm of its processor."""
ARM_BITS = {
    "asimd": (HWCAP, 1),
    "asimdhp": (HWCAP, 10),
    "asimddp": (HWCAP, 20),
    "sve": (HWCAP, 22),
    "i8mm": (HWCAP2, 13),
    "bf16": (HWCAP2, 14),
}


def instructions() -> list[str]:
    """What the processor itself tells of (CPUID, or getauxval on Arm), whatever /proc/cpuinfo says."""
    core = importlib.import_module("numpy._core._multiarray_umath")
    found = {name for key, name in NUMPY_NAMES.items() if core.__cpu_features__.get(key)}
    if platform.machine() == "aarch64":
        told = ctypes.CDLL(None).getauxval
        told.restype, told.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
        found |= {name for name, (kind, bit) in ARM_BITS.items() if told(kind) >> bit & 1}
    return sorted(found)


def run(*arguments: str) -> str:
    """What a command of ``tinygptv`` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main(arguments)
    if status:
        raise SystemExit(f"tinygptv {' '.join(arguments)} ended with {status}: {output.getvalue()}")
    return output.getvalue()


def answers(bundle: Path, pictures: list[Path]) -> dict[str, str]:
    """By picture and question."""
    with TinyGPTV.load(bundle) as model:
        return {f"{path.name}: {asked}": model.ask(path, asked).text for path in pictures for asked in QUESTIONS}


def agreement(bundle: Path, expected: dict[str, Array]) -> dict[str, float]:
    """The worst cosines beside what the published code computed, as tests/test_golden.py takes them."""
    found = run_bundle(bundle, expected)
    names = ("image_embeds", "prefill_logits", "step_logits")
    return {name: float(cosines(found[name], expected[name]).min()) for name in names}


@contextlib.contextmanager
def profiled(folder: Path) -> Iterator[Counter[str]]:
    """What onnxruntime multiplies with in the body: operators, the type of their input (weights are packed, and
    no longer listed), and how often.
    """
    make, ran, numbers = sessions._options, Counter[str](), itertools.count()

    def profiling(threads: int | None) -> Any:
        options = make(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(folder / f"profile {next(numbers)}")
        return options

    sessions._options = profiling
    try:
        yield ran
    finally:
        sessions._options = make
    for path in folder.glob("profile *.json"):
        for event in json.loads(path.read_text(encoding="utf-8")):
            told = event.get("args", {})
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and told.get("op_name") in PRODUCTS:
                ran[f"{told['op_name']}, {next(iter(told['input_type_shape'][0]))} input"] += 1
        path.unlink()


def unguarded(bundle: Path, expected: dict[str, Array]) -> dict[str, float]:
    """The same cosines with the weights as int8 where their products saturate: what the runtime sees to."""
    tried = sessions.products_saturate
    sessions.products_saturate = lambda: False
    try:
        return agreement(bundle, expected)
    finally:
        sessions.products_saturate = tried


def packed(tuned: Path) -> dict[str, int]:
    """How many weights of products a tuned copy has as this machine's kernels take them, so that they are mapped."""
    models = [packed_weights(path.read_bytes()) for path in tuned.glob("*.onnx")]
    found = [bool(entries) for model in models for name, entries in model.items() if ".weight_int" in name]
    return {"packed": sum(found), "weights": len(found)}


def sums(bundle: Path) -> dict[str, str]:
    """SHA-256 of each of a folder's files."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check(inputs: Path, scratch: Path) -> Document:
    """All of it; ``inputs`` is what run.py has put together."""
    started = time.perf_counter()
    pictures = sorted((inputs / "images").glob("*.png"))
    bundle = shutil.copytree(DEMO_BUNDLE, scratch / "demo")
    before = sums(bundle)
    doctor = json.loads(run("doctor", str(bundle), "--json"))
    document: Document = {
        "architecture": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "instructions": instructions(),
        "doctor": {"cpu": doctor["cpu"], "int8": doctor["int8"], "problems": doctor["problems"]},
        "int8_saturates": doctor["int8_saturates"],
        "answers": answers(bundle, pictures),
    }
    tuned = json.loads(run("tune", str(bundle), "--json"))
    places = json.loads(run("doctor", str(bundle), "--json"))["bundle"]["tuned"]
    document["tuned"] = {
        "new": tuned["new"],
        "bytes": tuned["bytes"],
        "used": places[0]["usable"],
        **packed(bundle / FOLDER),
        "answers": answers(bundle, pictures),
    }
    run("tune", str(bundle), "--undo")
    document["tuned"]["undone"] = sums(bundle) == before
    captions = scratch / "captions.jsonl"
    run("caption", str(inputs / "images"), "-o", str(captions), "--bundle", str(bundle))
    lines = map(json.loads, captions.read_text(encoding="utf-8").splitlines())
    document["captions"] = {line["file"]: line["text"] for line in lines}
    document["golden"] = {}
    for golden in sorted((inputs / "golden").iterdir()):
        with np.load(golden / "expected.npz") as arrays:
            expected = dict(arrays)
        with profiled(scratch) as ran:
            found: Document = {"cosines": agreement(golden / "bundle", expected)}
        found["products"] = dict(sorted(ran.items()))
        if document["int8_saturates"]:
            found["unguarded"] = unguarded(golden / "bundle", expected)
        document["golden"][golden.name] = found
    document["seconds"] = time.perf_counter() - started
    return document


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=Path, help="pictures and golden bundles, as run.py puts them together")
    parser.add_argument("scratch", type=Path, help="an empty folder to work in")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.write_text(json.dumps(check(given.inputs, given.scratch)), encoding="utf-8")
