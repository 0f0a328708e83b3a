"""Compares what was measured with the targets, as a table in benchmarks/README.md.

It measures nothing: every figure is taken from a results file of the other scripts here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import wrapped, write_section

HERE = Path(__file__).resolve().parent
SECTION = "targets"
FULL_SIZE, ZEN4, BUNDLES, RUNTIMES = (
    f"full_size/{name}.json" for name in ("results", "results_zen4", "bundles", "runtimes")
)
FILES = (
    *(f"peers/{name}.json" for name in ("results", "int8_cache", "int4", "ceilings")),
    *(FULL_SIZE, ZEN4, BUNDLES, RUNTIMES, "full_size/int4.json", "full_size/steps_int8_cache.json"),
    "fidelity/results.json",
)
Q8_0, Q4_0, GENAI = "llama_cpp_decoder:Q8_0", "llama_cpp_decoder:Q4_0", "genai_decoder:int8-128"
CACHE = "and an int8 KV cache"
Document = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure with its target."""

    what: str
    target: float
    found: float
    unit: str
    at_least: bool = True
    digits: int = 2

    @property
    def met(self) -> bool:
        return self.found >= self.target if self.at_least else self.found <= self.target

    def cells(self) -> list[str]:
        aim = f"{'at least' if self.at_least else 'at most'} {self._text(self.target)}"
        return [self.what, aim, self._text(self.found), "yes" if self.met else "**no**"]

    def _text(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.{self.digits + 1}g}%"
        return f"{value:.{self.digits}f}{self.unit}"


