"""Puts what was measured beside what was aimed at, as a table in benchmarks/README.md.

It measures nothing: every figure is taken from a results file of the other scripts here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "full_size"))

import asks
from reporting import write_section

HERE = Path(__file__).resolve().parent
SECTION = "targets"
Document = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure with its target."""

    what: str
    target: float
    found: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.found >= self.target if self.at_least else self.found <= self.target

    def cells(self) -> list[str]:
        aim = f"{'at least' if self.at_least else 'at most'} {self._text(self.target)}"
        return [self.what, aim, self._text(self.found), "yes" if self.met else "**no**"]

    def _text(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.3g}%"
        return f"{value:.2f}{self.unit}"


def rows(peers: Document, ceilings: Document, full_size: Document, steps: Document) -> Iterable[Row]:
    """Every target of speed, memory and time."""

    def ratio(peer: str, figure: str) -> float:
        return float(peers["ratios"][peer][f"{figure}_seconds"]["median"])

    def ask(mode: str, figure: str, family: str = "tinygpt-v") -> float:
        return float(full_size[family]["ask"]["modes"][mode][figure]["median"])

    openvino = [peer for peer in peers["ratios"] if peer.startswith("openvino_decoder")]
    yield Row("decode, beside llama.cpp Q8_0", 1.4, ratio("llama_cpp_decoder:Q8_0", "decode_step"), "x")
    yield Row("decode, beside onnxruntime-genai int8", 1.4, ratio("genai_decoder:int8-128", "decode_step"), "x")
    yield Row("decode, beside OpenVINO's best", 1.3, min(ratio(peer, "decode_step") for peer in openvino), "x")
    yield Row("decode, beside torch bf16", 4.5, ratio("torch_decoder:bf16", "decode_step"), "x")
    ours = next(run["result"] for run in peers["runs"] if run["contender"] == "tinygptv_decoder:bundle")
    step = peers["figures"]["tinygptv_decoder:bundle"]["decode_step_seconds"]["median"]
    bandwidth = ceilings["memory_read_bytes_per_second"]["median"]
    yield Row("decode, of the bandwidth ceiling", 0.75, ours["weight_bytes"] / step / bandwidth, "%")
    yield Row("prefill of 70 tokens, beside llama.cpp Q8_0", 2.5, ratio("llama_cpp_decoder:Q8_0", "prefill_70"), "x")
    yield Row("prefill of 70 tokens, beside onnxruntime-genai", 2.5, ratio("genai_decoder:int8-128", "prefill_70"), "x")
    yield Row("prefill of 70 tokens, beside OpenVINO's default", 1.0, ratio("openvino_decoder:int8", "prefill_70"), "x")
    yield Row("image encode, beside ONNX Runtime fp32", 2.8, ratio("onnxruntime_vision:fp32", "encode"), "x")
    yield Row("image encode, beside OpenVINO's static int8", 0.9, ratio("openvino_vision:int8", "encode"), "x")
    beside = full_size["tinygpt-v"]["fp32"]["modes"]
    times = (beside[name]["time_to_first_token"]["samples"] for name in ("fp32", "int8"))
    found = statistics.median(slow / fast for slow, fast in zip(*times, strict=True))
    yield Row("time to first token, beside the fp32 graphs", 2.2, found, "x")
    medians = steps["medians"]
    yield Row("share of a decode step outside onnxruntime", 0.02, medians["outside_onnxruntime"], "%", False)
    yield Row("decode after 1,500 tokens, of the speed after 64", 0.85, medians["speed_after_1500"], "%")
    yield Row("KV cache a token", 0.34, steps["cache_bytes_a_token"] / 1e6, " MB", False)
    yield Row("tokens/s of 8 prompts in step, beside one", 2.5, medians["batch_speedup"], "x")
    yield Row("load, tuned", 3.0, ask("tuned", "load"), " s", False)
    yield Row("anonymous memory of a whole `ask`, tuned", 0.6, ask("tuned", "anonymous_bytes") / 1e9, " GB", False)
    yield Row("peak RSS of `ask`", 4.6, ask("default", "peak_rss_bytes") / 1e9, " GB", False)
    yield Row("peak RSS of `ask --memory low`", 3.5, ask("low memory", "peak_rss_bytes") / 1e9, " GB", False)
    for name, minutes, gigabytes in (("not calibrated", 6, 3), ("calibrated", 10, 4)):
        made = full_size["tinygpt-v"]["export"][name]
        yield Row(f"export, {name}", minutes, made["seconds"] / 60, " min", False)
        yield Row(f"peak RSS of the export, {name}", gigabytes, made["peak_rss_bytes"] / 1e9, " GB", False)
    for family, name in asks.FAMILIES.items():
        if family != "tinygpt-v":
            peak = full_size[family]["export"]["calibrated"]["peak_rss_bytes"]
            yield Row(f"peak RSS of the export, {name}", 4, peak / 1e9, " GB", False)
            for mode, limit in (("default", 4.6), ("low memory", 3.6)):
                peak = ask(mode, "peak_rss_bytes", family)
                yield Row(f"peak RSS of {asks.MODES[mode]}, {name}", limit, peak / 1e9, " GB", False)


def read_rows() -> list[Row]:
    """Every target with what the results files say."""
    names = ("peers/results.json", "peers/ceilings.json", "full_size/results.json", "full_size/steps.json")
    return list(rows(*(json.loads((HERE / name).read_text(encoding="utf-8")) for name in names)))


def table(found: Iterable[Row]) -> str:
    lines = ["| what | target | found | met |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row.cells())} |" for row in found)])


def missed(found: Sequence[Row]) -> str:
    """One paragraph: how many were met, and those that were not."""
    unmet = [row.cells() for row in found if not row.met]
    names = "; ".join(f"{what}: {value} ({aim})" for what, aim, value, _ in unmet)
    return f"Of {len(found)} targets {len(found) - len(unmet)} were met. Not met: {names or 'none'}."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", metavar="FILE")
    options = parser.parse_args(argv)
    text = table(read_rows())
    write_section(options.readme, SECTION, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
