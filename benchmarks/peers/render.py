"""Puts what compare.py measured into a Markdown file as tables, and into one chart.

example: python benchmarks/peers/render.py benchmarks/peers/results.json --ceilings benchmarks/peers/ceilings.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chart import draw
from contenders import OURS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import wrapped, write_section

BENCHMARKS = Path(__file__).resolve().parents[1]
SECTION = "peers"
ABSENT = ""
PROMPT = 70
LAYER_WEIGHTS = 32 * (4 * 2560**2 + 2 * 2560 * 10240)
"""Phi-2's matrices that every position of a prompt goes through; two operations each."""
ENCODE_OPERATIONS = 39 * (2 * 1025 * (4 * 1408**2 + 2 * 1408 * 6144) + 4 * 1025**2 * 1408)
"""Of one image in ViT-g: the products with weights, and those of attention."""

ABSOLUTE = ("load_seconds", "peak_rss_bytes")
"""Shown in summaries without a ratio: what is loaded at once, and what is mapped and read later, differs too much."""
SUMMARY_OF_DECODERS: Mapping[str, tuple[str, Callable[[float], float], int]] = {
    "decode_step_seconds": ("decode, tokens/s", lambda seconds: 1 / seconds, 1),
    f"prefill_{PROMPT}_seconds": (f"prompt of {PROMPT}, tokens/s", lambda seconds: PROMPT / seconds, 0),
    "decode_1500_step_seconds": ("decode after 1,500, tokens/s", lambda seconds: 1 / seconds, 1),
    "load_seconds": ("load, s", float, 1),
    "peak_rss_bytes": ("peak, GB", lambda size: size / 1e9, 1),
}
"""Figure, what it is called, how seconds or bytes become what is shown, and digits."""
SUMMARY_OF_ENCODERS: Mapping[str, tuple[str, Callable[[float], float], int]] = {
    "encode_seconds": ("seconds", float, 2),
    "load_seconds": ("load, s", float, 1),
    "peak_rss_bytes": ("peak, GB", lambda size: size / 1e9, 1),
}

