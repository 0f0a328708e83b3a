"""OpenVINO: the torch encoder converted, in f32, in bf16, and with int8 products (nncf's static quantisation)."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino
from vision_encoding import Adapter, Features, Loaded, measure
from vision_input import CALIBRATION_PHOTOS, SIZE, UNSEEN_PHOTO, fidelity, photo

EXACT, QUANTIZED, FIDELITY = "vision_encoder.xml", "vision_encoder_int8.xml", "fidelity.json"


@dataclass(frozen=True)
class Variant:
    """Which file is run, and with what precision where it does not say int8."""

    file: str
    precision: str


VARIANTS = {
    "f32": Variant(EXACT, "f32"),
    "bf16": Variant(EXACT, "bf16"),
    "int8": Variant(QUANTIZED, "f32"),
    "int8_bf16": Variant(QUANTIZED, "bf16"),
}
"""bf16 is what OpenVINO chooses by itself on a CPU that has it."""


def prepare(checkpoint: Path, folder: Path) -> None:
    """Both models, and how far each variant is from torch in fp32 on a photo that calibration did not see.

    Takes up to 15 GB of memory.
    """
    pixel_values = photo(UNSEEN_PHOTO)
    torch_features = _convert(checkpoint, folder, pixel_values)
    gc.collect()  # the torch modules, which hold each other, before nncf wants as much again
    _quantize(folder)
    found = {
        variant: {"photo": UNSEEN_PHOTO, **fidelity(_compile(folder, variant, 0).encode(pixel_values), torch_features)}
        for variant in VARIANTS
    }
    (folder / FIDELITY).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def load(model: Path, variant: str, threads: int) -> Loaded:
    compiled = _compile(model, variant, threads)
    found = json.loads((model / FIDELITY).read_text(encoding="utf-8"))
    settings = {**compiled.settings, "fidelity_to_torch_fp32": found[variant]}
    if VARIANTS[variant].file == QUANTIZED:
        settings["calibration_photos"] = CALIBRATION_PHOTOS
    return Loaded(compiled.encode, settings)


def _compile(model: Path, variant: str, threads: int) -> Loaded:
    """Compile for latency; 0 threads are as many as there are cores."""
    chosen = VARIANTS[variant]
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": chosen.precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model / chosen.file, "CPU", config).create_infer_request()

    def encode(pixel_values: Features) -> Features:
        features: Features = request.infer([pixel_values], share_inputs=True)[0]
        return features

    return Loaded(encode, config)


def _convert(checkpoint: Path, folder: Path, pixel_values: Features) -> Features:
    """Write the f32 model with its input's shape fixed; what torch computes from a picture, to compare with."""
    import torch
    from vision_model import read_vision_encoder

    encoder = read_vision_encoder(checkpoint)
    with torch.inference_mode():
        features: Features = encoder(torch.from_numpy(pixel_values)).numpy()
    converted = openvino.convert_model(encoder, input=[1, 3, SIZE, SIZE], example_input=torch.from_numpy(pixel_values))
    openvino.save_model(converted, folder / EXACT, compress_to_fp16=False)
    return features


def _quantize(folder: Path) -> None:
    """int8 weights per channel, int8 activations with scales from a few photos; SmoothQuant comes with TRANSFORMER."""
    import nncf

    photos = nncf.Dataset(CALIBRATION_PHOTOS, photo)
    quantized = nncf.quantize(
        openvino.Core().read_model(folder / EXACT),
        photos,
        model_type=nncf.ModelType.TRANSFORMER,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(CALIBRATION_PHOTOS),
        fast_bias_correction=True,
    )
    openvino.save_model(quantized, folder / QUANTIZED, compress_to_fp16=False)


ADAPTER = Adapter(
    peer="openvino",
    description=__doc__ or "",
    packages=("openvino", "nncf", "numpy"),
    variants=tuple(VARIANTS),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
