"""optimum-onnx, the standard route: Phi-2 traced into ONNX, then quantised dynamically by onnxruntime's own tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it while it is imported

import onnxruntime
import torch
from decoding import EMBEDDINGS, Adapter, Loaded, measure
from optimum.onnxruntime import ORTModelForCausalLM

VARIANT = "int8"
FILE = "model_quantized.onnx"


def prepare(phi: Path, out: Path) -> None:
    from optimum_model import write_quantized

    write_quantized(phi, out / VARIANT)


def load(folder: Path, variant: str, threads: int) -> Loaded:
    torch.set_num_threads(1)  # torch only holds the arrays here
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(
        folder / variant, file_name=FILE, session_options=options, use_io_binding=True
    )

    def generate(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        fed, past, total = torch.tensor([prompt]), None, 0
        while True:
            total += fed.shape[1]
            mask = torch.ones((1, total), dtype=torch.int64)
            output = model(input_ids=fed, attention_mask=mask, past_key_values=past, use_cache=True)
            past, fed = output.past_key_values, output.logits[:, -1:].argmax(-1)
            yield int(fed)

    weights = sum(path.stat().st_size for path in (folder / variant).glob("*.onnx*"))
    settings: dict[str, object] = {
        "weights": "int8 per tensor, activations uint8 per tensor as they come",
        "cache": "fp32, grown by copying: the traced graph concatenates",
        "logits": "all positions: the traced graph has no other",
        "values": "one layer's in all, shifted: see optimum_model.py",
        "io_binding": model.use_io_binding,
    }
    return Loaded(generate, weights - EMBEDDINGS, settings)


ADAPTER = Adapter(
    peer="optimum-onnx",
    description=__doc__ or "",
    packages=("optimum-onnx", "onnxruntime", "torch", "transformers"),
    variants=(VARIANT,),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
