"""Fails every write, at each system call in turn: `python -m tests.faults --only tune undo --every 10`.

strace (Linux) lets a command run on a small model up to one of its calls that change files, and has that call fail:
the disk is full (ENOSPC), broken (EIO), the call interrupted (EINTR), or the process killed. Then the old or the new
file or bundle is there, whole, and nothing else. After an error one line on stderr names a file and the reason. What a
kill leaves is gone after the next run of the same command, which ends as if nothing had happened. Anything else is a
finding.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .paths import PATHS
from .tracing import FAULTS, missing
from .trial import Outcome, Trial


def sweep(name: str, options: argparse.Namespace, home: Path, bar: tqdm) -> dict[str, Any]:
    """Fail one write path at its points; what became of them."""
    started = time.monotonic()
    home.mkdir()
    trial = Trial(PATHS[name], home)
    tries = list(product(trial.points(options.every, options.seed), options.faults))
    if options.most is not None and len(tries) > options.most:
        tries = random.Random(f"{name} {options.seed}").sample(tries, options.most)
    bar.total += len(tries)
    counts, findings = dict.fromkeys([*options.faults, "missed"], 0), []
    for point, fault in tries:
        try:
            outcome = trial.fail(point, fault)
        except subprocess.TimeoutExpired as hang:
            outcome = Outcome(True, f"{fault} at {point}: not ended within {hang.timeout:.0f} s")
        counts[fault if outcome.was_hit else "missed"] += 1
        if outcome.finding:
            findings.append(outcome.finding)
            bar.write(f"{name}: {outcome.finding}\n", file=sys.stderr)
        bar.update()
    missed, seconds = counts.pop("missed"), round(time.monotonic() - started, 1)
    calls, points = len(trial.undisturbed.points), len({point for point, _ in tries})
    runs = ", ".join(f"{count} {fault}" for fault, count in counts.items())
    bar.write(
        f"{name}: {calls} calls, of which {points} failed: {runs}; {missed} missed, {len(findings)} findings, "
        f"{seconds:.0f} s"
    )
    sys.stdout.flush()
    return {
        "calls": calls,
        "points": points,
        "runs": counts,
        "missed": missed,
        "findings": findings,
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where there was a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PATHS, default=list(PATHS), metavar="PATH", help=", ".join(PATHS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the same call on the same file each Nth")
    parser.add_argument("--most", type=int, metavar="N", help="faults a path, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="for what is drawn (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="write paths at once (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what became of each path")
    options = parser.parse_args(argv)
    if reason := missing():
        parser.error(reason)
    with (
        tempfile.TemporaryDirectory() as home,
        tqdm(total=0, unit="fault", disable=not sys.stderr.isatty()) as bar,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        places = [Path(home).resolve() / name for name in options.only]
        results = pool.map(lambda name, place: sweep(name, options, place, bar), options.only, places)
        found = dict(zip(options.only, results, strict=True))
    if options.json is not None:
        document = {"seed": options.seed, "every": options.every, "paths": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["findings"] for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
