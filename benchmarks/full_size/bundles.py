"""Compares two bundles of one model under the same runtime: prompts, decode steps and pictures, alternating.

Both are open in one process, whose threads don't spin, so that the one that waits takes nothing from the other. Ratios
are taken within a round; their median says what a change of the exporter did.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import numpy as np
import onnxruntime
from tinygptv.runtime.bundle.manifest import DECODER, VISION_ENCODER, Manifest, read_manifest
from tinygptv.runtime.language.decoder import Decoder
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle

PACKAGES = ("tinygptv", "onnxruntime", "numpy")
SHORT, PROMPTS, LONG = 64, (70, 750), 1500
"""Tokens before the steps that are timed; of the prompts that are timed; before the steps after a long context."""
PIECE = 256
"""Of the long context, in tokens."""
Document = dict[str, Any]
SPREAD = 0.02
"""Of the random embeddings: about that of Phi-2's table."""


class Opened:
    """The decoder and the vision encoder of a bundle."""

    def __init__(self, folder: Path, threads: int, steps: int) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self._contract = self.manifest.contract
        self._steps = steps
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def session(graph: str) -> onnxruntime.InferenceSession:
            path = folder / self.manifest.graphs[graph].file
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        self._decoder = Decoder(session(DECODER), self._contract)
        self._encoder = session(VISION_ENCODER)
        self._random = np.random.default_rng(0)

    def round(self) -> dict[str, float]:
        """Seconds of each."""
        found = {f"prefill of {length}": self._prefill(length) for length in PROMPTS}
        found[f"step after {SHORT}"] = self._step(SHORT)
        found[f"step after {LONG}"] = self._step(LONG)
        side = self._contract.image_size
        pixels = self._random.standard_normal((1, 3, side, side)).astype(np.float32)
        started = time.perf_counter()
        self._encoder.run(None, {"pixel_values": pixels})
        return found | {"image": time.perf_counter() - started}

    def _embeds(self, length: int) -> np.ndarray:
        shape = (1, length, self._contract.hidden_size)
        return (self._random.standard_normal(shape) * SPREAD).astype(np.float32)

    def _prefill(self, length: int) -> float:
        state, embeds = self._decoder.start(), self._embeds(length)
        state.run(embeds[:, :2])  # binds, and makes the cache
        started = time.perf_counter()
        state.run(embeds)
        return time.perf_counter() - started

    def _step(self, context: int) -> float:
        """The median of some steps after a context."""
        state = self._decoder.start()
        while left := context - state.cache.length:
            state.run(self._embeds(min(PIECE, left)))
        step, times = self._embeds(1), []
        for _ in range(self._steps + 2):
            started = time.perf_counter()
            state.run(step)
            times.append(time.perf_counter() - started)
        return statistics.median(times[2:])


def table(document: Document) -> str:
    """The figures in Markdown."""
    lines = [
        "| what | before, ms | after, ms | speed-up | min | max |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, ratio in document["times_as_fast"].items():
        before, after = (1e3 * document[side][name]["median"] for side in ("before", "after"))
        ratios = " | ".join(f"{ratio[key]:.2f}" for key in ("median", "min", "max"))
        lines.append(f"| {name} | {before:.0f} | {after:.0f} | {ratios} |")
    return "\n".join(lines)


def report(document: Document) -> str:
    """The table, and what it was measured with."""
    machine = document["machine"]
    cpu = f"{document['threads']} threads of {machine['cpu']} ({', '.join(machine['instruction_sets'])})"
    with_what = f"{document['date']}, {cpu}, onnxruntime {machine['onnxruntime']}."
    return f"{with_what}\n\n{table(document)}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/full_size/bundles.py --before /data/old --after /data/new "
        "-o benchmarks/full_size/bundles.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("before", "after"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up (default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="decode steps timed in each (default: 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(argv)

    opened = {name: Opened(getattr(options, name), options.threads, options.steps) for name in ("before", "after")}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
    for number in tqdm(range(options.rounds + 1), desc="rounds"):
        for name in sorted(opened, reverse=bool(number % 2)):
            rounds[name].append(opened[name].round())
    before, after = rounds["before"][1:], rounds["after"][1:]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "bundles": {name: describe_bundle(getattr(options, name)) for name in opened},
        "times_as_fast": {
            name: spread([b[name] / a[name] for b, a in zip(before, after, strict=True)]) for name in before[0]
        },
        "before": {name: spread([one[name] for one in before]) for name in before[0]},
        "after": {name: spread([one[name] for one in after]) for name in after[0]},
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
