"""torch, eager: transformers' own ViT-g with scaled_dot_product_attention, in fp32 and in bf16."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from vision_encoding import Adapter, Features, Loaded, measure
from vision_model import VisionEncoder, read_vision_encoder

WEIGHTS = "vision_encoder.pt"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prepare(checkpoint: Path, folder: Path) -> None:
    """The encoder's merged weights in float32."""
    torch.save(read_vision_encoder(checkpoint).state_dict(), folder / WEIGHTS)


def load(model: Path, variant: str, threads: int) -> Loaded:
    torch.set_num_threads(threads)
    encoder = VisionEncoder()
    encoder.load_state_dict(torch.load(model / WEIGHTS, mmap=True, weights_only=True), assign=True)
    dtype = DTYPES[variant]
    encoder.to(dtype)

    @torch.inference_mode()
    def encode(pixel_values: Features) -> Features:
        features: Features = encoder(torch.from_numpy(pixel_values).to(dtype)).float().numpy()
        return features

    return Loaded(
        encode,
        {
            "dtype": str(dtype),
            "attention": encoder.model.config._attn_implementation,
            "mode": "eager, inference_mode",
        },
    )


ADAPTER = Adapter(
    peer="torch",
    description=__doc__ or "",
    packages=("torch", "transformers"),
    variants=tuple(DTYPES),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
