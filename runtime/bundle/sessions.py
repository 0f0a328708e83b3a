"""ONNX Runtime sessions: the only module that imports onnxruntime, and that keeps its telemetry off."""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, MemoryShortageError, TinyGPTVError, is_memory_shortage
from .contract import Graph, TensorSpec
from .onnx_file import has_subgraphs, with_weights_in_subgraphs

if TYPE_CHECKING:
    import onnxruntime

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
TELEMETRY_OFF = ("1", "true", "yes", "y", "on")
"""Values of the variable that onnxruntime accepts, in any case (tested with 1.32)."""
LARGE_PRODUCTS = bytes.fromhex(
    "08083a5c0a180a01610a0162120179220d4d61744d756c496e74656765721201675a130a0161120e0a0c080212080a0208020a0208405a130a"
    "0162120e0a0c080312080a0208400a02082062130a0179120e0a0c080612080a0208020a02082042040a00100d"
)
"""An ONNX file of one node: y = MatMulInteger(a: uint8 [2, 64], b: int8 [64, 32])."""
TYPES = {
    "int8": "tensor(int8)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}
"""onnxruntime's names of a manifest's dtypes."""
INT8_CACHE_SINCE = (1, 27)
"""The first onnxruntime that supports an int8 KV cache: 1.26 loads such a graph, but fails when it runs (tested)."""
FATAL_ONLY = 4


def import_onnxruntime() -> None:
    """Import onnxruntime with its telemetry client off.

    From 1.29 on, onnxruntime reads ``ORT_DISABLE_TELEMETRY`` once, while it is imported, and otherwise keeps a database
    of events under the user's cache folder for upload. Where the host program imported it first that cannot be undone
    here, so a warning says so.

    Raises:
        MemoryShortageError: There is no room for the library itself.
    """
    variable = TELEMETRY_VARIABLE
    if "onnxruntime" not in sys.modules:
        os.environ[variable] = "1"
        try:
            import onnxruntime  # noqa: F401 - imported for later
        except ImportError as error:
            if not is_memory_shortage(error):
                raise
            raise MemoryShortageError(f"there is not enough memory to start onnxruntime ({error})") from error
    elif not telemetry_is_off():
        sys.modules["onnxruntime"].disable_telemetry_events()
        warnings.warn(
            f"onnxruntime was imported before tinygptv with its telemetry on; set {variable}=1 before importing it",
            RuntimeWarning,
            stacklevel=4,  # the caller of TinyGPTV.load
        )
        os.environ[variable] = "1"  # warn once; and for the processes that this one starts


def telemetry_is_off() -> bool:
    """Whether onnxruntime's telemetry is off in this process; call it before anything here imports onnxruntime."""
    value = os.environ.get(TELEMETRY_VARIABLE, "")
    return "onnxruntime" not in sys.modules or value.strip().lower() in TELEMETRY_OFF


def open_session(
    folder: Path, graph: Graph, threads: int | None, model: bytes | None = None
) -> onnxruntime.InferenceSession:
    """Load one graph of a bundle on the CPU.

    Args:
        folder: Folder with the graph's data: the bundle.
        graph: The graph, with the contract it must keep.
        threads: Threads inside an operator; onnxruntime's own choice (one a physical core) if None.
        model: Content of the .onnx file, if it is not the bundle's own: one that refers to packed weights. It
            may have further outputs.

    Raises:
        BundleError: onnxruntime cannot load the file, or is too old to run it; or its inputs and outputs are not the
            manifest's: their names, dtypes, numbers of axes and fixed sizes.
    """
    import_onnxruntime()
    options = _options(threads)
    path = folder / graph.file
    if products_saturate():
        model = _exact(path, model)
    if model is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    check_version(path, graph, sys.modules["onnxruntime"].__version__)
    session = _create(path, model, options)
    _check_contract(path, "inputs", graph.inputs, session.get_inputs())
    _check_contract(path, "outputs", graph.outputs, session.get_outputs())
    return session


def check_finite(array: NDArray[np.float32], name: str) -> None:
    """Check that all outputs of a graph are finite.

    Args:
        array: float32, of any shape.
        name: Name of the graph's output.

    Raises:
        BundleError: It holds a NaN or an infinity.
    """
    if not np.isfinite(array).all():
        raise BundleError(
            f"{name} of the bundle's graphs holds NaN or infinity: its weights are damaged, or too large for its "
            "precision; check it with tinygptv bundle verify, and export it again if that finds nothing"
        )


def check_version(path: Path, graph: Graph, version: str) -> None:
    """Check that an onnxruntime of this version can run a graph.

    Raises:
        BundleError: It is too old.
    """
    major, minor, *_ = version.split(".")
    if any(spec.dtype == "int8" for spec in graph.inputs) and (int(major), int(minor)) < INT8_CACHE_SINCE:
        raise BundleError(
            f"{path} has an int8 KV cache, which onnxruntime {version} cannot compute with; install onnxruntime "
            f"{'.'.join(map(str, INT8_CACHE_SINCE))} or later"
        )


def _check_contract(
    path: Path, kind: str, promised: Sequence[TensorSpec], found: Sequence[onnxruntime.NodeArg]
) -> None:
    """Compare a graph's inputs or outputs with the manifest; additional outputs are allowed.

    Raises:
        BundleError: They differ; names one of the differences.
    """
    tensors = {tensor.name: tensor for tensor in found}
    promises = {name: spec for spec in promised for name in itertools.islice(spec.names(), len(tensors) + 1)}
    surplus = tensors.keys() - promises.keys() if kind == "inputs" else ()
    if odd := sorted({*surplus, *(promises.keys() - tensors.keys())}):
        raise BundleError(
            f"{path}: its {kind} are not those of the manifest ({', '.join(odd[:3])}); export the model again"
        )
    for name, spec in promises.items():
        tensor = tensors[name]
        axes = [size if isinstance(size, int) else None for size in tensor.shape]
        expected = [axis.size for axis in spec.axes]
        if (tensor.type, axes) != (TYPES.get(spec.dtype), expected):
            raise BundleError(
                f"{path}: {name} is {tensor.type}{_shown(axes)}; the manifest says {spec.dtype}{_shown(expected)}: "
                "export the model again"
            )


def _shown(axes: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in axes)}]"


