"""Measures decode steps of a bundle: what of one is not onnxruntime's, what a long context costs, what a batch brings.

Everything alternates within one process, so that the ratios are of one machine's mood.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tinygptv.runtime.bundle.manifest import DECODER, EMBEDDINGS, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.cancel import Cancellation
from tinygptv.runtime.language.batch import decode_batch
from tinygptv.runtime.language.decoder import Decoder
from tinygptv.runtime.language.embeddings import TokenEmbeddings
from tinygptv.runtime.language.generate import decode, most_probable
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle

PACKAGES = ("tinygptv", "onnxruntime", "numpy")
PROMPT_TOKENS, LONG_TOKENS = 64, 1500


class TimedSession:
    """An onnxruntime session that adds up the seconds of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: object) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(*arguments)
        self.seconds += time.perf_counter() - started


class Row:
    """A prompt in a batch, whose answer has ``tokens`` tokens; when each of them came."""

    def __init__(self, embeds: np.ndarray, tokens: int) -> None:
        self._embeds = embeds
        self._tokens = tokens
        self.times: list[float] = []

    def inputs_embeds(self) -> np.ndarray:
        return self._embeds

    def sample(self, logits: np.ndarray) -> int:
        return most_probable(logits)

    def push(self, token_id: int) -> bool:
        self.times.append(time.perf_counter())
        return len(self.times) < self._tokens


def steps(tokens: Iterator[int], count: int) -> float:
    """Seconds that ``count`` more tokens take."""
    started = time.perf_counter()
    for _ in range(count):
        next(tokens)
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/full_size/steps.py --bundle /data/bundle -o benchmarks/full_size/steps.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--tokens", type=int, default=32, help="steps a round (default: 32)")
    parser.add_argument("--batch", type=int, default=8, help="prompts in step (default: 8)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(argv)

    manifest = read_manifest(options.bundle)
    contract = manifest.contract
    session = TimedSession(open_session(options.bundle, manifest.graphs[DECODER], options.threads))
    decoder = Decoder(session, contract)
    table = TokenEmbeddings(options.bundle / EMBEDDINGS, contract)
    words = np.random.default_rng(0).integers(0, min(50_000, contract.vocab_size), LONG_TOKENS)
    ids = words[: options.batch * PROMPT_TOKENS].reshape(options.batch, PROMPT_TOKENS)

    def one(prompt: np.ndarray) -> dict[str, float]:
        """Steps after one prompt, and the share of them that onnxruntime's run calls don't take."""
        tokens = decode(decoder.start(), table.rows(prompt)[None], lambda i: table.rows([i]), options.tokens + 5, ())
        steps(tokens, 4)
        before = session.seconds
        seconds = steps(tokens, options.tokens)
        return {"seconds": seconds / options.tokens, "outside": 1 - (session.seconds - before) / seconds}

    def many() -> float:
        """Seconds of ``tokens`` steps of all rows, after their prompts were read."""
        rows = [Row(table.rows(row)[None], options.tokens + 2) for row in ids]
        deque(decode_batch(decoder, rows, table.rows, (), options.batch, Cancellation()), maxlen=0)
        times = rows[0].times
        return times[-1] - times[-1 - options.tokens]

    one(ids[0]), many()
    rounds = []
    for _ in tqdm(range(options.rounds), desc="rounds"):
        short, long, together = one(ids[0]), one(words), many() / options.tokens
        rounds.append(
            {
                "seconds_a_step": short["seconds"],
                "outside_onnxruntime": short["outside"],
                f"seconds_a_step_after_{LONG_TOKENS}": long["seconds"],
                f"speed_after_{LONG_TOKENS}": short["seconds"] / long["seconds"],
                "seconds_a_batch_step": together,
                "batch_speedup": options.batch * short["seconds"] / together,
            }
        )
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "bundle": describe_bundle(options.bundle),
        "batch": options.batch,
        "cache_bytes_a_token": contract.cache_bytes_per_position,
        "medians": {name: statistics.median(sample[name] for sample in rounds) for name in rounds[0]},
        "rounds": rounds,
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["medians"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
