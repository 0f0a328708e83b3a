"""What all adapters share: their command line, how they time and weigh, and the one line of JSON they print.

It runs in every peer's own virtual environment, so it needs the standard library only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """This process's resident memory, in bytes."""

    peak_rss_bytes: int
    """The largest it ever was."""
    anonymous_bytes: int
    """Now: what the process allocated itself, which only swapping can take away."""
    file_bytes: int
    """Now: pages of mapped files, which the system may drop and read again."""


@dataclass(frozen=True)
class DecoderResult:
    """What a language model's adapter prints."""

    peer: str
    variant: str
    versions: dict[str, str]
    threads: int
    load_seconds: float
    prefill: dict[str, list[float]]
    """Prompt tokens to seconds until the first new token, one a repeat."""
    decode_step_seconds: list[float]
    """Seconds of each step of one token, after a prompt of ``--prompt-tokens``."""
    decode_1500_step_seconds: list[float] | None
    """The same after a prompt of ``--context-tokens`` (1,500); None if not asked for."""
    first_tokens: dict[str, list[int]]
    """Prompt tokens to the first new ids: peers with the same weights agree, up to their rounding."""
    weight_bytes: int
    """Weights that one step reads: all but the table of embeddings. Memory's speed over this is a step's ceiling."""
    memory: Memory
    settings: dict[str, object]


@dataclass(frozen=True)
class VisionResult:
    """What a vision encoder's adapter prints."""

    peer: str
    variant: str
    versions: dict[str, str]
    threads: int
    load_seconds: float
    encode_seconds: list[float]
    """Seconds of each image, after one to warm up."""
    memory: Memory
    settings: dict[str, object]


def command_line(description: str, variants: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The commands that every adapter has, `prepare` and `run`.

    Returns:
        The parser, and that of `run`, for an adapter's further options.
    """
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="make the peer's model, once")
    prepare.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder to make it from")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; left alone if there")
    run = commands.add_parser("run", help="measure it; the last line printed is the result, as JSON")
    run.add_argument("--model", type=Path, required=True, metavar="DIR", help="what `prepare` made")
    run.add_argument("--variant", choices=variants, required=True)
    run.add_argument("--threads", type=int, required=True)
    return parser, run


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write to, renamed to ``out`` when all went well and removed when not."""
    staging = out.with_name(f"{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def prepare_once(out: Path, make: Callable[[Path], None]) -> None:
    """Have ``make`` fill a folder that appears as ``out``, whole or not at all; nothing if ``out`` is there."""
    if out.exists():
        print(f"{out} is there already", file=sys.stderr)
        return
    started = time.perf_counter()
    with staged(out.absolute()) as staging:
        make(staging)
    print(f"made {out} in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def repeat(action: Callable[[], object], times: int) -> list[float]:
    """Wall time of each of several calls, in seconds."""
    return [seconds(action) for _ in range(times)]


def memory() -> Memory:
    """From Linux's /proc/self/status, the only system that tells the kinds of memory apart."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise SystemExit("memory is read from /proc/self/status, which this system lacks; run the comparison on Linux")
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())

    def size(name: str) -> int:
        return int(fields[name].split()[0]) * 1024  # "1234 kB"

    return Memory(
        peak_rss_bytes=size("VmHWM"),
        anonymous_bytes=size("RssAnon"),
        file_bytes=size("RssFile") + size("RssShmem"),
    )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of packages, by name."""
    return {name: version(name) for name in packages}


def emit(result: DecoderResult | VisionResult) -> None:
    """Print a result as the one JSON object that compare.py reads: the last line of stdout."""
    print(json.dumps(dataclasses.asdict(result)), flush=True)
