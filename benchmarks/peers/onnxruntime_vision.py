"""ONNX Runtime in fp32: this project's own fp32 graph (fused attention and norms), with onnxruntime's default settings.

`run --model` takes an fp32 bundle's folder just as well as what `prepare` makes. Preparing needs this project's
exporter, running onnxruntime and numpy only.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it while it is imported

import onnxruntime
from vision_encoding import Adapter, Features, Loaded, measure

GRAPH = "vision_encoder.onnx"
FILES = (GRAPH, f"{GRAPH}.data")
STAGE = 4


def prepare(checkpoint: Path, folder: Path) -> None:
    """Exports a whole fp32 bundle, 15 GB for a while, and keeps the 4 GB of its vision encoder."""
    from tinygptv.export import export_bundle

    bundle = folder / "bundle"
    export_bundle(
        phi=checkpoint / "phi-2",
        vision=checkpoint / "eva_vit_g.pth",
        qformer=checkpoint / "blip2_pretrained_flant5xxl.pth",
        checkpoint=checkpoint / f"TinyGPT-V_for_Stage{STAGE}.pth",
        stage=STAGE,
        precision="fp32",
        output=bundle,
    )
    for name in FILES:
        (bundle / name).rename(folder / name)
    shutil.rmtree(bundle)


def load(model: Path, variant: str, threads: int) -> Loaded:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(model / GRAPH), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )

    def encode(pixel_values: Features) -> Features:
        features: Features = session.run(["image_features"], {"pixel_values": pixel_values})[0]
        return features

    return Loaded(encode, {"graph_optimization_level": options.graph_optimization_level.name})


ADAPTER = Adapter(
    peer="onnxruntime",
    description=__doc__ or "",
    packages=("onnxruntime", "numpy"),
    variants=("fp32",),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
