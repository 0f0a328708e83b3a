"""The ``tinygptv-export verify`` command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tinygptv.runtime.errors import ExportError, TinyGPTVError, line_of
from tinygptv.runtime.system.files import write_atomically
from tinygptv.runtime.system.installing import install_command

from ..options import add_source_files
from ..sources import SourceFiles, problem_with
from ..sources.families import STAGES
from .bounds import DEFAULTS, Bounds, check

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
PROGRAM = "tinygptv-export verify"
EXTRA = ("matplotlib", "transformers")
DESCRIPTION = """\
Compare a bundle with a torch implementation of the published files it was made from: the same photos and texts go
through both, and every layer's output is compared. The torch side holds one layer at a time, so an int8 bundle of the
published sizes fits in 8 GB. The bundle's files, and the published files, are hashed first.
"""
EPILOG = """\
exit status: 0 if all bounds hold, 1 if not (the bounds and the layer that adds most are named) or if something is
wrong with the files, 2 for wrong usage, 130 for Ctrl-C.

examples:
  tinygptv-export verify tinygptv-stage4 --phi phi-2 --vision eva_vit_g.pth \\
      --qformer blip2_pretrained_flant5xxl.pth --checkpoint TinyGPT-V_for_Stage4.pth --plot verified.png
  tinygptv-export verify mipha --model Mipha-3B
"""
MEANINGS = {
    "min_image_features_cosine": "cosine of image_features, mean over tokens",
    "min_image_features_worst_cosine": "cosine of image_features, worst token",
    "min_image_embeds_cosine": "cosine of image_embeds, mean over tokens",
    "min_logits_cosine": "cosine of the logits, mean over the texts' positions",
    "max_kl": "KL(reference || bundle) of the next token, mean, in nats",
    "min_top1": "share of positions at which both choose the same token",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Verify one bundle; returns the exit status that ``--help`` explains."""
    parser = _parser()
    options = parser.parse_args(argv)
    sources: SourceFiles = {name: getattr(options, name) for name in SourceFiles.__annotations__}  # type: ignore[assignment]
    # The bundle says which stage it is of, if the command does not.
    needs_stage = options.model is None and options.stage is None
    if problem := problem_with(**{**sources, "stage": STAGES[0]} if needs_stage else sources):
        parser.error(problem)
    try:
        return _verify(options, sources)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRA:
            raise
        return _failed(f"{package} is not installed; run: {install_command('verify')}")
    except (TinyGPTVError, OSError) as error:
        return _failed(line_of(error))
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED


def _verify(options: argparse.Namespace, sources: SourceFiles) -> int:
    # transformers and matplotlib are of the verify extra: where they are absent, that is said before any work.
    from .report import document, failures, table
    from .verification import verify_bundle

    if options.plot is not None:
        from .plot import draw
    for path in (options.json, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ExportError(f"{path}: no folder {path.absolute().parent}; make it first")
    found = verify_bundle(
        bundle=options.bundle,
        photos=options.photos,
        trust_sources=options.trust_sources,
        progress=True,
        **sources,
    )
    given = {name: value for name in MEANINGS if (value := getattr(options, name)) is not None}
    checked = check(dataclasses.replace(DEFAULTS[found.precision], **given), found.agreement)
    written = [(options.json, json.dumps(document(found, checked), indent=1).encode() + b"\n")] if options.json else []
    if options.plot is not None:
        written.append((options.plot, draw(found)))
    for path, content in written:
        write_atomically(path, lambda file, content=content: file.write(content))
    print(table(found, checked))
    return 0 if all(bound["holds"] for bound in checked) else _failed(failures(found, checked))


def _failed(message: str) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that tinygptv-export wrote")
    add_source_files(parser)
    parser.add_argument(
        "--trust-sources", action="store_true", help="do not check the SHA-256 of these files (10 GB as published)"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="FOLDER",
        help="pictures to compare with (default: those that come with the exporter)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot them to FILE, a PNG")
    bounds = parser.add_argument_group("bounds")
    for field in dataclasses.fields(Bounds):
        least = "at most" if field.name.startswith("max_") else "at least"
        defaults = ", ".join(f"{precision} {getattr(bound, field.name):g}" for precision, bound in DEFAULTS.items())
        bounds.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=float,
            metavar="X",
            help=f"{MEANINGS[field.name]}: {least} X (default: {defaults})",
        )
    return parser
