"""Measures this project at the published sizes, in new processes: the export, and `tinygptv ask` about a real photo.

The checkpoint is a random one that make_checkpoint.py writes: its words are noise, its speed and memory are not.
Each command writes one section of its family's entry in the results file and leaves all others as they are.

    export   the export, calibrated and not: time, peak memory, the bundle's size
    ask      a question as it is by default, with `--memory low`, and on request after `tinygptv tune`; then a second
             question about the same photo
    fp32     the same question to the bundle and to the same model in fp32 graphs, alternating
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from make_checkpoint import MARKER, TINYGPTV
from processes import PHOTO, Samples, ask, ask_again, run, save_photo, summarise
from published_files import BLIP2_FILE, EVA_FILE, PHI_FOLDER, stage_file_name
from sibling_files import MODEL_FOLDER
from tinygptv.runtime.bundle.manifest import read_manifest
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle

PACKAGES = ("tinygptv", "onnxruntime", "numpy", "pillow", "tokenizers", "torch")
Plan = dict[str, tuple[Path, tuple[str, ...]]]
"""What is asked, by name: a bundle and more options."""


def sources(checkpoint: Path) -> list[str]:
    """The exporter's options for what make_checkpoint.py wrote."""
    made_with = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["made_with"]
    if made_with.get("family", TINYGPTV) != TINYGPTV:
        return ["--model", str(checkpoint / MODEL_FOLDER)]
    stage = made_with["stage"]
    files = {
        "--phi": PHI_FOLDER,
        "--vision": EVA_FILE,
        "--qformer": BLIP2_FILE,
        "--checkpoint": stage_file_name(stage),
    }
    paths = (text for option, name in files.items() for text in (option, str(checkpoint / name)))
    return [*paths, "--stage", str(stage)]


def export(checkpoint: Path, bundle: Path, *more: str) -> dict[str, float]:
    """Export the checkpoint; its wall time and peak memory."""
    command = [sys.executable, "-m", "tinygptv.export", *sources(checkpoint.absolute()), "-o", str(bundle.absolute())]
    _, seconds, peak = run([*command, *more])
    return {"seconds": seconds, "peak_rss_bytes": peak}


def measure_exports(checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """Both exports; the calibrated one stays at ``bundle``."""
    plain = bundle.with_name(f"{bundle.name} not calibrated")
    found = {"not calibrated": export(checkpoint, plain, "--calibration", "none")}
    shutil.rmtree(plain)
    found["calibrated"] = export(checkpoint, bundle)
    source_bytes = sum(source.size for source in read_manifest(bundle).sources)
    return {"bundle": {**describe_bundle(bundle), "source_bytes": source_bytes}, **found}


def ask_rounds(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """Every entry of the plan in each round; the first round warms up."""
    samples: dict[str, list[Samples]] = {name: [] for name in plan}
    with tempfile.TemporaryDirectory() as folder:
        photo = save_photo(Path(folder))
        for _ in tqdm(range(options.runs + 1), desc=", ".join(plan)):
            for name, (bundle, more) in plan.items():
                samples[name].append(ask(bundle, photo, options.threads, options.tokens, *more))
    return {name: summarise(found[1:]) for name, found in samples.items()}


def measure_asks(options: argparse.Namespace) -> dict[str, Any]:
    """The bundle as it is, a second question, and the bundle tuned if asked for."""
    bundle, low = options.bundle, ("--memory", "low")
    asked = ask_rounds({"default": (bundle, ()), "low memory": (bundle, low)}, options)
    with tempfile.TemporaryDirectory() as folder:
        photo = save_photo(Path(folder))
        again = [ask_again(bundle, photo, options.threads) for _ in range(options.runs)]
    found: dict[str, Any] = {"second question": summarise(again)}
    if options.tuned:
        tune = [sys.executable, "-m", "tinygptv.runtime.cli", "tune", str(bundle.absolute())]
        _, seconds, peak = run(tune)
        asked |= ask_rounds({"tuned": (bundle, ()), "tuned, low memory": (bundle, low)}, options)
        run([*tune, "--undo"])
        found["tune"] = {"seconds": seconds, "peak_rss_bytes": peak}
    return found | {"modes": asked}


def write(results: Path, family: str, section: str, found: dict[str, Any]) -> None:
    """Put one section into the results file, with the machine and the day."""
    document = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    made = {"date": datetime.now(UTC).date().isoformat(), "machine": describe(PACKAGES)}
    document.setdefault(family, {})[section] = {**made, **found}
    results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/full_size/measure.py ask --bundle /data/bundle --tuned "
        "-o benchmarks/full_size/results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    exporting, asking, beside = (commands.add_parser(name) for name in ("export", "ask", "fp32"))
    exporting.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="of make_checkpoint.py")
    exporting.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="to make; must not exist")
    asking.add_argument("--tuned", action="store_true", help="also after tinygptv tune, which is undone at the end")
    beside.add_argument("--fp32", type=Path, required=True, metavar="DIR", help="exported with --precision fp32")
    for command in (asking, beside):
        command.add_argument("--bundle", type=Path, required=True, metavar="DIR")
        command.add_argument("--runs", type=int, default=5, help="questions asked, after one to warm up (default: 5)")
        command.add_argument("--tokens", type=int, default=64, help="new tokens an answer (default: 64)")
        command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    for command in (exporting, asking, beside):
        command.add_argument("-o", "--output", type=Path, required=True, metavar="JSON", help="results file")
    options = parser.parse_args(argv)

    if options.command == "export":
        found = measure_exports(options.checkpoint, options.bundle)
    else:
        found = {"threads": options.threads, "photo": PHOTO, "bundle": describe_bundle(options.bundle)}
        if options.command == "ask":
            found |= measure_asks(options)
        else:
            plan: Plan = {"int8": (options.bundle, ()), "fp32": (options.fp32, ())}
            found["modes"] = ask_rounds(plan, options)
    write(options.output, read_manifest(options.bundle).family, options.command, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