def rows(found: Mapping[str, Document]) -> Iterable[Row]:
    """Every target of speed, memory and faithfulness; ``found``: the results, by their file's path."""
    peers, cached, int4 = (found[f"peers/{name}.json"] for name in ("results", "int8_cache", "int4"))
    ceilings, full_size, small = (found[name] for name in ("peers/ceilings.json", FULL_SIZE, "full_size/int4.json"))
    exports, runtimes, fidelity = (found[name] for name in (BUNDLES, RUNTIMES, "fidelity/results.json"))

    def ratio(document: Document, peer: str, figure: str) -> float:
        return float(document["ratios"][peer][f"{figure}_seconds"]["median"])

    def openvino(figure: str) -> float:
        decoders = [peer for peer in peers["ratios"] if peer.startswith("openvino_decoder")]
        return min(ratio(peers, peer, figure) for peer in decoders)

    def ask(mode: str, figure: str, document: Document = full_size, family: str = "tinygpt-v") -> float:
        return float(document[family]["ask"]["modes"][mode][figure]["median"])

    def gained(what: str) -> float:
        return float(exports["times_as_fast"][what]["median"])

    yield Row("prefill of 70 tokens, against the previous release", 2.5, gained("prefill of 70"), "x")
    yield Row("prefill of 70 tokens, against llama.cpp Q8_0", 4.5, ratio(peers, Q8_0, "prefill_70"), "x")
    yield Row("prefill of 70 tokens, against onnxruntime-genai int8", 2.0, ratio(peers, GENAI, "prefill_70"), "x")
    yield Row("prefill of 70 tokens, against OpenVINO's best", 1.3, openvino("prefill_70"), "x")
    yield Row("prefill of 750 tokens, against llama.cpp Q8_0", 3.0, ratio(peers, Q8_0, "prefill_750"), "x")
    yield Row("prefill of 750 tokens, against OpenVINO's best", 1.5, openvino("prefill_750"), "x")
    yield Row("decode, against the previous release", 1.25, gained("step after 64"), "x")
    yield Row("decode, against llama.cpp Q8_0", 1.55, ratio(peers, Q8_0, "decode_step"), "x")
    yield Row("decode, against onnxruntime-genai int8", 1.05, ratio(peers, GENAI, "decode_step"), "x")
    yield Row("decode, against llama.cpp Q4_0", 1.05, ratio(peers, Q4_0, "decode_step"), "x")
    ours = next(run["result"] for run in peers["runs"] if run["contender"] == "tinygptv_decoder:bundle")
    step = peers["figures"]["tinygptv_decoder:bundle"]["decode_step_seconds"]["median"]
    bandwidth = ceilings["memory_read_bytes_per_second"]["median"]
    yield Row("decode, of the bandwidth ceiling", 0.80, ours["weight_bytes"] / step / bandwidth, "%")
    steps = found["full_size/steps_int8_cache.json"]
    after = steps["medians"]["speed_after_1500"]
    yield Row("decode after 1,500, of the speed after 64, int8 KV cache", 0.85, after, "%")
    beside = ratio(cached, GENAI, "decode_1500_step")
    yield Row("decode after 1,500, against onnxruntime-genai int8, int8 KV cache", 1.2, beside, "x")
    encode = ratio(peers, "openvino_vision:int8", "encode")
    yield Row("image encode, against OpenVINO's static int8", 1.0, encode, "x")
    taken = runtimes["ratios"]
    first = 1 / taken["time_to_first_token"]["median"]
    yield Row("first token, against the previous release", 1.35, first, "x")
    yield Row("load", 2.5, ask("default", "load"), " s", False)
    yield Row("load, tuned", 1.5, ask("tuned", "load"), " s", False)
    for name, limit in (("first_token", 0.7), ("first_token_cold", 0.75)):
        state = "cold" if name.endswith("cold") else "warm"
        what = f"`ask` as a whole process to its first token, files {state}, of the previous release"
        yield Row(what, limit, taken[name]["median"], "x", False)
    yield Row("peak RSS of `ask`", 4.3, ask("default", "peak_rss_bytes") / 1e9, " GB", False)
    yield Row("peak RSS of `ask --memory low`", 3.3, ask("low memory", "peak_rss_bytes") / 1e9, " GB", False)
    anonymous = ask("tuned", "anonymous_bytes", found[ZEN4]) / 1e9
    yield Row("anonymous memory of `ask`, tuned (Zen 4)", 0.2, anonymous, " GB", False)
    yield Row("KV cache a token, int8", 0.17, steps["cache_bytes_a_token"] / 1e6, " MB", False)
    language, eyes = fidelity["language"], fidelity["vision"]["shipped"]
    yield Row("KL of the language model", 0.0024, language["shipped"]["kl"], "", False, 4)
    yield Row("its top-1 agreement", 0.973, language["shipped"]["top_1_agreement"], "%", digits=4)
    yield Row("its KL with an int8 KV cache", 0.0038, language[f"shipped, {CACHE}"]["kl"], "", False, 4)
    yield Row("cosine of the vision encoder's mean token", 0.9998, eyes["mean_cosine"], "", digits=5)
    yield Row("cosine of its worst token", 0.9990, eyes["worst_cosine"], "", digits=5)
    of_q4_0 = language["4 bits, shipped"]["kl"] / language["4 bits, Q4_0's, lm_head as shipped"]["kl"]
    yield Row("int4: KL, of that of Q4_0's scheme", 0.62, of_q4_0, "x", False)
    yield Row("int4: decode, against llama.cpp Q4_0", 1.15, ratio(int4, Q4_0, "decode_step"), "x")
    yield Row("int4: prefill of 70 tokens, against llama.cpp Q4_0", 2.0, ratio(int4, Q4_0, "prefill_70"), "x")
    yield Row("int4: peak RSS of `ask`", 3.2, ask("default", "peak_rss_bytes", small) / 1e9, " GB", False)
    low = ask("low memory", "peak_rss_bytes", small) / 1e9
    yield Row("int4: peak RSS of `ask --memory low`", 2.2, low, " GB", False)
    disk = small["tinygpt-v"]["ask"]["bundle"]["bytes"] / 1e9
    yield Row("int4: bundle on disk", 2.9, disk, " GB", False)


def read_rows() -> list[Row]:
    """Every target with what the results files say."""
    return list(rows({name: json.loads((HERE / name).read_text(encoding="utf-8")) for name in FILES}))


def table(found: Iterable[Row]) -> str:
    lines = ["| figure | target | measured | met |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row.cells())} |" for row in found)])


def missed(found: Sequence[Row]) -> str:
    """How many were met, and a list of those that were not."""
    unmet = [row.cells() for row in found if not row.met]
    return "\n".join(
        [
            f"{len(found) - len(unmet)} of {len(found)} targets were met. Not met:\n",
            *(wrapped(f"- {what}: {value} ({aim})") for what, aim, value, _ in unmet),
        ]
    )


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
