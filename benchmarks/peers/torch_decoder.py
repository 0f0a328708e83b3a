"""transformers on torch: Phi-2 as most people first run it, in bf16 and in fp32, straight from the published folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from decoding import EMBEDDINGS, PHI_FOLDER, Adapter, Loaded, measure
from transformers import DynamicCache, PhiForCausalLM

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def prepare(phi: Path, out: Path) -> None:
    (out / PHI_FOLDER).symlink_to(phi.absolute())


def load(folder: Path, variant: str, threads: int) -> Loaded:
    torch.set_num_threads(threads)
    model = PhiForCausalLM.from_pretrained(
        folder / PHI_FOLDER, dtype=DTYPES[variant], attn_implementation="sdpa", low_cpu_mem_usage=True
    ).eval()

    def generate(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        cache = DynamicCache(config=model.config)
        fed = torch.tensor([prompt])
        while True:
            # Not around the yield: the mode would leak into the caller.
            with torch.inference_mode():
                logits = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                fed = logits[:, -1:].argmax(-1)
            yield int(fed)

    settings: dict[str, object] = {
        "weights": variant,
        "cache": f"{variant}, DynamicCache",
        "attention": model.config._attn_implementation,
        "logits": "last position only",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    weights = (model.num_parameters() - EMBEDDINGS) * DTYPES[variant].itemsize
    return Loaded(generate, weights, settings)


ADAPTER = Adapter(
    peer="transformers",
    description=__doc__ or "",
    packages=("torch", "transformers"),
    variants=tuple(DTYPES),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
