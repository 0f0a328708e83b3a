from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "peers"))
import compare
import contenders
import decoding
import environments
import figures
import measuring
import render
import standard_phi
from contenders import Contender

STUB = """
import json, sys
threads = int(sys.argv[sys.argv.index("--threads") + 1])
print("loading")
if {fails}: raise SystemExit("no such kernel")
memory = dict(peak_rss_bytes={size}, anonymous_bytes={size}, file_bytes=0)
print(json.dumps(dict(peer="p", variant="v", versions=dict(), threads=threads, load_seconds=1.0, settings=dict(),
    encode_seconds=[{seconds}] * 3, memory=memory)))
"""


def result(prefill: float = 2.0, step: float = 0.5, size: int = 100) -> dict[str, Any]:
    return {
        "load_seconds": 1.0,
        "prefill": {"64": [prefill], "70": [prefill, 9 * prefill, prefill]},
        "decode_step_seconds": [step, step, 10 * step],
        "decode_1500_step_seconds": None,
        "memory": {"peak_rss_bytes": size, "anonymous_bytes": size, "file_bytes": 0},
    }


def test_a_ratio_above_one_means_faster_for_seconds_and_more_for_bytes() -> None:
    runs = [
        {"contender": "ours", "beside": "theirs", "round": 0, "result": result(step=0.5, size=300)},
        {"contender": "theirs", "beside": "theirs", "round": 0, "result": result(step=1.0, size=100)},
    ]
    found = figures.ratios(runs)["theirs"]
    assert found["decode_step_seconds"]["median"] == 2
    assert found["peak_rss_bytes"]["median"] == 3
    assert "file_bytes" not in found  # nothing over nothing
    assert "decode_1500_step_seconds" not in found


def test_ratios_are_taken_within_a_round() -> None:
    runs = []
    for number, mood in enumerate((1, 10, 3)):
        for name, step in (("ours", 1.0), ("theirs", 2.0)):
            runs.append({"contender": name, "beside": "theirs", "round": number, "result": result(step=step * mood)})
    assert figures.ratios(runs)["theirs"]["decode_step_seconds"]["rounds"] == [2, 2, 2]
    alone = [run for run in runs if run["round"] != 1 or run["contender"] == "ours"]
    assert figures.ratios(alone)["theirs"]["decode_step_seconds"]["rounds"] == [2, 2]


def test_summaries_are_medians_of_runs_with_the_spread_of_all_samples() -> None:
    runs = [{"contender": "a", "round": i, "result": result(step=step)} for i, step in enumerate((1.0, 2.0, 6.0))]
    assert figures.summarise(runs)["a"]["decode_step_seconds"] == {"median": 2, "min": 1, "max": 60, "runs": 3}


def test_names_that_nobody_has_are_refused() -> None:
    assert [peer.key for peer in contenders.chosen(["torch_decoder:bf16"])] == ["torch_decoder:bf16"]
    assert {peer.variant for peer in contenders.chosen(["llama_cpp_decoder"])} == {"Q8_0", "Q4_0"}
    with pytest.raises(ValueError, match=r"nobody is called llama; expected some of genai_decoder"):
        contenders.chosen(["llama"])


def test_every_contender_has_a_script_and_requirements() -> None:
    for contender in (*contenders.OURS.values(), *contenders.PEERS):
        assert (compare.HERE / f"{contender.adapter}.py").is_file()
        assert contender.environment is None or contender.environment in environments.available()


def test_a_peer_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, seconds, fails in (("ours", 2.0, False), ("slow", 6.0, False), ("broken", 1.0, True)):
        text = STUB.format(seconds=seconds, fails=fails, size=1000)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "weights").write_bytes(b"0" * 100)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(compare, "HERE", tmp_path)
    monkeypatch.setattr(compare, "OURS", {"vision": Contender("ours", "vision", "ours", "v", None, None)})
    peers = [
        Contender("broken", "vision", "broken", "v", None, "model"),
        Contender("slow", "vision", "slow", "v", None, "model"),
        Contender("unmade", "vision", "slow", "w", None, "nowhere"),
    ]
    places = contenders.Places(tmp_path, tmp_path / "models", tmp_path)
    output = tmp_path / "results.json"
    compare.compare(
        peers, places, compare.Effort(2, 1, 1, 60), rounds=2, context_rounds=0, output=output, name="a tier"
    )

    document = json.loads(output.read_text(encoding="utf-8"))
    assert sorted(document["failures"]) == ["broken:v", "slow:w"]
    assert document["names"] == {"ours:v": "a tier", "broken:v": "broken", "slow:v": "slow", "slow:w": "unmade"}
    assert "no such kernel" in document["failures"]["broken:v"]
    assert "slow.py prepare" in document["failures"]["slow:w"]
    assert document["ratios"]["slow:v"]["encode_seconds"]["rounds"] == [3, 3]
    order = [(run["contender"], run["round"]) for run in document["runs"] if run["beside"] == "slow:v"]
    assert order == [("ours:v", 0), ("slow:v", 0), ("slow:v", 1), ("ours:v", 1)]
    assert {run["beside"] for run in document["runs"] if run["contender"] == "ours:v"} == {"broken:v", "slow:v"}
    assert "broken is left out from here on" in capfd.readouterr().err


