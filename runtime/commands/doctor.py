"""``tinygptv doctor``: reports what this machine can do with a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from .options import EXIT_ERROR, add_bundle, bundle_of, examples
from .terminal import status

if TYPE_CHECKING:
    from .options import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="show what this machine can do with a bundle",
        description="Show CPU, memory and versions, what will be used, what was tuned, and whether the bundle is "
        "complete and fits in memory. Exit status 1 if the bundle cannot answer.",
        epilog=examples("tinygptv doctor ~/models/tinygptv", "tinygptv doctor ~/models/tinygptv --json"),
    )
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the diagnosis, and print the report."""
    from ..diagnosis import diagnose, render  # only here: no other command should start later for it

    bundle = bundle_of(options.bundle)
    with status("reading all of the bundle ..."):
        report = diagnose(bundle)
    print(json.dumps(dataclasses.asdict(report)) if options.json else render(report), flush=True)
    return EXIT_ERROR if report.problems else 0
