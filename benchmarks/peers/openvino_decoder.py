"""OpenVINO: Phi-2 by optimum-intel with int8 weights, its cache kept as the model's own state."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openvino
from decoding import EMBEDDINGS, Adapter, Loaded, measure
from openvino import opset13

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
VARIANTS: dict[str, dict[str, str]] = {
    "int8": {},  # all defaults: bf16 between the layers where the CPU has it
    "int8-f32": F32,
    "int8-f32-group640": F32 | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "640"},
}
REPORTED = (
    "INFERENCE_PRECISION_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "KV_CACHE_PRECISION",
    "INFERENCE_NUM_THREADS",
)
MODEL = "openvino_model.xml"


def prepare(phi: Path, out: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(
        phi, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(bits=8)
    )
    model.save_pretrained(out)


def keep_last_logits(model: openvino.Model) -> None:
    """Have the last product computed for the last position only, as openvino-genai does."""
    product = model.output("logits").get_node().input_value(0).get_node()
    while product.get_type_name() != "MatMul":  # a bias comes after it
        product = product.input_value(0).get_node()
    hidden = product.input(0)
    last = opset13.gather(hidden.get_source_output(), opset13.constant([-1], np.int64), opset13.constant(1, np.int64))
    hidden.replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def load(folder: Path, variant: str, threads: int) -> Loaded:
    core = openvino.Core()
    model = core.read_model(folder / MODEL)
    keep_last_logits(model)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **VARIANTS[variant]}
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}
    beam = np.zeros(1, np.int32)

    def generate(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        request.reset_state()
        fed, total = np.array([prompt], np.int64), 0
        while True:
            past, total = total, total + fed.shape[1]
            inputs = {
                "input_ids": fed,
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(past, total, dtype=np.int64)[np.newaxis],
                "beam_idx": beam,
            }
            request.infer({name: inputs[name] for name in names}, share_inputs=True)
            fed = request.get_tensor("logits").data[:, -1].argmax(-1, keepdims=True)
            yield int(fed[0, 0])

    settings: dict[str, object] = {
        "weights": "int8 per channel, by optimum-intel",
        "cache": "the model's state",
        "logits": "last position only",
        "options": options,
        "compiled_with": {name: str(compiled.get_property(name)) for name in REPORTED},
    }
    weights = (folder / MODEL).with_suffix(".bin").stat().st_size - EMBEDDINGS  # its table is int8
    return Loaded(generate, weights, settings)


ADAPTER = Adapter(
    peer="OpenVINO",
    description=__doc__ or "",
    packages=("openvino", "optimum-intel", "nncf"),
    variants=tuple(VARIANTS),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
