"""The ``tinygptv-export`` command."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from tinygptv.runtime.commands.terminal import replace_what_lacks
from tinygptv.runtime.errors import ExportError, line_of
from tinygptv.runtime.system.process import peak_rss

from .bundle import CACHES, GROUP_SIZES, PRECISIONS, Exported, export_bundle
from .calibration import PACKAGED
from .options import add_source_files
from .sources import SourceFiles, problem_with
from .sources.families import TEMPLATE_NAMES
from .verify.command import main as verify

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130
EXAMPLES = """\
examples:
  tinygptv-export --model Mipha-3B -o mipha
  tinygptv-export --model TinyLLaVA-Phi-2-SigLIP-3.1B -o tinyllava
  tinygptv-export --model bunny-phi-2-siglip-lora --phi phi-2 --tower siglip-so400m-patch14-384 -o bunny
  tinygptv-export --phi phi-2 --vision eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
      --checkpoint TinyGPT-V_for_Stage4.pth --stage 4 -o tinygptv-stage4

to compare a bundle with the files it was made from: tinygptv-export verify --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Export one bundle; returns the exit status: 0, 1 for a known error, 2 for wrong usage, 130 for Ctrl-C."""
    replace_what_lacks()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["verify"]:
        return verify(arguments[1:])
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    sources: SourceFiles = {name: options[name] for name in SourceFiles.__annotations__}  # type: ignore[assignment]
    if problem := problem_with(**sources):
        parser.error(problem)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        exported = export_bundle(**options, progress=True)
    except (ExportError, OSError) as error:
        print(f"tinygptv-export: {line_of(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\ntinygptv-export: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    print(_summary(exported))
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """Turn a termination signal into the clean-up of an interrupted export."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinygptv-export",
        description="Turn published weights of TinyGPT-V, LLaVA-Phi, Mipha, TinyLLaVA or Bunny into a bundle that the "
        "tinygptv runtime loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinygptv {version('tinygptv')}")
    add_source_files(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace BUNDLE if it exists")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="int8",
        help="int4: a decoder of half the size, less exact; fp32 is for comparison (default: int8)",
    )
    parser.add_argument(
        "--group-size",
        "--block-size",
        type=int,
        choices=GROUP_SIZES,
        help="how many weights of the decoder share one scale (default: per-channel, where that is exact enough)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=CACHES,
        help="int8: half the memory, faster after long prompts, a little less exact (default: fp16, and "
        "float32 with --precision fp32)",
    )
    parser.add_argument(
        "--calibration",
        type=_folder_or_none,
        default=PACKAGED,
        metavar="FOLDER|none",
        help="pictures and .txt files like those that you will ask about; they decide the scales of int8 weights and "
        "activations (default: a few that come with the exporter; none: no calibration)",
    )
    parser.add_argument(
        "--template",
        choices=TEMPLATE_NAMES,
        help="default prompt template (default: that of the released demo)",
    )
    return parser


def _folder_or_none(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _summary(exported: Exported) -> str:
    width = max(len(record.name) for record in exported.files)
    lines = [f"  {record.name:<{width}}  {record.size / 1e6:10,.1f} MB" for record in exported.files]
    total = sum(record.size for record in exported.files)
    return "\n".join(
        (
            str(exported.path),
            *lines,
            f"  {'in all':<{width}}  {total / 1e6:10,.1f} MB",
            f"made in {exported.seconds:.0f} s, with at most {peak_rss() / 1e9:.1f} GB of memory",
        )
    )
