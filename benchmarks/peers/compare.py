r"""Runs this project beside its peers on this machine, and writes what came out as one JSON.

For each peer, in each round, two fresh processes run one after the other: this project and the peer, in turns who is
first. Ratios are taken within such a pair, so that the machine's moods meet both alike. Every file that a process will
read is read once before, so each load is a warm one. What fails is named, and the rest goes on.

example: python benchmarks/peers/compare.py --environments /data/environments --models /data/peers \
    --bundle /data/bundle --rounds 4 -o benchmarks/peers/results.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contenders import OURS, Contender, Places, chosen
from environments import python_of
from figures import ratios, summarise
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle

HERE = Path(__file__).resolve().parent
PACKAGES = ("tinygptv", "onnxruntime", "numpy")
CONTEXT_TOKENS = 1500
TAIL_LINES = 15
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    threads: int
    repeats: int
    """Prompts of each length, or images, a process."""
    decode_tokens: int
    timeout: float
    """Seconds after which a process has failed."""


class RunError(Exception):
    """A process gave no result; the text says why, with its last words."""


def command_of(contender: Contender, places: Places, effort: Effort, context_tokens: int) -> list[str]:
    """The adapter's command line.

    Raises:
        RunError: Its environment or its model is not there.
    """
    model, python = places.model_of(contender), Path(sys.executable)
    if contender.environment is not None:
        python = python_of(places.environments / contender.environment)
        if not python.exists():
            raise RunError(f"there is no {python}; make it by environments.py {contender.environment}")
    if not model.is_dir():
        raise RunError(f"there is no {model}; make it by {contender.adapter}.py prepare")
    command = [str(python), str(HERE / f"{contender.adapter}.py"), "run", "--model", str(model)]
    command += ["--variant", contender.variant, "--threads", str(effort.threads)]
    if contender.kind == "vision":
        return [*command, "--repeats", str(effort.repeats)]
    decoding = [
        "--prefills",
        effort.repeats,
        "--decode-tokens",
        effort.decode_tokens,
        "--context-tokens",
        context_tokens,
    ]
    return [*command, *map(str, decoding)]


def run(command: Sequence[str], timeout: float) -> dict[str, Any]:
    """The result that an adapter prints as its last line.

    Raises:
        RunError: It failed, took too long, or printed something else.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=os.environ | QUIET, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"still running after {timeout:.0f} s") from error
    tail = "\n".join(done.stderr.splitlines()[-TAIL_LINES:])
    if done.returncode:
        raise RunError(f"exit status {done.returncode}; its last words:\n{tail}")
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise RunError(f"its last line is no JSON: {done.stdout[-200:]!r}\n{tail}") from error
    return result


def read_through(folder: Path) -> None:
    """Have the system hold a folder's files in memory, as far as there is room."""
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            with (Path(parent) / name).open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def compare(
    peers: Sequence[Contender],
    places: Places,
    effort: Effort,
    rounds: int,
    context_rounds: int,
    output: Path,
    name: str | None = None,
) -> None:
    """Run all rounds; the results file is written after each pair.

    Raises:
        RunError: This project itself failed, so there is nothing to compare with.
    """
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": effort.threads,
        "bundle": describe_bundle(places.bundle),
        "names": {ours.key: name or ours.name for ours in OURS.values()} | {peer.key: peer.name for peer in peers},
        "runs": [],
        "failures": {},
    }
    running = []

    def leave_out(peer: Contender, error: RunError) -> None:
        document["failures"][peer.key] = str(error)
        tqdm.write(f"{peer.name} is left out from here on: {error}", file=sys.stderr)

    for peer in peers:
        try:
            command_of(peer, places, effort, 0)
        except RunError as error:
            leave_out(peer, error)
        else:
            running.append(peer)
    with tqdm(total=rounds * len(running) * 2, unit="run") as progress:
        for number in range(rounds):
            context_tokens = CONTEXT_TOKENS if number < context_rounds else 0
            for peer in list(running):
                pair = [OURS[peer.kind], peer]
                for contender in pair if number % 2 == 0 else pair[::-1]:
                    progress.set_description(contender.name)
                    try:
                        command = command_of(contender, places, effort, context_tokens)
                        read_through(places.model_of(contender))
                        result = run(command, effort.timeout)
                    except RunError as error:
                        if contender is not peer:
                            raise
                        leave_out(peer, error)
                        running.remove(peer)
                    else:
                        entry = {"contender": contender.key, "beside": peer.key, "round": number, "result": result}
                        document["runs"].append(entry)
                    progress.update()
                document |= {"figures": summarise(document["runs"]), "ratios": ratios(document["runs"])}
                partial = output.with_name(f"{output.name}.partial")
                partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                partial.replace(output)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, metavar="DIR", help="what environments.py filled")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="the prepared models' folders")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="this project's model")
    parser.add_argument("--name", help=f"of this project's model in tables (default: {OURS['decoder'].name})")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="adapters, or adapter:variant")
    parser.add_argument("--rounds", type=int, default=4, help="an even number (default: 4)")
    parser.add_argument(
        "--context-rounds", type=int, default=2, help=f"that also decode after {CONTEXT_TOKENS} tokens (default: 2)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="prompts or images a process (default: 5)")
    parser.add_argument("--decode-tokens", type=int, default=32, help="a process (default: 32)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a process may take (default: 3600)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(argv)
    if options.rounds % 2 or options.context_rounds % 2:
        parser.error("rounds must be even, so that each is the first as often")
    try:
        peers = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    places = Places(options.environments, options.models, options.bundle)
    effort = Effort(options.threads, options.repeats, options.decode_tokens, options.timeout)
    try:
        compare(peers, places, effort, options.rounds, options.context_rounds, options.output, options.name)
    except RunError as error:
        print(f"tinygptv itself failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
