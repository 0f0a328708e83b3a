"""Options shared by the commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sources.families import STAGES


def add_source_files(parser: argparse.ArgumentParser) -> None:
    """Add the options for published files, with the names of :class:`.sources.SourceFiles`."""
    siblings = parser.add_argument_group("LLaVA-Phi, Mipha, TinyLLaVA, Bunny")
    siblings.add_argument("--model", type=Path, metavar="DIR", help="the published folder, with config.json")
    siblings.add_argument(
        "--tower",
        type=Path,
        metavar="DIR",
        help="the vision tower's folder, if the model's has none (adapters of Bunny)",
    )
    ours = parser.add_argument_group("TinyGPT-V")
    for name, metavar, text in (
        ("--phi", "DIR", "Phi-2 folder: config, weights, tokenizer (also for adapters of Bunny)"),
        ("--vision", "FILE", "eva_vit_g.pth"),
        ("--qformer", "FILE", "blip2_pretrained_flant5xxl.pth"),
        ("--checkpoint", "FILE", "TinyGPT-V_for_StageN.pth"),
    ):
        ours.add_argument(name, type=Path, metavar=metavar, help=text)
    ours.add_argument("--stage", type=int, choices=STAGES, help="of the checkpoint: 1-3 read 224 px, 4 reads 448 px")
    ours.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="JSON with image_size, patch_size, vision_layers, vision_heads, qformer_heads, if not the published ones",
    )
