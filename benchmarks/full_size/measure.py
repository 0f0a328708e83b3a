"""Measures this project at the published sizes: the export, and `tinygptv ask` on a real photo, in new processes.

`ask` is measured as it is by default, with `--memory low`, and after `tinygptv tune`; beside a float32 bundle if one is
given, alternating. The checkpoint is the random one that make_checkpoint.py writes: its words are noise, its speed and
memory are not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asks import prose
from PIL import Image
from published_files import BLIP2_FILE, EVA_FILE, PHI_FOLDER, stage_file_name
from skimage import data
from tinygptv.runtime.bundle.manifest import read_manifest
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle, write_section

QUESTION = "what is this person wearing?"
PACKAGES = ("tinygptv", "onnxruntime", "numpy", "pillow", "tokenizers", "torch")


def run(command: Sequence[str]) -> tuple[str, float, int]:
    """Run a command to its end: (its stdout, seconds, peak resident bytes)."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        output.seek(0)
        return output.read(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def export(checkpoint: Path, stage: int, bundle: Path, *more: str) -> dict[str, float]:
    """Export the checkpoint; its wall time and peak memory."""
    files = {
        "--phi": PHI_FOLDER,
        "--vision": EVA_FILE,
        "--qformer": BLIP2_FILE,
        "--checkpoint": stage_file_name(stage),
    }
    paths = (text for option, name in files.items() for text in (option, str(checkpoint / name)))
    command = [sys.executable, "-m", "tinygptv.export", *paths, "--stage", str(stage), "-o", str(bundle), *more]
    _, seconds, peak = run(command)
    return {"seconds": seconds, "peak_rss_bytes": peak}


def ask(bundle: Path, photo: Path, threads: int, tokens: int, *more: str) -> dict[str, float]:
    """One `tinygptv ask` in a new process; every figure of its --json, flat, and the whole process's seconds."""
    command = [sys.executable, "-m", "tinygptv.runtime.cli", "ask", str(photo), QUESTION, "--bundle", str(bundle)]
    options = ["--json", "--threads", str(threads), "--max-new-tokens", str(tokens)]
    output, seconds, peak = run([*command, *options, *more])
    answer = json.loads(output)
    return {
        **answer["timings"],
        "process": seconds,
        "prompt_tokens": answer["prompt_tokens"],
        "new_tokens": len(answer["token_ids"]),
        "anonymous_bytes": answer["anonymous_bytes"],
        "file_backed_bytes": peak - answer["anonymous_bytes"],
        "peak_rss_bytes": peak,
    }


def summarise(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Median, spread and every sample of each figure."""
    return {
        name: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "samples": values,
        }
        for name in samples[0]
        for values in [[sample[name] for sample in samples]]
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/full_size/measure.py --checkpoint /data/random_stage4 --bundle /data/bundle "
        "-o benchmarks/full_size/results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="what make_checkpoint.py wrote")
    parser.add_argument("--stage", type=int, default=4, choices=(3, 4), help="of the checkpoint (default: 4)")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="where to export to; must not exist")
    parser.add_argument("--fp32", type=Path, metavar="DIR", help="the same model, exported with --precision fp32")
    parser.add_argument("--runs", type=int, default=5, help="questions asked, after one to warm up (default: 5)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens an answer (default: 64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file to put the figures into")
    options = parser.parse_args(argv)

    plain = options.bundle.with_name(f"{options.bundle.name} not calibrated")
    exported = {"not calibrated": export(options.checkpoint, options.stage, plain, "--calibration", "none")}
    shutil.rmtree(plain)
    exported["calibrated"] = export(options.checkpoint, options.stage, options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "astronaut.png"
        Image.fromarray(data.astronaut()).save(photo)

        def asks(*plan: tuple[str, Path, tuple[str, ...]]) -> dict[str, list[dict[str, float]]]:
            """Every entry (name, bundle, options) in each round; the first round warms up."""
            found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in plan}
            for _ in tqdm(range(options.runs + 1), desc=", ".join(found)):
                for name, bundle, more in plan:
                    found[name].append(ask(bundle, photo, options.threads, options.tokens, *more))
            return {name: samples[1:] for name, samples in found.items()}

        samples = asks(("default", options.bundle, ()), ("low memory", options.bundle, ("--memory", "low")))
        if options.fp32 is not None:
            samples |= asks(("beside float32", options.bundle, ()), ("float32", options.fp32, ()))
        tune = [sys.executable, "-m", "tinygptv.runtime.cli", "tune", str(options.bundle)]
        _, tune_seconds, tune_peak = run(tune)
        samples |= asks(("tuned", options.bundle, ()), ("tuned, low memory", options.bundle, ("--memory", "low")))
        run([*tune, "--undo"])
    sources = read_manifest(options.bundle).sources
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "photo": "scikit-image's astronaut, 512x512",
        "bundle": {
            **describe_bundle(options.bundle),
            "source_bytes": sum(source.size for source in sources),
        },
        "export": exported,
        "tune": {"seconds": tune_seconds, "peak_rss_bytes": tune_peak},
        "ask": {name: summarise(found) for name, found in samples.items()},
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.readme is not None:
        write_section(options.readme, "full-size", prose(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