def test_the_report_shows_ratios_ceilings_and_failures(tmp_path: Path) -> None:
    ours, peer, broken = contenders.OURS["decoder"], *contenders.chosen(["llama_cpp_decoder"])
    runs = [
        {
            "contender": key,
            "beside": peer.key,
            "round": 0,
            "result": result(1.0, step) | {"versions": {}, "weight_bytes": 5},
        }
        for key, step in ((ours.key, 0.5), (peer.key, 0.75))
    ]
    document = {
        "date": "2026-01-01",
        "machine": {"cpu": "a CPU", "instruction_sets": ["avx2"], "memory_bytes": 8e9, "system": "Linux"},
        "threads": 2,
        "names": {contender.key: contender.name for contender in (ours, peer, broken)},
        "runs": runs,
        "failures": {broken.key: "out of memory\nlast words"},
        "figures": figures.summarise(runs),
        "ratios": figures.ratios(runs),
    }
    ceilings = {name: {"median": 20} for name in ("memory_read_bytes_per_second", "fp32_flops", "int8_ops")}
    paths = {name: tmp_path / name for name in ("results.json", "ceilings.json", "README.md", "chart.png")}
    paths["results.json"].write_text(json.dumps(document), encoding="utf-8")
    paths["ceilings.json"].write_text(json.dumps(ceilings), encoding="utf-8")
    paths["README.md"].write_text("before\n<!-- peers: start -->\n<!-- peers: end -->\nafter\n", encoding="utf-8")
    options = ["--ceilings", paths["ceilings.json"], "--readme", paths["README.md"], "--chart", paths["chart.png"]]
    assert render.main([str(paths["results.json"]), *map(str, options)]) == 0
    text = paths["README.md"].read_text(encoding="utf-8")
    assert "| llama.cpp Q8_0 | **1.50** (1.50 to 1.50) |" in text
    assert "| tinygptv int8 | **70** (8 to 70) | 0.35 | **2.0** (0.2 to 2.0) | 0.0 | 50% |" in text
    assert "llama.cpp Q4_0 (out of memory)" in text
    assert "](chart.png)" in text and paths["chart.png"].read_bytes().startswith(b"\x89PNG")


def test_no_environment_is_made_over_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert environments.main(["torch", "tensorflow", "--into", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "is no virtual environment" in said and "expected one of llama_cpp" in said
    assert (tmp_path / "torch" / "thesis.txt").exists()


def test_requirements_are_pinned() -> None:
    for name in environments.available():
        lines = (environments.REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(staging: Path) -> None:
        (staging / "half").touch()
        raise RuntimeError("disk full")

    out = tmp_path / "model"
    with pytest.raises(RuntimeError, match="disk full"):
        measuring.prepare_once(out, fail)
    assert not list(tmp_path.iterdir())
    measuring.prepare_once(out, lambda staging: (staging / "whole").touch())
    measuring.prepare_once(out, fail)  # left alone
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_fused_rows_are_split_by_head() -> None:
    heads, dim, width = 2, 3, 4
    parts = {part: np.random.default_rng(i).standard_normal((heads, dim, width)) for i, part in enumerate("qkv")}
    fused = np.stack([parts[part] for part in "qkv"], axis=1).reshape(heads * 3 * dim, width)
    for part, (name, rows) in zip("qkv", standard_phi.split("a.query_key_value.weight", fused, heads), strict=True):
        assert name == f"a.{part}_proj.weight"
        np.testing.assert_array_equal(rows, parts[part].reshape(-1, width))


def test_prompts_are_the_same_everywhere_and_decoding_times_single_steps() -> None:
    assert decoding.prompt(64) == decoding.prompt(64)
    assert max(decoding.prompt(1500)) < decoding.TEXT_TOKENS
    tokens = iter(range(10))
    assert len(decoding.step_seconds(tokens, 4)) == 4
    assert next(tokens) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="the kinds of memory are told apart on Linux only")
def test_memory_tells_anonymous_from_file_backed() -> None:
    before = measuring.memory()
    held = np.ones(50_000_000, np.uint8)
    after = measuring.memory()
    assert after.anonymous_bytes - before.anonymous_bytes > 0.9 * held.nbytes
    assert after.peak_rss_bytes >= after.anonymous_bytes
