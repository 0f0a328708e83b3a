"""The ``tinygptv`` command: answers go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from .commands import app, ask, bundle, caption, chat, doctor, mcp, serve, tune
from .commands.options import BUNDLE_VARIABLE, EXIT_ERROR, EXIT_INTERRUPTED, IntermixedParser
from .commands.terminal import complain, replace_what_lacks
from .errors import TinyGPTVError, is_memory_shortage, line_of
from .system.process import share_one_heap

COMMANDS = (ask, chat, app, caption, serve, mcp, bundle, tune, doctor)
"""Command modules in the order of the help; each has ``add(commands)``, which sets the function to run."""
EXAMPLES = f"""\
examples:
  tinygptv ask photo.jpg "What is in this picture?" --bundle ~/models/tinygptv
  tinygptv chat photo.jpg
  tinygptv app
  tinygptv caption ~/Pictures -o captions.jsonl
  tinygptv bundle verify ~/models/tinygptv

Without --bundle and {BUNDLE_VARIABLE}, a small demo model answers, which knows simple shapes and colours only.
Exit status: 0, 1 for an error (one line on stderr), 2 for wrong usage, 130 for Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a known error, 2 for wrong usage, 130 for Ctrl-C."""
    replace_what_lacks()
    options = _parser().parse_args(argv)
    share_one_heap()
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return run(options)
    except TinyGPTVError as error:
        complain(error)
        return EXIT_ERROR
    except (MemoryError, RuntimeError) as error:
        if not is_memory_shortage(error):  # a thread that gets no memory is a RuntimeError
            raise
        complain("there is not enough memory; close other programs, or see what tinygptv doctor says")
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of a pipe has left.
        _leave_stdout()
        return EXIT_ERROR
    except OSError as error:
        # The answer cannot be written (a full disk), or the bundle not be read.
        complain(line_of(error))
        _leave_stdout()
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED


def _leave_stdout() -> None:
    """Redirect stdout, so that flushing it at exit does not fail again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinygptv",
        description="Ask questions about images, on this machine's CPU, offline.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command", parser_class=IntermixedParser
    )
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """Looks up the version only on request, since that takes a tenth of a command's start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"tinygptv {version('tinygptv')}")
        parser.exit()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    complain(message)


if __name__ == "__main__":
    sys.exit(main())
