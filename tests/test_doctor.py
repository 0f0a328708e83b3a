"""What ``tinygptv doctor`` says: of the machine, of the bundle, and whether an answer can be had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import plain_environment
from file_contents import flip
from tinygptv.runtime import diagnosis, memory_needs
from tinygptv.runtime.bundle import sessions
from tinygptv.runtime.bundle.manifest import (
    DECODER,
    PROJECTOR,
    VISION_ENCODER,
    Axis,
    Manifest,
    TensorSpec,
    read_manifest,
)
from tinygptv.runtime.bundle.sessions import LARGE_PRODUCTS
from tinygptv.runtime.cli import main
from tinygptv.runtime.system import machine
from tinygptv.runtime.system.machine import SystemMemory
from tinygptv.runtime.tuning.find import FOLDER, INDEX
from tinygptv.runtime.tuning.make import tune

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
GB = 1_000_000_000


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


def report(bundle: Path, capsys: pytest.CaptureFixture[str], status: int = 0) -> dict:
    assert main(["doctor", str(bundle), "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# The command


def test_for_a_person(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(bundle)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    names = [line[:14].strip() for line in captured.out.splitlines()]
    assert names == [
        *("CPU", "features", "int8 kernels", "int8 products", "threads", "memory", "versions", "telemetry"),
        *("bundle", "precision"),
        *("tuned", "tuned", "memory default", "memory low", "KV cache", "advice", "answers"),
    ]
    assert str(bundle) in captured.out
    assert "telemetry  off" in captured.out


def test_for_a_program(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(bundle, capsys)
    assert found["problems"] == []
    assert found["cpu"]["threads"] >= found["threads"] >= 1
    assert found["memory"]["total"] > found["memory"]["available"] > 10_000_000
    assert found["versions"]["onnxruntime"].count(".") == 2
    assert found["telemetry_off"] is True
    assert found["bundle"]["precision"] == dict.fromkeys(("vision_encoder", "projector", "decoder"), "int8")
    assert [(place["usable"], place["reason"]) for place in found["bundle"]["tuned"]] == [(False, "not tuned")] * 2
    default, low = found["bundle"]["needs"]
    assert (default["memory"], low["memory"]) == ("default", "low")
    assert default["peak"] > low["peak"] == low["unbacked"] > 0
    assert default["fits"] and low["fits"]


def test_without_a_bundle_it_is_the_demo(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGPTV_BUNDLE", str(bundle))
    assert main(["doctor"]) == 0
    assert str(bundle) in capsys.readouterr().out


def test_nothing_is_written(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    report(bundle, capsys)
    assert sorted(tmp_path.rglob("*")) == before


# The bundle


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (problem,) = report(tmp_path / "nowhere", capsys, status=1)["problems"]
    assert "nowhere is not a folder" in problem
    assert main(["doctor", str(tmp_path)]) == 1
    assert "problem  " in capsys.readouterr().out


def test_damage_that_loading_does_not_look_for(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a full-size bundle are too large to be hashed at each start; here they are."""
    monkeypatch.setattr("tinygptv.runtime.bundle.manifest.HASHED_BYTES", 0)
    flip(bundle / "decoder.onnx.data", 12345)
    read_manifest(bundle)
    (problem,) = report(bundle, capsys, status=1)["problems"]
    assert problem == f"decoder.onnx.data of {bundle} is damaged; copy the bundle again"


def test_tuned(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = tune(bundle, read_manifest(bundle))
    found = report(bundle, capsys)["bundle"]
    assert found["tuned"] == [{"folder": str(bundle), "usable": True, "reason": ""}]
    assert all(need["unbacked"] < need["peak"] for need in found["needs"])
    index = bundle / FOLDER / INDEX
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace('"onnxruntime": "', '"onnxruntime": "0.'), encoding="utf-8")
    stale = report(bundle, capsys)["bundle"]["tuned"][0]
    assert not stale["usable"]
    assert stale["reason"].startswith("made for another onnxruntime: 0.")
    index.write_text(text, encoding="utf-8")
    with (made.home / "projector.onnx.data").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xee")
    damaged = report(bundle, capsys, status=1)
    assert damaged["bundle"]["tuned"][0]["reason"] == "damaged: run tinygptv tune again"
    assert damaged["problems"] == [f"the tuned copy in {bundle} is damaged: run tinygptv tune again"]


