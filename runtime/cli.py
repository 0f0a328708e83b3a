"""The ``tinygptv`` command: answers go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TextIO, get_args

from .answer import Answer
from .doctor import examine, render
from .engine import DEFAULT_MAX_NEW_TOKENS
from .errors import TinyGPTVError
from .manifest import read_manifest
from .memory import anonymous_rss, peak_rss
from .model import DEMO_BUNDLE, MemoryMode, TinyGPTV
from .tuning import tune, untune

BUNDLE_VARIABLE = "TINYGPTV_BUNDLE"
TUNE_VARIABLE = "TINYGPTV_TUNE"
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXAMPLES = """\
examples:
  tinygptv ask photo.jpg "What is in this picture?" --bundle ~/models/tinygptv
  tinygptv ask photo.jpg "[caption]" --json
  TINYGPTV_BUNDLE=~/models/tinygptv tinygptv ask photo.jpg "How many people are there?" --stats
  tinygptv tune ~/models/tinygptv
  tinygptv doctor ~/models/tinygptv

Without --bundle and TINYGPTV_BUNDLE, a small demo model answers, which knows simple shapes and colours only.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a known error, 2 for wrong usage, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A console that lacks a character shows a replacement instead of failing (Windows code pages).
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(argv)
    commands = {"ask": _ask, "tune": _tune, "doctor": _doctor}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return commands[options.command](options)
    except TinyGPTVError as error:
        print(f"tinygptv: {error}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of a pipe has left.
        _leave_stdout()
        return EXIT_ERROR
    except OSError as error:
        # The answer cannot be written (a full disk), or the bundle not be read.
        print(f"tinygptv: {error}", file=sys.stderr)
        _leave_stdout()
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED


def _leave_stdout() -> None:
    """Writing what is left at exit would fail, and complain, once more."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinygptv", description="Ask questions about images, on this machine's CPU, offline."
    )
    parser.add_argument("--version", action="version", version=f"tinygptv {version('tinygptv')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    ask = commands.add_parser(
        "ask",
        help="ask one question about one image",
        description="Ask one question about one image; the answer is printed as it is written.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument("image", type=Path, metavar="IMAGE", help="picture to look at: PNG, JPEG, WebP, GIF ...")
    ask.add_argument(
        "question", metavar="QUESTION", help="may begin with a task tag: [vqa] [caption] [refer] [detection]"
    )
    ask.add_argument(
        "--bundle", type=Path, metavar="DIR", help=f"model to use (default: ${BUNDLE_VARIABLE}, else the demo)"
    )
    ask.add_argument(
        "--max-new-tokens",
        type=_positive,
        metavar="N",
        help=f"stop after N tokens (default: {DEFAULT_MAX_NEW_TOKENS}, or what the context has room for)",
    )
    ask.add_argument("--template", metavar="NAME", help="prompt template of the bundle (default: the bundle's own)")
    ask.add_argument("--threads", type=_positive, metavar="N", help="threads to compute with (default: physical cores)")
    ask.add_argument(
        "--memory",
        choices=get_args(MemoryMode),
        default="default",
        help="low: open each part of the model only while it is needed (default: all of it at once)",
    )
    ask.add_argument(
        "--tune", action="store_true", help=f"tune the bundle first if it is not (also: {TUNE_VARIABLE}=1); see tune"
    )
    ask.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    ask.add_argument("--stats", action="store_true", help="print times, speed and memory on stderr")
    tuning = commands.add_parser(
        "tune",
        help="tune a bundle to this machine: weights packed once, then mapped from the disk",
        description="Save a bundle's weights as this machine's onnxruntime packs them, so that they are mapped from "
        "the disk instead of filling memory. The bundle stays usable on other machines. Once more does nothing.",
    )
    _add_bundle(tuning)
    where = tuning.add_mutually_exclusive_group()
    where.add_argument("--cache", action="store_true", help="save to your cache folder (more room on disk: a copy)")
    where.add_argument("--undo", action="store_true", help="remove what was saved; the bundle is as it was")
    doctor = commands.add_parser(
        "doctor",
        help="show what this machine can do with a bundle",
        description="Show CPU, memory and versions, what will be used, what was tuned, and whether the bundle is whole "
        "and fits in memory. Exit status 1 if no answer can be had.",
    )
    _add_bundle(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    usual = f"(default: ${BUNDLE_VARIABLE}, else the demo)"
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help=f"the model's folder {usual}")


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _ask(options: argparse.Namespace) -> int:
    bundle = _bundle(options.bundle)
    started = time.perf_counter()
    wants_tuning = options.tune or os.environ.get(TUNE_VARIABLE, "") not in ("", "0")
    with _status("loading the model ..."):
        model = TinyGPTV.load(bundle, threads=options.threads, memory=options.memory, tune=wants_tuning)
    load_seconds = time.perf_counter() - started
    with model:
        with _status("looking at the image ..."):
            stream = model.stream(
                options.image, options.question, max_new_tokens=options.max_new_tokens, template=options.template
            )
            first = next(stream, "")
        if not options.json:
            for piece in chain([first], stream):
                print(piece, end="", flush=True)
            print()
        answer = stream.answer
    if options.json:
        print(json.dumps(_document(answer, load_seconds)), flush=True)  # ASCII: whole in any encoding
    if options.stats:
        print(_statistics(answer, load_seconds), file=sys.stderr)
    return 0


def _tune(options: argparse.Namespace) -> int:
    bundle = _bundle(options.bundle)
    manifest = read_manifest(bundle)
    if options.undo:
        for folder in untune(bundle, manifest):
            print(f"removed what tuning had saved in {folder}")
        return 0
    started = time.perf_counter()
    with _status("tuning, which may take minutes ..."):
        # The demo's files are the package's, not ours to change.
        tuned, is_new = tune(bundle, manifest, cache=options.cache or bundle == DEMO_BUNDLE)
    size = sum(part.data_bytes for part in tuned.graphs.values())
    how = f"tuned in {time.perf_counter() - started:.0f} s" if is_new else "was tuned already, and is undamaged"
    print(f"{bundle} {how}: {size / 1e9:.2f} GB of weights, as they are and packed, in {tuned.home}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    bundle = _bundle(options.bundle)
    with _status("reading all of the bundle ..."):
        report = examine(bundle)
    print(json.dumps(dataclasses.asdict(report)) if options.json else render(report), flush=True)
    return EXIT_ERROR if report.problems else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"tinygptv: {message}", file=sys.stderr)


@contextmanager
def _status(text: str) -> Iterator[None]:
    """Tell a person at a terminal what takes so long; the line is gone once it is done."""
    shown = sys.stderr is not None and sys.stderr.isatty()
    if shown:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r" + " " * len(text), end="\r", file=sys.stderr, flush=True)


def _bundle(given: Path | None) -> Path:
    if given is not None:
        return given
    if named := os.environ.get(BUNDLE_VARIABLE):
        return Path(named)
    print("tinygptv: no --bundle given, using the built-in demo model (simple shapes and colours)", file=sys.stderr)
    return DEMO_BUNDLE


def _document(answer: Answer, load_seconds: float) -> dict[str, object]:
    document = dataclasses.asdict(answer)
    document["timings"]["load"] = load_seconds
    document["peak_rss_bytes"] = peak_rss()
    document["anonymous_bytes"] = anonymous_rss()  # at the end of the answer, which is about its most
    return document


def _statistics(answer: Answer, load_seconds: float) -> str:
    timings = answer.timings
    anonymous = anonymous_rss()
    kept = "" if anonymous is None else f", {anonymous / 1e9:.2f} GB at the end not backed by files"
    speed = f"{timings.decode_tokens_per_second:.1f} tokens/s" if timings.decode_tokens_per_second else "-"
    rows = (
        ("load", f"{load_seconds:.3f} s"),
        ("preprocess", f"{timings.preprocess:.3f} s"),
        ("image encode", f"{timings.image_encode:.3f} s"),
        ("projector", f"{timings.projector:.3f} s"),
        ("prefill", f"{timings.prefill:.3f} s ({answer.prompt_tokens} tokens)"),
        ("time to first token", f"{timings.time_to_first_token:.3f} s"),
        ("decode", f"{speed} ({len(answer.token_ids)} tokens, finished by {answer.finish_reason})"),
        ("peak RSS", f"{peak_rss() / 1e9:.2f} GB{kept}"),
    )
    return "\n".join(f"{name:>20}  {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
