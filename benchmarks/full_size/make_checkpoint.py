"""Makes a random checkpoint in one family's published file formats, by default at the published sizes.

Exporter and runtime can then be timed and weighed at full size where the trained files are not at hand. Only sizes,
keys, shapes and dtypes are those of the published files; the answers mean nothing. Every tensor has a random generator
of its own, seeded by ``--seed`` and by the tensor's file and key: its values depend on nothing else in the run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from published_files import write_tinygptv
from published_tensors import SCALES, tensor_bytes
from random_tensors import Draw, Tensor, draw_tensor
from sibling_files import FAMILIES, MODEL_FOLDER, sibling_bytes, write_sibling
from tqdm import tqdm
from writers import write_json

FORMAT_VERSION = 1
"""Raised whenever the same seed no longer gives the same files."""
TINYGPTV = "tinygpt-v"
MARKER = "made_checkpoint.json"
GB = 10**9


class CheckpointError(Exception):
    """The checkpoint cannot be made or reused; the text is one line meant for the user."""


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, the marker aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def can_reuse(out: Path, made_with: dict[str, Any]) -> bool:
    """Whether ``out`` is a finished checkpoint made with these settings.

    Raises:
        CheckpointError: There is something else at ``out``, which is left alone.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{out} exists and has no readable {MARKER}: remove it or choose another --out"
        ) from error
    if not isinstance(marker, dict) or marker.get("made_with") != made_with:
        found = marker.get("made_with") if isinstance(marker, dict) else marker
        raise CheckpointError(f"{out} was made with {found}, not {made_with}: remove it or choose another --out")
    if marker.get("files") != file_sizes(out):
        raise CheckpointError(f"{out} was changed after it was made: remove it or choose another --out")
    return True


def check_tokenizer(folder: Path) -> None:
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"no {' and no '.join(missing)} in {folder}: give a tokenizer's folder by --tokenizer")


def check_free_disk(out: Path, needed: int, keep_free: int) -> None:
    parent = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free - keep_free < needed:
        raise CheckpointError(
            f"not enough disk at {parent}: {needed / GB:.1f} GB needed and {keep_free / GB:.1f} GB to be kept free, "
            f"but {free / GB:.1f} GB found"
        )


@dataclass(frozen=True)
class Plan:
    """What is to be made."""

    made_with: dict[str, Any]
    """The settings, by which a finished folder is known again; ``seed`` is one: other seeds give other values."""
    needed: int
    """Bytes of the tensors; what holds them adds less than a thousandth."""
    tokenizer: Path
    """Folder of the tokenizer that fits."""
    write: Callable[[Path, Path, Draw], None]
    """Writes the files into a folder, with the tokenizer of another."""


def plan_tinygptv(stage: int, seed: int, scale: str) -> Plan:
    made_with = {"format_version": FORMAT_VERSION, "seed": seed, "stage": stage, "scale": scale}
    sizes = SCALES[scale]
    return Plan(made_with, tensor_bytes(sizes, stage), sizes.tokenizer, partial(write_tinygptv, scale, stage))


def plan_sibling(family: str, seed: int, scale: str) -> Plan:
    made_with = {"format_version": FORMAT_VERSION, "seed": seed, "family": family, "scale": scale}
    tokenizer = FAMILIES[family].sizes(scale).tokenizer
    return Plan(made_with, sibling_bytes(family, scale), tokenizer, partial(write_sibling, family, scale))


def make_checkpoint(out: Path, plan: Plan, tokenizer: Path | None = None, keep_free: int = GB) -> None:
    """Makes the checkpoint folder, or leaves it as it is if it was made with the same settings.

    Args:
        out: Folder to make. It appears when it is complete, not before.
        plan: Of one family.
        tokenizer: Folder whose tokenizer files are copied; by default one that fits the scale.
        keep_free: Bytes that must stay free on the disk.

    Raises:
        CheckpointError: The disk is too full, the tokenizer is missing, or ``out`` holds something else.
    """
    out = out.absolute()
    tokenizer = tokenizer or plan.tokenizer
    if can_reuse(out, plan.made_with):
        print(f"reusing {out}", file=sys.stderr)
        return
    check_tokenizer(tokenizer)
    check_free_disk(out, plan.needed, keep_free)

    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    staging.mkdir()
    try:
        with tqdm(total=plan.needed, unit="B", unit_scale=True, desc=out.name) as bar:

            def draw(file: str, tensor: Tensor) -> torch.Tensor:
                values = draw_tensor(plan.made_with["seed"], file, tensor)
                bar.update(tensor.nbytes)
                return values

            plan.write(staging, tokenizer, draw)
        write_json(staging / MARKER, {"made_with": plan.made_with, "files": file_sizes(staging)})
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging)
        raise


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a random checkpoint in one family's published file formats (10 GB at TinyGPT-V's published "
        "sizes, 6.4 GB at the others').",
        epilog="examples: python benchmarks/full_size/make_checkpoint.py --out /data/random_stage4 --stage 4; "
        "python benchmarks/full_size/make_checkpoint.py --family llava-phi --out /data/random_llava_phi",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make; reused if it is already there")
    parser.add_argument(
        "--family",
        choices=(TINYGPTV, *FAMILIES),
        default=TINYGPTV,
        help=f"whose files; all but {TINYGPTV}'s are in the folder's {MODEL_FOLDER}/ (default: {TINYGPTV})",
    )
    parser.add_argument("--stage", type=int, choices=(3, 4), help=f"which of {TINYGPTV}'s (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other values (default: 0)")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="published", help="tiny: small sizes for tests (default: published)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder to copy the tokenizer from (default: tests/tokenizer)"
    )
    parser.add_argument(
        "--keep-free", type=float, default=1.0, metavar="GB", help="refuse to leave less disk free (default: 1)"
    )
    arguments = parser.parse_args(argv)
    if arguments.stage is not None and arguments.family != TINYGPTV:
        parser.error(f"--stage is for --family {TINYGPTV} alone")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 after a known error, or 130 after Ctrl-C."""
    arguments = parse_arguments(argv)
    if arguments.family == TINYGPTV:
        plan = plan_tinygptv(arguments.stage or 4, arguments.seed, arguments.scale)
    else:
        plan = plan_sibling(arguments.family, arguments.seed, arguments.scale)
    try:
        make_checkpoint(arguments.out, plan, arguments.tokenizer, int(arguments.keep_free * GB))
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
