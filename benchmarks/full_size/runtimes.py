"""Compares the runtimes of two checkouts: the same question, alternating in new processes.

Ratios are taken within a round, in turns who is first; their median says what a change of the code did, whatever the
machine's speed was that day. Of two exports, each checkout may be given its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from processes import PHOTO, Samples, ask, run, save_photo, summarise
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle

PACKAGES = ("onnxruntime", "numpy", "pillow", "tokenizers")
FIGURES = (
    "load",
    "image_encode",
    "projector",
    "prefill",
    "time_to_first_token",
    "decode",
    "first_token",
    "process",
    "peak_rss_bytes",
)
COLD = "first_token_cold"
WHERE = "import tinygptv.runtime; print(tinygptv.runtime.__file__)"


def environment_of(checkout: Path, folder: Path) -> dict[str, str]:
    """An environment whose tinygptv is the checkout's, by links in ``folder``.

    Raises:
        SystemExit: Python takes another one all the same.
    """
    package = folder / "tinygptv"
    package.mkdir(parents=True)
    for path in [checkout.absolute() / "runtime", *(checkout.absolute() / "tinygptv").glob("*.py")]:
        (package / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    found = run([sys.executable, "-c", WHERE], environment)[0].strip()
    if not Path(found).is_relative_to(folder):
        raise SystemExit(f"Python takes tinygptv.runtime from {found}; expected that of {checkout}")
    return environment


def ratios(before: Sequence[Samples], after: Sequence[Samples]) -> dict[str, dict[str, float]]:
    """What the second runtime takes, as a share of what the first takes in the same round."""
    figures = [name for name in (*FIGURES, COLD) if name in before[0]]
    found = {name: [b[name] / a[name] for a, b in zip(before, after, strict=True)] for name in figures}
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in found.items()
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The ratios in Markdown."""
    lines = ["| after / before | median | least | most |", "| --- | --: | --: | --: |"]
    for name, figures in found.items():
        lines.append(f"| {name} | {' | '.join(f'{figures[key]:.3f}' for key in ('median', 'min', 'max'))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: git worktree add /data/before COMMIT; python benchmarks/full_size/runtimes.py "
        "--before /data/before --after . --bundle /data/bundle -o benchmarks/full_size/runtimes.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("before", "after"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help="a checkout's root")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="one that both can load")
    parser.add_argument("--after-bundle", type=Path, metavar="DIR", help="for the second checkout (default: the same)")
    parser.add_argument(
        "--cold", action="store_true", help="also until the first token with the page cache dropped (Linux, as root)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="after one to warm up (default: 7)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens an answer (default: 64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(argv)

    samples: dict[str, list[Samples]] = {"before": [], "after": []}
    bundles = {"before": options.bundle, "after": options.after_bundle or options.bundle}
    with tempfile.TemporaryDirectory() as folder:
        photo = save_photo(Path(folder))
        environments = {name: environment_of(getattr(options, name), Path(folder, name)) for name in samples}
        for number in tqdm(range(options.rounds + 1), desc="rounds"):
            for name in sorted(environments, reverse=bool(number % 2)):
                asked = ask(
                    bundles[name],
                    photo,
                    options.threads,
                    options.tokens,
                    environment=environments[name],
                    cold=options.cold,
                )
                samples[name].append(asked)
    before, after = samples["before"][1:], samples["after"][1:]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "threads": options.threads,
        "photo": PHOTO,
        "bundles": {name: describe_bundle(bundle) for name, bundle in bundles.items()},
        "ratios": ratios(before, after),
        "before": summarise(before),
        "after": summarise(after),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document["ratios"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
