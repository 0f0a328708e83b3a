"""``tinygptv tune``: packs a bundle's weights for this machine, once."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from ..bundle.manifest import read_manifest
from ..loading import DEMO_BUNDLE
from ..tuning.make import tune, untune
from .options import add_bundle, bundle_of, examples
from .terminal import status

if TYPE_CHECKING:
    from .options import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="tune a bundle to this machine: weights packed once, then mapped from the disk",
        description="Save a bundle's weights as this machine's onnxruntime packs them, so that they are mapped from "
        "the disk instead of filling memory. The bundle stays usable on other machines.",
        epilog=examples(
            "tinygptv tune ~/models/tinygptv",
            "tinygptv tune ~/models/tinygptv --cache",
            "tinygptv tune ~/models/tinygptv --undo",
        ),
    )
    add_bundle(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cache", action="store_true", help="save a copy to your cache folder (takes more disk)")
    where.add_argument("--undo", action="store_true", help="remove what was saved; the bundle is then as before")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Tune a bundle, or undo the tuning."""
    bundle = bundle_of(options.bundle)
    manifest = read_manifest(bundle)
    if options.undo:
        folders = untune(bundle, manifest)
        if options.json:
            print(json.dumps({"removed": [str(folder) for folder in folders]}), flush=True)
        else:
            for folder in folders:
                print(f"removed what tuning had saved in {folder}")
        return 0
    started = time.perf_counter()
    with status("tuning, which may take minutes ..."):
        # The demo's files are the package's, not ours to change.
        tuned, is_new = tune(bundle, manifest, cache=options.cache or bundle == DEMO_BUNDLE)
    seconds = time.perf_counter() - started
    size = sum(part.data_bytes for part in tuned.graphs.values())
    if options.json:
        found = {"bundle": str(bundle), "home": str(tuned.home), "new": is_new, "seconds": seconds, "bytes": size}
        print(json.dumps(found), flush=True)
        return 0
    how = f"tuned in {seconds:.0f} s" if is_new else "was tuned already, and is undamaged"
    print(f"{bundle} {how}: {size / 1e9:.2f} GB of weights, as they are and packed, in {tuned.home}")
    return 0
