"""Who is compared: one line a model and variant, and where its parts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["decoder", "vision"]


@dataclass(frozen=True)
class Contender:
    """One adapter with one of its variants."""

    name: str
    """As tables show it."""
    kind: Kind
    adapter: str
    """The script beside this one, without ``.py``."""
    variant: str
    environment: str | None
    """Name of its virtual environment; None for this project's own Python."""
    model: str | None
    """Its folder among the prepared models; None for this project's bundle."""

    @property
    def key(self) -> str:
        """What results and options call it."""
        return f"{self.adapter}:{self.variant}"


OURS: dict[Kind, Contender] = {
    "decoder": Contender("tinygptv int8", "decoder", "tinygptv_decoder", "bundle", None, None),
    "vision": Contender("tinygptv int8", "vision", "tinygptv_vision", "bundle", None, None),
}

PEERS = (
    Contender("llama.cpp Q8_0", "decoder", "llama_cpp_decoder", "Q8_0", "llama_cpp", "llama_cpp"),
    Contender("llama.cpp Q4_0", "decoder", "llama_cpp_decoder", "Q4_0", "llama_cpp", "llama_cpp"),
    Contender(
        "onnxruntime-genai int8", "decoder", "genai_decoder", "int8-128", "onnxruntime_genai", "onnxruntime_genai"
    ),
    Contender("OpenVINO int8", "decoder", "openvino_decoder", "int8", "openvino", "openvino"),
    Contender("OpenVINO int8, f32", "decoder", "openvino_decoder", "int8-f32", "openvino", "openvino"),
    Contender(
        "OpenVINO int8, f32, group 640", "decoder", "openvino_decoder", "int8-f32-group640", "openvino", "openvino"
    ),
    Contender("optimum-onnx int8", "decoder", "optimum_decoder", "int8", "optimum_onnx", "optimum_onnx"),
    Contender("transformers bf16", "decoder", "torch_decoder", "bf16", "torch", "torch"),
    Contender("transformers fp32", "decoder", "torch_decoder", "fp32", "torch", "torch"),
    Contender("ONNX Runtime fp32", "vision", "onnxruntime_vision", "fp32", None, "onnxruntime_vision"),
    Contender("torch fp32", "vision", "torch_vision", "fp32", "torch", "torch_vision"),
    Contender("torch bf16", "vision", "torch_vision", "bf16", "torch", "torch_vision"),
    Contender("OpenVINO f32", "vision", "openvino_vision", "f32", "openvino", "openvino_vision"),
    Contender("OpenVINO bf16", "vision", "openvino_vision", "bf16", "openvino", "openvino_vision"),
    Contender("OpenVINO int8", "vision", "openvino_vision", "int8", "openvino", "openvino_vision"),
    Contender("OpenVINO int8, bf16", "vision", "openvino_vision", "int8_bf16", "openvino", "openvino_vision"),
)


@dataclass(frozen=True)
class Places:
    """Where everything is that was made before."""

    environments: Path
    """What environments.py filled."""
    models: Path
    """A folder for each peer that its adapter's `prepare` made."""
    bundle: Path
    """This project's own model."""

    def model_of(self, contender: Contender) -> Path:
        return self.bundle if contender.model is None else self.models / contender.model


def chosen(only: list[str]) -> list[Contender]:
    """The peers whose key is, or whose adapter is, among ``only``; all if that is empty.

    Raises:
        ValueError: One of ``only`` is nobody's.
    """
    known = {name for peer in PEERS for name in (peer.key, peer.adapter)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"nobody is called {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    return [peer for peer in PEERS if not only or {peer.key, peer.adapter} & set(only)]
