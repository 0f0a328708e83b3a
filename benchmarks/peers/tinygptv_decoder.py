"""This project's own decoder graph, by the layers under `TinyGPTV`: the same cache, binding and greedy loop.

Only the decoder is loaded, as with the peers: a language model's memory stands beside a language model's memory.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from decoding import Adapter, Loaded, measure
from tinygptv.runtime.bundle.manifest import DECODER, EMBEDDINGS, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.language.decoder import Decoder
from tinygptv.runtime.language.embeddings import TokenEmbeddings
from tinygptv.runtime.language.generate import decode


def prepare(phi: Path, out: Path) -> None:
    raise SystemExit(
        f"the bundle is made by `tinygptv-export --phi {phi} ... -o {out}`; give its folder to `run --model`"
    )


def load(folder: Path, variant: str, threads: int) -> Loaded:
    manifest = read_manifest(folder)
    graph, contract = manifest.graphs[DECODER], manifest.contract
    decoder = Decoder(open_session(folder, graph, threads), contract)
    table = TokenEmbeddings(folder / EMBEDDINGS, contract)

    def generate(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        state, inputs_embeds = decoder.start(), table.rows(prompt)[None]
        tokens: Iterator[int] = decode(state, inputs_embeds, lambda token: table.rows([token]), new_tokens, ())
        return tokens

    settings: dict[str, object] = {
        "weights": dataclasses.asdict(graph)["quantization"] or graph.precision,
        "cache": contract.cache_dtype,
        "logits": "last position only",
    }
    return Loaded(generate, (folder / graph.data).stat().st_size, settings)


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
