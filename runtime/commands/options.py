"""Options that several commands share, and the model and answer options created from them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import ArgumentError, TinyGPTVError
from ..language.sampling import GREEDY, Sampling
from ..loading import DEMO_BUNDLE, MemoryMode
from ..model import TinyGPTV
from ..options import DEFAULT_MAX_NEW_TOKENS, AnswerOptions
from ..system.installing import install_command
from .terminal import status

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

BUNDLE_VARIABLE = "TINYGPTV_BUNDLE"
TUNE_VARIABLE = "TINYGPTV_TUNE"
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_USUAL_BUNDLE = f"(default: ${BUNDLE_VARIABLE}, else the demo)"


class _Help(argparse.HelpFormatter):
    """Wraps prose, but keeps the line breaks of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class IntermixedParser(argparse.ArgumentParser):
    """Allows options between IMAGE, IMAGE and QUESTION; argparse itself supports that for the main parser only."""

    _intermixing = False

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"formatter_class": _Help} | named)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._intermixing or self._subparsers is not None:  # with commands of its own it has nothing to intermix
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False


def require(extra: str, *modules: str) -> None:
    """Raise TinyGPTVError if an extra's modules are not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise TinyGPTVError(f"{' and '.join(missing)} not installed; run: {install_command(extra)}")


def examples(*lines: str) -> str:
    """Example commands for the end of a help text."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the bundle as a positional argument."""
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help=f"the model's folder {_USUAL_BUNDLE}")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for choosing and loading a model, used by :func:`load`."""
    parser.add_argument("--bundle", type=Path, metavar="DIR", help=f"model to use {_USUAL_BUNDLE}")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads to compute with (default: TINYGPTV_THREADS, or one for each physical core)",
    )
    parser.add_argument(
        "--memory",
        choices=get_args(MemoryMode),
        default="default",
        help="low: open each part of the model only while it is needed (default: all parts at once)",
    )
    parser.add_argument(
        "--tune", action="store_true", help=f"tune the bundle first if it is not tuned (also: {TUNE_VARIABLE}=1)"
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for an answer's length and conversation format."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help=f"stop after N tokens (default: {DEFAULT_MAX_NEW_TOKENS}, or what the context has room for)",
    )
    parser.add_argument("--template", metavar="NAME", help="prompt template of the bundle (default: the bundle's own)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for sampling and stop strings, used by :func:`answer_options`."""
    group = parser.add_argument_group("sampling", "without these options decoding is greedy: the same answer each time")
    group.add_argument(
        "--temperature", type=_within("temperature", float), metavar="T", help="sample; 1: the model's distribution"
    )
    group.add_argument(
        "--top-p",
        type=_within("top_p", float),
        metavar="P",
        help="sample from the most probable tokens of total probability P",
    )
    group.add_argument(
        "--top-k", type=_within("top_k", int), metavar="K", help="sample from the K most probable tokens (0: all)"
    )
    group.add_argument(
        "--repetition-penalty", type=_within("repetition_penalty", float), metavar="R", help="above 1: repeat less"
    )
    group.add_argument("--seed", type=_within("seed", int), metavar="N", help="the same random numbers each time")
    parser.add_argument(
        "--stop",
        action="append",
        type=_some_text,
        default=[],
        metavar="TEXT",
        help="end the answer at TEXT (repeatable)",
    )


def answer_options(options: argparse.Namespace) -> AnswerOptions:
    """The answer options from :func:`add_answer_options` and :func:`add_sampling_options`."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    sampling = Sampling(**{name: value for name in names if (value := getattr(options, name)) is not None})
    return AnswerOptions(options.max_new_tokens, options.template, sampling, options.stop)


def bundle_of(given: Path | None) -> Path:
    """The bundle named by an argument or the environment, or else the demo."""
    if given is not None:
        return given
    if named := os.environ.get(BUNDLE_VARIABLE):
        return Path(named)
    print("tinygptv: no --bundle given, using the built-in demo model (simple shapes and colours)", file=sys.stderr)
    return DEMO_BUNDLE


def tunes(options: argparse.Namespace) -> bool:
    """Whether to tune a bundle before it is loaded."""
    return bool(options.tune) or os.environ.get(TUNE_VARIABLE, "") not in ("", "0")


def loader(options: argparse.Namespace, background: bool = False) -> Callable[[Path | None], TinyGPTV]:
    """A function that loads a bundle with the options of :func:`add_model_options`."""
    return partial(
        TinyGPTV.load,
        threads=options.threads,
        memory=options.memory,
        tune=tunes(options),
        background=background,
    )


def load(options: argparse.Namespace, bundle: Path | None = None, *, background: bool = False) -> TinyGPTV:
    """Load the model that the options name, or the given bundle."""
    bundle = bundle or bundle_of(options.bundle)
    with status("loading the model ..."):
        return loader(options, background)(bundle)


def positive(text: str) -> int:
    """Parse an argument that is an integer above 0."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected some text; an empty one would end every answer before it began")
    return text


def _within(name: str, kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """A parser for an argument with the range of the field ``name`` of :class:`Sampling`."""

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
            changed: dict[str, Any] = {name: value}
            replace(GREEDY, **changed)  # which checks it
        except ArgumentError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from error
        return value

    return convert