def test_memory_that_is_too_little(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    default, low = report(bundle, capsys)["bundle"]["needs"]
    for available, fits, status in (
        (default["peak"], [True, True], 0),
        (default["peak"] - 1, [False, True], 0),
        (low["peak"] - 1, [False, False], 1),
    ):
        monkeypatch.setattr(diagnosis, "system_memory", lambda size=available: SystemMemory(8 * GB, size, None))
        found = report(bundle, capsys, status)
        assert [need["fits"] for need in found["bundle"]["needs"]] == fits
        assert any("use --memory low" in text for text in found["advice"]) == (fits == [False, True])
        assert bool(found["problems"]) == bool(status)


@pytest.mark.parametrize(
    ("precision", "available", "advised"),
    [
        ("int8", 4.7, None),
        ("int8", 4.0, "int4"),
        ("int8", 2.8, None),
        ("int4", 4.7, "int8"),
        ("int4", 4.0, None),
        ("fp32", 4.7, None),
    ],
)
def test_which_tier_fits(
    precision: str, available: float, advised: str | None, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the published sizes: about 4.6 GB for int8, 3.5 GB for int4; what does not fit at all is not advised."""
    manifest = read_manifest(bundle)
    decoder = {"int8": 2_700_000_000, "int4": 1_620_000_000, "fp32": 10_700_000_000}[precision]
    files = {
        manifest.graphs[name].data: size
        for name, size in {VISION_ENCODER: 1_030_000_000, PROJECTOR: 120_000_000, DECODER: decoder}.items()
    }
    phi2 = with_phi2(manifest, image_tokens=32, working_bytes=200_000_000)
    large = replace(
        phi2,
        graphs=phi2.graphs | {DECODER: replace(phi2.graphs[DECODER], precision=precision)},
        files=tuple(replace(record, size=files.get(record.name, record.size)) for record in manifest.files),
    )
    monkeypatch.setattr(diagnosis, "read_manifest", lambda folder: large)
    monkeypatch.setattr(diagnosis, "damaged_files", lambda folder, files: [])
    monkeypatch.setattr(diagnosis, "system_memory", lambda: SystemMemory(8 * GB, int(available * GB), None))
    found = diagnosis.diagnose(bundle)
    assert found.bundle is not None
    texts = [text for text in found.advice if "would suit this memory" in text]
    assert len(texts) == (advised is not None)
    assert all(f"--precision {advised} would" in text for text in texts)
    tiers = [(tier.precision, round(tier.peak / 1e9, 1)) for tier in found.bundle.tiers]
    assert tiers == ([] if precision == "fp32" else [("int8", 4.6), ("int4", 3.5)])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own files")
def test_a_system_that_tells_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is said, and stands in nobody's way."""
    for name in ("PROC", "CGROUPS", "CPUS"):
        monkeypatch.setattr(machine, name, tmp_path / "nowhere")
    found = report(bundle, capsys)
    assert found["cpu"]["name"] and found["cpu"]["all_features"] is False
    assert found["memory"] == {"total": None, "available": None, "limit": None, "swap": None}
    assert [need["fits"] for need in found["bundle"]["needs"]] == [None, None]
    assert any("enough memory" in text for text in found["advice"])
    assert main(["doctor", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "(there may be more: this system does not report them all)" in text
    assert "memory  unknown how much is available\n" in text
    assert text.count("whether it fits is unknown") == 2
    assert "answers  yes" in text


def test_the_published_sizes_need_what_was_measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.2 to 4.6 GB with all graphs open, 3.2 to 3.4 GB with one (448 px, int8 in blocks of 128)."""
    manifest = read_manifest(bundle)
    sizes = {"vision_encoder": 1_027_806_720, "projector": 123_275_264, "decoder": 2_735_210_496}
    files = {manifest.graphs[name].data: size for name, size in sizes.items()}
    tokens, heads, mlp = 1025, 16, 6144
    large = replace(
        with_phi2(manifest, image_tokens=32, working_bytes=8 * tokens * (heads * tokens + mlp)),
        files=tuple(replace(record, size=files.get(record.name, record.size)) for record in manifest.files),
    )
    memory = SystemMemory(8 * GB, 4 * GB, None)
    default = memory_needs.need_of(large, "default", False, memory)
    low = memory_needs.need_of(large, "low", True, memory)
    assert 4.2 * GB < default.peak < 4.8 * GB and not default.fits
    assert 3.2 * GB < low.peak < 3.5 * GB and low.fits
    assert 0.3 * GB < low.unbacked < 0.6 * GB


def with_phi2(manifest: Manifest, image_tokens: int, working_bytes: int) -> Manifest:
    """The manifest of a model with Phi-2's KV cache in fp16."""

    def sized(spec: TensorSpec) -> TensorSpec:
        if spec.name == "image_embeds":
            return replace(spec, axes=(spec.axes[0], Axis("image_tokens", image_tokens), spec.axes[2]))
        if "{i}" not in spec.name:
            return spec
        batch, _, length, _ = spec.axes
        axes = (batch, Axis("heads", 32), replace(length, maximum=2048), Axis("head_dim", 80))
        return replace(spec, axes=axes, count=32)

    graphs = {
        name: replace(
            graph,
            inputs=tuple(map(sized, graph.inputs)),
            outputs=tuple(map(sized, graph.outputs)),
            working_bytes=working_bytes if name == VISION_ENCODER else 0,
        )
        for name, graph in manifest.graphs.items()
    }
    return replace(manifest, graphs=graphs)


@pytest.mark.parametrize(
    ("image_tokens", "megabytes"), [(32, [168, 178, 189]), (576, [346, 535]), (729, [396, 635]), (1800, [671])]
)
def test_the_kv_cache_of_several_pictures(image_tokens: int, megabytes: list[int], bundle: Path) -> None:
    """As many as fit in the context of 2,048 with a question and its answer; one in any case."""
    contract = with_phi2(read_manifest(bundle), image_tokens, 0).contract
    found = memory_needs.caches_of(contract)
    assert [cache.pictures for cache in found] == list(range(1, len(megabytes) + 1))
    assert [round(cache.bytes / 1e6) for cache in found] == megabytes
    assert all(cache.positions <= 2048 for cache in found)


def test_the_kv_cache_is_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(bundle, capsys)["bundle"]
    contract = read_manifest(bundle).contract
    assert (found["context"], found["image_tokens"]) == (contract.context, contract.image_tokens)
    assert found["kv_cache"] == [
        {"pictures": 1, "positions": 256, "bytes": 256 * contract.cache_bytes_per_position},
    ]
    assert main(["doctor", str(bundle)]) == 0
    assert "1 picture 0.2 MB, each with a question" in capsys.readouterr().out


# int8


def test_products_are_tried_out(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI, and on Arm, they are exact; without it nothing but the option below keeps them so."""
    import onnx

    model = onnx.load_from_string(LARGE_PRODUCTS)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    found = report(bundle, capsys)
    if found["int8"]["fast"]:
        assert found["int8_saturates"] is False
    monkeypatch.setattr(diagnosis, "products_saturate", lambda: True)
    assert main(["doctor", str(bundle)]) == 0
    assert "would saturate at 16 bits here: uint8 weights" in capsys.readouterr().out


@pytest.mark.parametrize("saturating", [False, True])
def test_only_where_products_saturate_weights_are_changed(saturating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option does so on every x86, at a price; nothing is lost where it is not known."""
    monkeypatch.setattr(sessions, "products_saturate", lambda: saturating)
    options = sessions._options(None)
    if saturating:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


# Telemetry


@pytest.mark.parametrize("variables", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_the_command_has_telemetry_off(bundle: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "doctor", str(bundle), "--json"],
        capture_output=True,
        env=plain_environment(tmp_path, **variables),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["telemetry_off"] is True


def test_a_host_with_telemetry_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime  # noqa: F401

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    with pytest.warns(RuntimeWarning, match="imported before tinygptv"):
        found = diagnosis.diagnose(bundle)
    assert not found.telemetry_off
    assert any("ORT_DISABLE_TELEMETRY=1" in text for text in found.advice)
    assert "on: onnxruntime was imported before tinygptv" in diagnosis.render(found)
