"""Kills actors, nodes and the command itself at random while a cluster captions: `python -m tests.cluster_kills`.

After each run every picture has one row, with the caption that one machine gives.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from clusters import LocalCluster, cluster
from test_cluster import IMAGES, NAMES, faults_of, pictures
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.captioning import caption_each


def one_run(running: LocalCluster, folder: Path, output: Path, draw: random.Random, kills: Counter[str]) -> None:
    """Caption a folder, while something dies every few seconds; a command that is dead is started again."""
    while True:
        process = subprocess.Popen(
            running.command(folder, "-o", output, "--threads", "1"),
            env=running.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            try:
                process.wait(draw.uniform(2, 8))
                break
            except subprocess.TimeoutExpired:
                what = draw.choices(("actor", "worker", "node", "command"), (5, 2, 2, 1))[0]
            if what == "command":
                process.send_signal(signal.SIGKILL)
            elif what == "node":
                running.kill_node(draw.randrange(len(running.nodes)))
                running.add_node(2)
            elif found := running.actors() if what == "actor" else running.actors("ray::"):
                draw.choice(found).kill()
            else:
                continue
            kills[what] += 1
        _, said = process.communicate()
        if process.returncode == 0:
            return
        if process.returncode != -signal.SIGKILL:
            raise AssertionError(f"status {process.returncode}: {said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="begin no further run after that (default: 300)")
    parser.add_argument("--pictures", type=int, default=400, help="of each run (default: 400)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the counts")
    options = parser.parse_args()
    draw, kills, faults, runs = random.Random(options.seed), Counter[str](), Counter[str](), 0
    with TinyGPTV.load() as model:
        answers = {NAMES[n]: record.text or "" for n, record in caption_each(model, [IMAGES / name for name in NAMES])}
    with tempfile.TemporaryDirectory() as home, cluster(Path(home), 2, 2, 2) as running:
        folder = pictures(Path(home, "in"), options.pictures)
        ends = time.monotonic() + options.seconds
        while time.monotonic() < ends:
            output = Path(home, f"out {runs}")
            one_run(running, folder, output, draw, kills)
            faults += faults_of(output, folder, answers)
            runs += 1
            print(f"{runs} runs; killed: {dict(kills)}; faults: {dict(faults)}", flush=True)
    if options.json:
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "seed": options.seed,
            "runs": runs,
            "pictures_a_run": options.pictures,
            "killed": dict(sorted(kills.items())),
            **{fault: faults[fault] for fault in ("missing", "twice", "other captions")},
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
