"""Writes Phi-2's folder in today's transformers layout, which the peers' own tools read.

The published folder keeps each layer's q, k and v in one `query_key_value`, rows head by head; transformers since 4.37
wants `q_proj`, `k_proj` and `v_proj`. Same fp16 values, other names.

example: python benchmarks/peers/standard_phi.py --checkpoint /data/random_stage4 --out /data/peers/checkpoint
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from decoding import PHI_FOLDER
from measuring import prepare_once
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

INDEX = "model.safetensors.index.json"
FUSED = "query_key_value"

Array = NDArray[np.floating]


def split(name: str, fused: Array, heads: int) -> Iterator[tuple[str, Array]]:
    """q's, k's and v's rows of a fused weight or bias, [heads * 3 * head_dim, ...]."""
    by_head = fused.reshape(heads, 3, -1, *fused.shape[1:])
    for place, part in enumerate("qkv"):
        rows = by_head[:, place].reshape(-1, *fused.shape[1:])
        yield name.replace(FUSED, f"{part}_proj"), np.ascontiguousarray(rows)


def write(phi: Path, out: Path) -> None:
    out.mkdir()
    heads = json.loads((phi / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
    index = json.loads((phi / INDEX).read_text(encoding="utf-8"))
    weight_map: dict[str, str] = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors: dict[str, Array] = {}
        with safe_open(phi / file, framework="numpy") as shard:
            for name in shard.keys():  # noqa: SIM118 - a shard is no dictionary
                values = shard.get_tensor(name)
                tensors |= split(name, values, heads) if FUSED in name else {name: values}
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (out / INDEX).write_text(json.dumps(index | {"weight_map": weight_map}), encoding="utf-8")
    for path in phi.iterdir():
        if path.suffix != ".safetensors" and path.name != INDEX:
            shutil.copyfile(path, out / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="with the published folder phi-2")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make, to hold a phi-2 too")
    options = parser.parse_args(argv)
    prepare_once(options.out, lambda staging: write(options.checkpoint / PHI_FOLDER, staging / PHI_FOLDER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