Document = Mapping[str, Any]
Figures = Mapping[str, Mapping[str, float]]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; the first column is text, the others are numbers."""
    rule = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def spread(figures: Figures, name: str, convert: Callable[[float], float], digits: int) -> str:
    """The median, then the slowest and fastest sample; ``convert`` turns seconds into what is shown."""
    if name not in figures:
        return ABSENT
    values = figures[name]
    low, high = sorted((convert(values["min"]), convert(values["max"])))
    return f"**{convert(values['median']):.{digits}f}** ({low:.{digits}f} to {high:.{digits}f})"


def memory_cells(figures: Figures) -> list[str]:
    return [f"{figures[name]['median'] / 1e9:.2f}" for name in ("peak_rss_bytes", "anonymous_bytes", "file_bytes")]


def decoder_table(document: Document, keys: Sequence[str], bandwidth: float | None) -> str:
    """Speeds and memory of each language model; ``bandwidth`` in bytes a second gives the share of its ceiling."""
    weights = {run["contender"]: run["result"].get("weight_bytes") for run in document["runs"]}
    header = [
        "language model, 2.8B",
        f"prompt of {PROMPT}, tokens/s",
        "TOP/s",
        "decode, tokens/s",
        "GB/s of weights",
        *(["of the ceiling"] if bandwidth else []),
        "decode after 1,500",
        "load, s",
        "peak, GB",
        "anonymous",
        "file-backed",
    ]
    rows = []
    for key in keys:
        figures = document["figures"][key]
        prefill = PROMPT / figures[f"prefill_{PROMPT}_seconds"]["median"]
        read = weights[key] / figures["decode_step_seconds"]["median"]
        rows.append(
            [
                document["names"][key],
                spread(figures, f"prefill_{PROMPT}_seconds", lambda seconds: PROMPT / seconds, 0),
                f"{prefill * 2 * LAYER_WEIGHTS / 1e12:.2f}",
                spread(figures, "decode_step_seconds", lambda seconds: 1 / seconds, 1),
                f"{read / 1e9:.1f}",
                *([f"{read / bandwidth:.0%}"] if bandwidth else []),
                spread(figures, "decode_1500_step_seconds", lambda seconds: 1 / seconds, 1),
                f"{figures['load_seconds']['median']:.1f}",
                *memory_cells(figures),
            ]
        )
    return table(header, rows)


def vision_table(document: Document, keys: Sequence[str]) -> str:
    header = ["vision encoder, 448 px", "seconds an image", "TOP/s", "load, s", "peak, GB", "anonymous", "file-backed"]
    rows = []
    for key in keys:
        figures = document["figures"][key]
        rows.append(
            [
                document["names"][key],
                spread(figures, "encode_seconds", float, 2),
                f"{ENCODE_OPERATIONS / figures['encode_seconds']['median'] / 1e12:.2f}",
                f"{figures['load_seconds']['median']:.1f}",
                *memory_cells(figures),
            ]
        )
    return table(header, rows)


def ratio_table(document: Document, keys: Sequence[str], columns: Mapping[str, str]) -> str:
    """This project over each peer, within the rounds: the median, and the smallest and largest of a round."""
    rows = []
    for key in keys:
        cells = [document["names"][key]]
        for name in columns:
            found = document["ratios"].get(key, {}).get(name)
            cells.append(
                ABSENT
                if found is None
                else f"**{found['median']:.2f}** ({min(found['rounds']):.2f} to {max(found['rounds']):.2f})"
            )
        rows.append(cells)
    return table(["tinygptv against", *columns.values()], rows)


def measured_on(document: Document) -> str:
    """The day, the machine and how often."""
    machine = document["machine"]
    rounds = 1 + max(run["round"] for run in document["runs"])
    return (
        f"{document['date']}, {document['threads']} threads of {machine['cpu']} "
        f"({', '.join(machine['instruction_sets'])}), {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}, "
        f"{rounds} rounds. Random weights of the published sizes; batch 1; medians"
    )


def machine_prose(document: Document, ceilings: Document | None) -> str:
    versions = dict.fromkeys(
        ", ".join(f"{name} {text}" for name, text in run["result"]["versions"].items()) for run in document["runs"]
    )
    lines = [
        f"{measured_on(document)}, and in brackets the slowest and the fastest sample.",
        "Versions: " + "; ".join(versions) + ".",
    ]
    if ceilings is not None:
        lines.append(
            "Ceilings measured on the same machine: "
            f"{ceilings['memory_read_bytes_per_second']['median'] / 1e9:.1f} GB/s read from memory, "
            f"{ceilings['fp32_flops']['median'] / 1e12:.2f} TOP/s in fp32, "
            f"{ceilings['int8_ops']['median'] / 1e12:.2f} TOP/s in int8."
        )
    if document["failures"]:
        lines.append(
            "Without figures, since they failed: "
            + "; ".join(
                f"{document['names'][key]} ({why.splitlines()[0]})" for key, why in document["failures"].items()
            )
            + "."
        )
    return "\n\n".join(map(wrapped, lines))


def report(document: Document, ceilings: Document | None, chart: str | None = None) -> str:
    """The whole section; ``chart`` is the picture's path as seen from the Markdown file."""
    measured = [key for key in document["names"] if key in document["figures"]]
    decoders = [key for key in measured if "decode_step_seconds" in document["figures"][key]]
    encoders = [key for key in measured if "encode_seconds" in document["figures"][key]]
    parts = [machine_prose(document, ceilings)]
    if chart is not None:
        parts.append(f"![Speed and memory of each]({chart})")
    if decoders:
        bandwidth = None if ceilings is None else ceilings["memory_read_bytes_per_second"]["median"]
        columns = {
            "decode_step_seconds": "decode, speed-up",
            f"prefill_{PROMPT}_seconds": f"prompt of {PROMPT}, speed-up",
            "prefill_750_seconds": "prompt of 750, speed-up",
            "decode_1500_step_seconds": "decode after 1,500, speed-up",
            "peak_rss_bytes": "peak memory, ratio",
        }
        peers = [key for key in decoders if key != OURS["decoder"].key]
        parts += [decoder_table(document, decoders, bandwidth), ratio_table(document, peers, columns)]
    if encoders:
        columns = {"encode_seconds": "image, speed-up", "peak_rss_bytes": "peak memory, ratio"}
        peers = [key for key in encoders if key != OURS["vision"].key]
        parts += [vision_table(document, encoders), ratio_table(document, peers, columns)]
    return "\n\n".join(parts)


def summary(document: Document) -> str:
    """The figures that matter most, medians alone, each with this project's speed-up."""
    parts = [wrapped(f"{measured_on(document)}.")]
    for first, kind, columns in (
        ("language model, 2.8B", "decoder", SUMMARY_OF_DECODERS),
        ("vision encoder, one image of 448 px", "vision", SUMMARY_OF_ENCODERS),
    ):
        ours = OURS[kind].key
        keys = [key for key in document["names"] if next(iter(columns)) in document["figures"].get(key, {})]
        header = [first]
        rows = [[f"**{document['names'][key]}**" if key == ours else document["names"][key]] for key in keys]
        for name, (title, convert, digits) in columns.items():
            compared = name not in ABSOLUTE
            header += [title, "speed-up"] if compared else [title]
            for key, row in zip(keys, rows, strict=True):
                row.append(f"{convert(document['figures'][key][name]['median']):.{digits}f}")
                if compared:
                    row.append(ABSENT if key == ours else f"{document['ratios'][key][name]['median']:.2f}x")
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def read(path: Path) -> Document:
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="JSON", help="what compare.py wrote")
    parser.add_argument("--ceilings", type=Path, metavar="JSON", help="what ceilings.py wrote")
    parser.add_argument(
        "--readme", type=Path, default=BENCHMARKS / "README.md", metavar="FILE", help="Markdown to write to"
    )
    parser.add_argument("--chart", type=Path, default=BENCHMARKS / "peers.png", metavar="PNG", help="picture to write")
    options = parser.parse_args(argv)
    document = read(options.results)
    if not document["runs"]:
        print(f"{options.results} has no run that went well; nothing to show", file=sys.stderr)
        return 1
    draw(document, options.chart)
    place = options.chart.resolve().relative_to(options.readme.resolve().parent)
    ceilings = None if options.ceilings is None else read(options.ceilings)
    write_section(options.readme, SECTION, report(document, ceilings, place.as_posix()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