def run_options(returning_memory: bool = False) -> onnxruntime.RunOptions:
    """Options of one run.

    Args:
        returning_memory: Afterwards the session gives back the memory that it computed in.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = FATAL_ONLY  # whatever else goes wrong is raised; a run that was ended is no error
    if returning_memory:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def save_packed(folder: Path, graph: Graph, output: Path) -> None:
    """Have onnxruntime pack a graph's weights for this machine, and write graph and weights to another folder.

    Raises:
        TinyGPTVError: onnxruntime cannot load the graph, or not write it.
    """
    import_onnxruntime()
    options = _options(None)
    options.optimized_model_filepath = str(output / graph.file)
    for name, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", graph.data),
    ):
        options.add_session_config_entry(name, value)
    try:
        _create(folder / graph.file, None, options, "save packed weights of")
    except BundleError as error:
        raise TinyGPTVError(f"is the disk full? {error}") from error


def packing_version() -> str:
    """The properties of onnxruntime that determine how weights are packed: its version and build."""
    import_onnxruntime()
    import onnxruntime

    return f"{onnxruntime.__version__}, {onnxruntime.get_build_info()}"


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY  # what goes wrong is raised
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    if products_saturate():
        # Takes uint8 weights for int8 ones, at some speed. Not for all: it would do so with VNNI too (seen with 1.32).
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _exact(path: Path, model: bytes | None) -> bytes | None:
    """A graph whose int8 weights are all taken as uint8 with :func:`_options`.

    onnxruntime does so only for weights of the same graph: products in the body of a Scan with weights from outside
    would saturate (seen with 1.32). Elsewhere they stay outside, where their memory is returned once they are packed.

    Args:
        path: The .onnx file.
        model: Its content, if it is not the file's.

    Returns:
        ``model`` as it is, if nothing is to be changed.
    """
    try:
        content = path.read_bytes() if model is None else model
        return with_weights_in_subgraphs(content) or model if has_subgraphs(content) else model
    except (OSError, ValueError):  # onnxruntime says it better
        return model


@functools.cache
def products_saturate() -> bool:
    """Whether sums of products of uint8 and int8 saturate at 16 bits here, as they do on x86 without VNNI: tried out.

    That is about MatMulInteger and what onnxruntime makes of it.
    """
    import_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(LARGE_PRODUCTS, options, providers=["CPUExecutionProvider"])
    inputs = {"a": np.full((2, 64), 255, np.uint8), "b": np.full((64, 32), 127, np.int8)}
    return bool((session.run(["y"], inputs)[0] != 64 * 255 * 127).any())


def _create(
    path: Path, model: bytes | None, options: onnxruntime.SessionOptions, purpose: str = "load"
) -> onnxruntime.InferenceSession:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # All of its own, which have no common class; it raises some of the system's errors by the class of their number.
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    # The last one where its message quotes damaged bytes.
    failures: tuple[type[Exception], ...] = (*own, RuntimeError, UnicodeDecodeError)
    try:
        # Its fallback would print to stdout and then try the same provider once more.
        return onnxruntime.InferenceSession(
            str(path) if model is None else model, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except failures as error:
        reason = " ".join(str(error).split())
        if sys.platform != "win32":  # whose numbers os.strerror does not know
            reason = re.sub(r"^SystemError : (\d+)$", lambda found: os.strerror(int(found[1])), reason)
        raise BundleError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot {purpose} it ({reason:.300})"
        ) from error
