"""onnxruntime-genai: Phi-2 by its own model builder, int8 in blocks of 128, decoded by its own loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from decoding import EMBEDDINGS, Adapter, Loaded, measure

BUILD_OPTIONS = {
    "block_size": "128",
    "accuracy_level": "4",  # int8 activations; the builder's own choice for CPUs
    "prune_lm_head": "true",  # logits of the last position only
    "hf_remote": "false",
}
VARIANT = "int8-128"


def prepare(phi: Path, out: Path) -> None:
    options = [f"{name}={value}" for name, value in BUILD_OPTIONS.items()]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int8", "-e", "cpu"]
    with tempfile.TemporaryDirectory(dir=out) as cache:
        command = [*builder, "-m", str(phi), "-o", str(out / VARIANT), "-c", cache, "--extra_options", *options]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"})


def load(folder: Path, variant: str, threads: int) -> Loaded:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, while the library is loaded
    import onnxruntime_genai

    path = folder / variant
    overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config = onnxruntime_genai.Config(str(path))
    config.overlay(json.dumps(overlay))
    model = onnxruntime_genai.Model(config)

    def generate(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        params = onnxruntime_genai.GeneratorParams(model)
        # The shared buffer is taken whole, so it is only as long as needed.
        params.set_search_options(do_sample=False, max_length=len(prompt) + new_tokens, past_present_share_buffer=True)
        return tokens(onnxruntime_genai.Generator(model, params), prompt)

    def tokens(generator: onnxruntime_genai.Generator, prompt: Sequence[int]) -> Iterator[int]:
        generator.append_tokens(list(prompt))  # computes the prompt
        while True:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    settings: dict[str, object] = {
        "weights": "int8, blocks of 128, by its builder",
        "build_options": BUILD_OPTIONS,
        "cache": "fp32 (the only one its builder has for this on CPUs), past and present in one buffer",
        "logits": "last position only",
    }
    weights = (path / "model.onnx.data").stat().st_size - 4 * EMBEDDINGS  # its table is fp32
    return Loaded(generate, weights, settings)


ADAPTER = Adapter(
    peer="onnxruntime-genai",
    description=__doc__ or "",
    packages=("onnxruntime-genai", "onnxruntime"),
    variants=(VARIANT,),
    prepare=prepare,
    load=load,
)

if __name__ == "__main__":
    sys.exit(measure(ADAPTER))
