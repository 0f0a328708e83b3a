"""This project's own vision encoder, from a bundle and by the runtime's own session; its other graphs stay shut."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tinygptv.runtime.bundle.manifest import VISION_ENCODER, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from vision_encoding import Adapter, Features, Loaded, measure


def prepare(checkpoint: Path, out: Path) -> None:
    raise SystemExit(
        f"the bundle is made by `tinygptv-export --vision {checkpoint / 'eva_vit_g.pth'} ... -o {out}`; "
        "give its folder to `run --model`"
    )


def load(folder: Path, variant: str, threads: int) -> Loaded:
    graph = read_manifest(folder).graphs[VISION_ENCODER]
    session = open_session(folder, graph, threads)

    def encode(pixel_values: Features) -> Features:
        features: Features = session.run(["image_features"], {"pixel_values": pixel_values})[0]
        return features

    return Loaded(encode, {"weights": dataclasses.asdict(graph)["quantization"] or graph.precision})


ADAPTER = Adapter(
    peer="tinygptv",
    description=__doc__ or "",
    packages=("tinygptv", "onnxruntime", "numpy"),
    variants=("bundle",),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
