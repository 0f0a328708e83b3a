"""Options that the commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_source_files(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The four published files."""
    for name, metavar, text in (
        ("--phi", "DIR", "Phi-2 folder: config, weights, tokenizer"),
        ("--vision", "FILE", "eva_vit_g.pth"),
        ("--qformer", "FILE", "blip2_pretrained_flant5xxl.pth"),
        ("--checkpoint", "FILE", "TinyGPT-V_for_StageN.pth"),
    ):
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text)
