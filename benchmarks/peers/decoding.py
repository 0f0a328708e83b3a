"""How every language model is measured, whatever runs it: an adapter only says how to load it and how to decode.

The prompt's ids are fixed noise. Decoding is greedy, at batch 1, and does not stop at end of text: the weights are
random, and what they say is of no interest.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from measuring import DecoderResult, command_line, emit, memory, prepare_once, versions

PHI_FOLDER = "phi-2"
EMBEDDINGS = 51_200 * 2_560
"""Numbers in the embedding table, of which a step reads one row."""
TEXT_TOKENS = 50_000
"""Ids below this one are ordinary text in Phi-2's vocabulary of 51,200."""
WARM_UP = 4
PREFILL_LENGTHS = (64, 70)
"""The second is a question about an image: 32 positions of image and 38 of text."""
LONG_PREFILL, LONG_PREFILLS = 750, 2
"""A question about an image of a sibling, 729 positions of it; how often it is timed where a context is asked for."""

Generate = Callable[[Sequence[int], int], Iterator[int]]
"""Prompt ids and how many new tokens will be asked for, to an iterator of new ids.

The first `next` computes the whole prompt, each other one a single step. What happens before the first `next` (taking
memory for the cache) is not timed.
"""


@dataclass(frozen=True)
class Loaded:
    """A model ready to decode, and how it was set up."""

    generate: Generate
    weight_bytes: int
    """Weights that one step reads: all but the table of embeddings."""
    settings: dict[str, object]


@dataclass(frozen=True)
class Adapter:
    """One peer."""

    peer: str
    description: str
    packages: tuple[str, ...]
    """Whose versions stand beside the figures."""
    variants: tuple[str, ...]
    prepare: Callable[[Path, Path], None]
    """From the folder of Phi-2 in the published format, fill a folder."""
    load: Callable[[Path, str, int], Loaded]
    """From the prepared folder, a variant and a number of threads."""


def prompt(length: int) -> list[int]:
    """The same ids for the same length, in every process."""
    generator = random.Random(length)
    return [generator.randrange(TEXT_TOKENS) for _ in range(length)]


def step_seconds(tokens: Iterator[int], steps: int) -> list[float]:
    """Seconds of each of the next ``steps`` tokens."""
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        next(tokens)
        found.append(time.perf_counter() - started)
    return found


def measure(adapter: Adapter, argv: Sequence[str] | None = None) -> int:
    """An adapter's whole command."""
    parser, run = command_line(adapter.description, adapter.variants)
    run.add_argument("--prompt-tokens", type=int, default=64, help="before the decoded tokens (default: 64)")
    run.add_argument(
        "--context-tokens",
        type=int,
        default=0,
        help=f"also decode after so many, and time prompts of {LONG_PREFILL} (default: 0, not)",
    )
    run.add_argument("--decode-tokens", type=int, default=32, help="steps timed (default: 32)")
    run.add_argument("--prefills", type=int, default=5, help="prompts timed, of each length (default: 5)")
    options = parser.parse_args(argv)
    if options.command == "prepare":
        phi = options.checkpoint / PHI_FOLDER
        if not (phi / "config.json").is_file():
            parser.error(f"{phi} has no config.json; --checkpoint wants what standard_phi.py wrote")
        prepare_once(options.out, lambda staging: adapter.prepare(phi, staging))
        return 0

    started = time.perf_counter()
    loaded = adapter.load(options.model, options.variant, options.threads)
    load_seconds = time.perf_counter() - started

    def first_token(length: int) -> float:
        return step_seconds(loaded.generate(prompt(length), 1), 1)[0]

    def decode(length: int) -> list[float]:
        tokens = loaded.generate(prompt(length), options.decode_tokens + 1)
        next(tokens)
        return step_seconds(tokens, options.decode_tokens)

    first_tokens = {
        str(length): list(islice(loaded.generate(prompt(length), WARM_UP), WARM_UP)) for length in PREFILL_LENGTHS
    }
    prefill: dict[str, list[float]] = {str(length): [] for length in PREFILL_LENGTHS}
    for _ in range(options.prefills):
        for length in PREFILL_LENGTHS:
            prefill[str(length)].append(first_token(length))
    if options.context_tokens:
        prefill[str(LONG_PREFILL)] = [first_token(LONG_PREFILL) for _ in range(LONG_PREFILLS)]
    steps = decode(options.prompt_tokens)
    weighed = memory()
    emit(
        DecoderResult(
            peer=adapter.peer,
            variant=options.variant,
            versions=versions(adapter.packages),
            threads=options.threads,
            load_seconds=load_seconds,
            prefill=prefill,
            decode_step_seconds=steps,
            decode_1500_step_seconds=decode(options.context_tokens) if options.context_tokens else None,
            first_tokens=first_tokens,
            weight_bytes=loaded.weight_bytes,
            memory=weighed,
            settings=loaded.settings,
        )
    )
    return 0
