"""ONNX Runtime sessions: the only place that imports onnxruntime, and sees to it that it stays private."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError
from .manifest import Graph

if TYPE_CHECKING:
    import onnxruntime

TELEMETRY_OFF = ("1", "true", "yes", "y", "on")
"""Values of ``ORT_DISABLE_TELEMETRY`` that onnxruntime obeys, in any case (tried with 1.32)."""
ERRORS_ONLY = 3
"""onnxruntime's log level; its warnings speak to the writers of graphs, not to users."""


def import_onnxruntime() -> None:
    """Import onnxruntime with its telemetry client off.

    From 1.29 on, onnxruntime reads ``ORT_DISABLE_TELEMETRY`` once, while it is imported, and otherwise keeps a database
    of events under the user's cache folder for upload. Where the host program imported it first that cannot be undone
    here, so the host is told.
    """
    variable = "ORT_DISABLE_TELEMETRY"
    if "onnxruntime" not in sys.modules:
        os.environ[variable] = "1"
        import onnxruntime  # noqa: F401 - imported for later
    elif os.environ.get(variable, "").strip().lower() not in TELEMETRY_OFF:
        sys.modules["onnxruntime"].disable_telemetry_events()
        warnings.warn(
            f"onnxruntime was imported before tinygptv with its telemetry on; set {variable}=1 before importing it",
            RuntimeWarning,
            stacklevel=3,  # the caller of TinyGPTV.load
        )
        os.environ[variable] = "1"  # told once; and for the processes that this one starts


def open_session(folder: Path, graph: Graph, layers: int, threads: int | None) -> onnxruntime.InferenceSession:
    """Load one graph of a bundle on the CPU.

    Args:
        folder: The bundle.
        graph: Which graph, with the contract it must keep.
        layers: How many tensors a name with ``{i}`` stands for.
        threads: Threads inside an operator; onnxruntime's own choice (one a physical core) if None.

    Raises:
        BundleError: onnxruntime cannot load the file, or its inputs and outputs are not the manifest's.
    """
    import_onnxruntime()
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    path = folder / graph.file
    failures = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        UnicodeDecodeError,  # the message quotes damaged bytes
    )
    try:
        # Its fallback would print to stdout and then try the same provider once more.
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except failures as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({reason:.300})") from error
    for kind, specs, found in (
        ("inputs", graph.inputs, session.get_inputs()),
        ("outputs", graph.outputs, session.get_outputs()),
    ):
        promised = {
            spec.name.replace("{i}", str(i)) for spec in specs for i in range(layers if "{i}" in spec.name else 1)
        }
        names = {tensor.name for tensor in found}
        if names != promised:
            odd = ", ".join(sorted(names ^ promised)[:3])
            raise BundleError(f"{path}: its {kind} are not those of the manifest ({odd}); export the model again")
    return session
