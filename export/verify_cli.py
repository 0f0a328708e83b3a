"""The ``tinygptv-export verify`` command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tinygptv.runtime.errors import ExportError, TinyGPTVError

from .architecture import STAGES
from .options import add_source_files
from .verify_bounds import DEFAULTS, Bounds, check

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

example:
  tinygptv-export verify tinygptv-stage4 --phi phi-2 --vision eva_vit_g.pth \\
      --qformer blip2_pretrained_flant5xxl.pth --checkpoint TinyGPT-V_for_Stage4.pth --plot verified.png
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
    options = _parser().parse_args(argv)
    try:
        return _verify(options)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in EXTRA:
            raise
        return _failed(f"{package} is not installed; install what this needs with pip install 'tinygptv[verify]'")
    except (TinyGPTVError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED


def _verify(options: argparse.Namespace) -> int:
    # transformers and matplotlib are of the verify extra: where they are absent, that is said before any work.
    from .verify import verify_bundle
    from .verify_report import document, failures, table, write_whole

    if options.plot is not None:
        from .verify_plot import draw
    for path in (options.json, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ExportError(f"{path}: no folder {path.absolute().parent}; make it first")
    found = verify_bundle(
        bundle=options.bundle,
        phi=options.phi,
        vision=options.vision,
        qformer=options.qformer,
        checkpoint=options.checkpoint,
        stage=options.stage,
        architecture=options.architecture,
        photos=options.photos,
        trust_sources=options.trust_sources,
        progress=True,
    )
    given = {name: value for name in MEANINGS if (value := getattr(options, name)) is not None}
    checked = check(dataclasses.replace(DEFAULTS[found.precision], **given), found.agreement)
    written = [(options.json, json.dumps(document(found, checked), indent=1).encode() + b"\n")] if options.json else []
    if options.plot is not None:
        written.append((options.plot, draw(found)))
    for path, content in written:
        write_whole(path, content)
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
    sources = parser.add_argument_group("what it was made from")
    add_source_files(sources)
    sources.add_argument("--stage", type=int, choices=STAGES, help="of the checkpoint (default: what BUNDLE says)")
    sources.add_argument("--architecture", type=Path, metavar="FILE", help="JSON, if the export was given one")
    sources.add_argument(
        "--trust-sources", action="store_true", help="do not hash these files (10 GB as published) to see that they are"
    )
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="pictures to look at (default: those that come with the exporter)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them to FILE, a PNG")
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
