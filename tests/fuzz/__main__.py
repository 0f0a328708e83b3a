"""Feeds spoilt inputs into everything that reads what others made: `python -m tests.fuzz --seconds 60 --seed 1`.

An input may be taken or refused in one line. Another exception, a crash, ten seconds without an end, or a result that
differs in silence is a finding: it is written to a folder, and told with what gives it again. A seed gives the same
inputs always, whatever the machine's speed; a slower one comes less far.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .targets import TARGETS, Target

SECONDS_OF_ONE = 10
MOST_FINDINGS = 20


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in whatever takes longer, where the system has alarms."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def fuzz(name: str, target: Target, seed: int, seconds: float, most: int, failures: Path) -> dict[str, float]:
    """Inputs one after the other, until the time or ``most`` of them is over; what became of them."""
    taken = number = findings = 0
    started = time.monotonic()
    while time.monotonic() - started < seconds and number < most:
        data = target.make(random.Random(f"{name} {seed} {number}"))
        try:
            with _limited(SECONDS_OF_ONE):
                taken += target.check(data)
        except Exception:
            findings += 1
            failures.mkdir(parents=True, exist_ok=True)
            place = failures / f"{name}-{seed}-{number}"
            place.write_bytes(data)
            print(f"{place}: {traceback.format_exc()}", file=sys.stderr)
            if findings >= MOST_FINDINGS:
                break
        number += 1
    return {"inputs": number, "taken": taken, "findings": findings, "seconds": time.monotonic() - started}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="in all, the same for each kind (default: 60)")
    parser.add_argument("--inputs", type=int, default=sys.maxsize, metavar="N", help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="KIND")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), metavar="DIR", help="for findings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what became of the inputs")
    options = parser.parse_args(argv)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    found = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[name](Path(folder))
            share = options.seconds / len(options.only)
            found[name] = fuzz(name, target, options.seed, share, options.inputs, options.failures)
        print(f"{name}: {', '.join(f'{value:.0f} {what}' for what, value in found[name].items())}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"seed": options.seed, "kinds": found}, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["findings"] for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
