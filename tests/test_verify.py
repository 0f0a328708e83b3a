"""``tinygptv-export verify``: what it finds, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import GOLDEN_STAGES, golden_checkpoint, published_files, spoil
from file_contents import flip
from networks import CASES, random_tensors
from PIL import Image
from tinygptv.export import verify_bundle
from tinygptv.export.cli import main as export_main
from tinygptv.export.verify import comparison
from tinygptv.export.verify.agreement import Agreement, LayerAgreement, LayerTally, LogitsTally
from tinygptv.export.verify.bounds import DEFAULTS, check
from tinygptv.export.verify.comparison import Comparison
from tinygptv.export.verify.oracle import Oracle, StreamedOracle, load
from tinygptv.export.verify.prompts import Prompt, find_photos
from tinygptv.runtime.bundle import manifest as manifest_module
from tinygptv.runtime.bundle.manifest import VISION_ENCODER
from tinygptv.runtime.errors import TinyGPTVError
from variants import Published

Bundle = Callable[[int, str], Path]
PHOTOS = Path(__file__).parent / "images"


class Verify:
    """Runs the command, and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.error = ""

    def __call__(self, bundle: Path, files: dict[str, str], *more: str) -> int:
        self._capsys.readouterr()
        options = [text for option in ({"--photos": str(PHOTOS)} | files).items() for text in option]
        status = export_main(["verify", str(bundle), *options, *more])
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        self.out, self.error = captured.out, (captured.err.splitlines() or [""])[-1]
        return status


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    return Verify(capsys)


@pytest.fixture
def copied(golden_bundle: Bundle, tmp_path: Path) -> Callable[[int, str], Path]:
    def copy(stage: int, precision: str) -> Path:
        folder = tmp_path / "a copy"
        shutil.copytree(golden_bundle(stage, precision), folder)
        return folder

    return copy


def keywords(bundle: Path, stage: int, **more: Any) -> dict[str, Any]:
    files = {name.removeprefix("--"): value for name, value in published_files(stage).items() if name != "--stage"}
    return {"bundle": bundle, "photos": PHOTOS, **files, **more}


def alter_weights(bundle: Path, graph: str, prefix: str, factor: float) -> None:
    """Multiply the float32 matrices below a layer's name; the manifest vouches for what comes out."""
    model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.name.startswith(prefix) and tensor.external_data and len(tensor.dims) == 2
    ]
    assert places

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for place in places:
            start, length = int(place["offset"]), int(place["length"])
            values = np.frombuffer(data[start : start + length], np.float32) * np.float32(factor)
            changed[start : start + length] = values.tobytes()
        return bytes(changed)

    spoil(bundle, f"{graph}.onnx.data", change)


# What it finds


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8 cache"])
@pytest.mark.parametrize("stage", GOLDEN_STAGES)
def test_exported_bundles_hold_the_bounds(
    stage: int, precision: str, golden_bundle: Bundle, verify: Verify, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    assert verify(golden_bundle(stage, precision), published_files(stage), "--json", str(report)) == 0
    document = json.loads(report.read_text())
    assert document["holds"] is True
    assert document["precision"] == precision.removesuffix(" cache")
    assert all(bound["holds"] for bound in document["bounds"])
    rows = {(layer["graph"], layer["row"]): layer for layer in document["layers"]}
    manifest = manifest_module.read_manifest(golden_bundle(stage, precision))
    assert [row for graph, row in rows if graph == "vision_encoder"] == [
        "embeddings",
        *(f"block {i}" for i in range(manifest.parts["eva_clip"]["num_hidden_layers"])),
        "image_features",
    ]
    assert [row for graph, row in rows if graph == "decoder"] == [
        "inputs_embeds",
        *(f"layer {i}" for i in range(manifest.contract.layers)),
        "logits",
    ]
    for (graph, row), layer in rows.items():
        assert row in verify.out
        if precision == "fp32":
            assert layer["relative_error"] < 5e-6
            assert layer["own_error"] < 5e-6
        elif row.startswith(("block", "layer")):
            assert 1e-4 < layer["own_error"] < 0.05, f"{graph} {row} is not int8"


@pytest.mark.parametrize(
    ("graph", "prefix", "named"),
    [
        ("vision_encoder", "visual.blocks.1.", "vision_encoder block 1"),
        ("projector", "Qformer.bert.encoder.layer.0.", "projector layer 0"),
        ("projector", "llama_proj2.", "projector image_embeds"),
        ("decoder", "model.layers.1.mlp.", "decoder layer 1"),
        ("decoder", "lm_head.", "decoder logits"),
    ],
)
def test_an_altered_layer_is_named(
    graph: str, prefix: str, named: str, copied: Bundle, verify: Verify, tmp_path: Path
) -> None:
    bundle = copied(4, "fp32")
    alter_weights(bundle, graph, prefix, 1.1)
    report = tmp_path / "report.json"
    assert verify(bundle, published_files(4), "--json", str(report)) == 1
    assert f"the layer that adds most: {named} (" in verify.error
    assert "DOES NOT HOLD" in verify.out
    document = json.loads(report.read_text())
    assert document["holds"] is False
    for bound in document["bounds"]:
        assert (bound["name"] in verify.error) == (not bound["holds"])


def test_a_bound_that_does_not_hold_is_named(golden_bundle: Bundle, verify: Verify) -> None:
    bundle = golden_bundle(3, "int8")
    assert verify(bundle, published_files(3), "--min-image-embeds-cosine", "0.99999", "--max-kl", "1e-6") == 1
    assert "min_image_embeds_cosine is 0.999" in verify.error
    assert "expected at least 0.99999" in verify.error
    assert "max_kl is 0.000" in verify.error
    assert "expected at most 1e-06" in verify.error
    assert "min_top1" not in verify.error
    assert verify(bundle, published_files(3), "--min-image-embeds-cosine", "0.9", "--max-kl", "1") == 0


def test_numbers_that_are_none(copied: Bundle, verify: Verify, tmp_path: Path) -> None:
    bundle = copied(4, "fp32")
    alter_weights(bundle, "decoder", "model.layers.2.", float("nan"))
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    assert verify(bundle, published_files(4), "--json", str(report), "--plot", str(plot)) == 1
    assert "decoder layer 2" in verify.error
    assert "min_logits_cosine is nan" in verify.error

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(report.read_text(), parse_constant=refuse)
    assert document["logits"]["kl_mean"] is None
    assert document["holds"] is False


def test_the_plot_is_a_picture(golden_bundle: Bundle, verify: Verify, tmp_path: Path) -> None:
    plot = tmp_path / "plot é.png"
    assert verify(golden_bundle(4, "int8"), published_files(4), "--plot", str(plot)) == 0
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert {(0, 114, 178), (213, 94, 0)} <= {colour for _, colour in colours}


def test_parts_give_what_the_whole_gives(
    golden_bundle: Bundle, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.open(photo).rotate(90 * number, expand=True).save(tmp_path / f"{number}.png")
    arguments = keywords(golden_bundle(4, "int8"), 4, photos=tmp_path, trust_sources=True)
    whole = verify_bundle(**arguments)
    monkeypatch.setattr(comparison, "PHOTOS_AT_ONCE", 2)
    monkeypatch.setattr(comparison, "PROMPTS_AT_ONCE", 1)
    parts = verify_bundle(**arguments)
    assert (parts.photos, parts.prompts) == (whole.photos, whole.prompts) == (3, 9)
    assert parts.agreement.positions == whole.agreement.positions
    assert parts.agreement.kl_mean == pytest.approx(whole.agreement.kl_mean, rel=1e-3)
    for one, other in zip(parts.agreement.layers, whole.agreement.layers, strict=True):
        assert (one.graph, one.row) == (other.graph, other.row)
        assert one.cosine_mean == pytest.approx(other.cosine_mean, abs=1e-6)
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-2, abs=1e-6)
        assert one.own_error == pytest.approx(other.own_error, rel=1e-2, abs=1e-6)


def test_progress_ends_at_its_total(golden_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    counted: list[int] = []
    initialise, count = Comparison.__init__, Comparison.count_steps

    def listening(self: Comparison, *arguments: Any) -> None:
        initialise(self, *arguments[:-1], steps.append)

    def counting(*arguments: Any) -> int:
        counted.append(count(*arguments))
        return counted[-1]

    monkeypatch.setattr(Comparison, "__init__", listening)
    monkeypatch.setattr(Comparison, "count_steps", counting)
    verify_bundle(**keywords(golden_bundle(3, "int8"), 3, trust_sources=True))
    assert counted == [len(steps)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["golden", *CASES])
def test_the_streamed_oracle_is_the_oracle_and_holds_no_weights(name: str) -> None:
    checkpoint = golden_checkpoint(4) if name == "golden" else None
    networks = checkpoint.networks if checkpoint else CASES[name][1]
    tensors: Mapping[str, torch.Tensor] = checkpoint or random_tensors(networks)
    whole, streamed = Oracle(networks), StreamedOracle(networks, tensors)
    load(whole, tensors)
    whole.eval()
    size = networks[VISION_ENCODER].sizes.image_size
    text = torch.tensor([[5, 40, 7], [1, 2, 3]])
    for seed in range(2):  # what a layer held is gone, and comes again
        pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
        features = whole.image_features(pixels)
        assert torch.equal(streamed.image_features(pixels), features)
        assert torch.equal(streamed.image_embeds(features), whole.image_embeds(features))
        assert torch.equal(streamed.logits(streamed.embed(text)), whole.logits(whole.embed(text)))
    left = {weight for weight, value in streamed.named_parameters() if not value.is_meta}
    assert left <= {"projector.query_tokens"}, "which are no layer's, but read first of all"


def test_tallies() -> None:
    layer = LayerTally()
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    layer.add(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), reference, reference * 2)
    found = layer.result("decoder", "layer 0")
    assert (found.cosine_mean, found.cosine_worst) == (0.5, 0.0)
    assert found.relative_error == pytest.approx((2 / 26) ** 0.5)
    assert found.own_error == pytest.approx((25 + 4 + 1) ** 0.5 / 104**0.5)

    logits = LogitsTally()
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]), torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]])
    logits.add(q.log() + 3, p.log())
    agreement = logits.result((found,))
    assert agreement.kl_worst == pytest.approx(0.25 * np.log(2))  # 0.5 log 2 - 0.25 log 2
    assert agreement.kl_mean == pytest.approx(agreement.kl_worst / 2)
    assert (agreement.positions, agreement.top1) == (2, 0.5)


def test_only_the_text_counts_for_logits(golden_bundle: Bundle, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts with a photo the positions of its image tokens do not; what the context cuts off does not either."""
    bundle = golden_bundle(4, "int8")
    contract = manifest_module.read_manifest(bundle).contract
    prompts: list[Prompt] = []
    read = Comparison.read

    def reading(self: Comparison, given: list[Prompt], *embeds: Any) -> Agreement:
        prompts.extend(given)
        return read(self, given, *embeds)

    monkeypatch.setattr(Comparison, "read", reading)
    found = verify_bundle(**keywords(bundle, 4, photos=photo.parent, trust_sources=True))
    expected = 0
    for prompt in prompts:
        text = sum(len(segment) for segment in prompt.segments)
        image = 0 if prompt.photo is None else contract.image_tokens
        expected += min(text, contract.context - image)
    assert found.agreement.positions == expected
    assert {prompt.photo for prompt in prompts} == {0, None}


def test_nan_holds_no_bound() -> None:
    nothing = float("nan")
    rows = tuple(
        LayerAgreement("", row, nothing, nothing, nothing, nothing)
        for row in ("image_features", "image_embeds", "logits")
    )
    for bounds in DEFAULTS.values():
        assert not any(bound["holds"] for bound in check(bounds, Agreement(rows, 1, nothing, nothing, nothing)))


# What it refuses


@pytest.mark.parametrize("role", ["phi", "vision", "qformer", "checkpoint"])
def test_other_sources_are_named(
    role: str, golden: Published, golden_bundle: Bundle, verify: Verify, tmp_path: Path
) -> None:
    tensors = golden.tensors(role)
    name = next(key for key in tensors if key.endswith("weight") and tensors[key].is_floating_point())
    tensors[name] = tensors[name] * 0.5
    files = golden.write(tmp_path / "files")
    assert verify(golden_bundle(4, "int8"), {**published_files(4), f"--{role}": files[f"--{role}"]}) == 1
    assert files[f"--{role}"] in verify.error
    assert "was made from" in verify.error
    assert verify.out == ""


def test_trusted_sources_are_compared_all_the_same(
    golden: Published, golden_bundle: Bundle, verify: Verify, tmp_path: Path
) -> None:
    name = next(key for key in golden.phi if "layers.2.mlp.fc1.weight" in key)
    golden.phi[name] = golden.phi[name] * 1.5
    files = golden.write(tmp_path / "files")
    assert verify(golden_bundle(4, "int8"), files, "--trust-sources") == 1
    assert "decoder layer 2" in verify.error


def test_a_renamed_source_is_the_same(golden_bundle: Bundle, tmp_path: Path) -> None:
    files = published_files(4)
    renamed = shutil.copy(files["--checkpoint"], tmp_path / "mine.pth")
    verify_bundle(**keywords(golden_bundle(4, "int8"), 4) | {"checkpoint": renamed})


@pytest.mark.parametrize("change", ["missing", "more"])
def test_a_phi_folder_with_other_files(change: str, golden_bundle: Bundle, verify: Verify, tmp_path: Path) -> None:
    phi = tmp_path / "phi"
    shutil.copytree(published_files(4)["--phi"], phi)
    if change == "missing":
        (phi / "special_tokens_map.json").unlink()
    else:
        (phi / "extra.json").write_text("{}")
    assert verify(golden_bundle(4, "int8"), {**published_files(4), "--phi": str(phi)}) == 1
    assert ("special_tokens_map.json" if change == "missing" else "extra.json") in verify.error
    assert str(phi) in verify.error


def test_another_stage(golden_bundle: Bundle, verify: Verify) -> None:
    assert verify(golden_bundle(3, "int8"), published_files(4)) == 1
    assert "is of stage 3; --stage says 4" in verify.error


def test_models_of_other_sizes(golden: Published, golden_bundle: Bundle, verify: Verify, tmp_path: Path) -> None:
    golden.architecture["vision_heads"] = 2
    files = golden.write(tmp_path / "files")
    assert verify(golden_bundle(4, "int8"), files, "--trust-sources") == 1
    assert "other sizes" in verify.error


@pytest.mark.parametrize("hashed_bytes", [0, 16 << 20])
@pytest.mark.parametrize("name", ["decoder.onnx.data", "embed_tokens.npy", "vision_encoder.onnx"])
def test_damaged_bundles_are_named(
    name: str, hashed_bytes: int, copied: Bundle, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also files too large to be hashed whenever the bundle is loaded."""
    monkeypatch.setattr(manifest_module, "HASHED_BYTES", hashed_bytes)
    bundle = copied(4, "int8")
    flip(bundle / name, -1)
    assert verify(bundle, published_files(4)) == 1
    assert f"{bundle / name} is damaged" in verify.error


def test_what_is_no_bundle(verify: Verify, tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing", published_files(4)) == 1
    assert f"{tmp_path / 'nothing'} is not a folder" in verify.error


def test_a_bundle_of_version_1(verify: Verify) -> None:
    bundle = Path(__file__).parent / "bundle_v1"
    assert verify(bundle, published_files(3)) == 1
    assert f"{bundle} has format_version 1" in verify.error
    assert "export the model again" in verify.error


def test_a_graph_without_the_tensors(copied: Bundle, verify: Verify) -> None:
    bundle = copied(4, "int8")
    spoil(bundle, "decoder.onnx", lambda data: data.replace(b'"layer 1":', b'"layer 7":'))
    assert verify(bundle, published_files(4)) == 1
    assert "decoder.onnx does not say which tensor is 'layer 1'; export the model again" in verify.error
    assert str(bundle) in verify.error


def test_a_graph_that_names_a_tensor_it_does_not_have(copied: Bundle, verify: Verify) -> None:
    bundle = copied(4, "int8")
    spoil(bundle, "decoder.onnx", lambda data: data.replace(b'final_layernorm.sum"', b'final_layernorm.mus"'))
    assert verify(bundle, published_files(4)) == 1
    assert str(bundle / "decoder.onnx") in verify.error
    assert "model.final_layernorm.mus" in verify.error


def test_photos(verify: Verify, golden_bundle: Bundle, tmp_path: Path) -> None:
    assert find_photos(None)
    for folder in (tmp_path, tmp_path / "absent"):
        assert verify(golden_bundle(4, "int8"), published_files(4), "--photos", str(folder)) == 1
        assert f"--photos {folder}: no pictures in it" in verify.error
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert verify(golden_bundle(4, "int8"), published_files(4), "--photos", str(tmp_path)) == 1
    assert "torn.png" in verify.error


@pytest.mark.parametrize("package", ["transformers", "matplotlib"])
def test_packages_that_are_absent(
    package: str, golden_bundle: Bundle, verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package or name.startswith("tinygptv.export.verify"):
            monkeypatch.delitem(sys.modules, name)
            parent, _, leaf = name.rpartition(".")
            if parent in sys.modules:
                monkeypatch.delattr(sys.modules[parent], leaf, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert verify(golden_bundle(4, "int8"), published_files(4), "--plot", str(tmp_path / "plot.png")) == 1
    assert f"{package} is not installed" in verify.error
    assert '[verify]"' in verify.error


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        export_main(["verify", "somewhere"])
    assert left.value.code == 2
    assert "tinygptv-export verify: error" in capsys.readouterr().err


# What it leaves behind


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_folder_that_is_absent_is_told_before_the_work(
    option: str, golden_bundle: Bundle, verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Comparison, "see", None)
    target = tmp_path / "absent" / "file"
    assert verify(golden_bundle(4, "int8"), published_files(4), option, str(target)) == 1
    assert str(target.parent) in verify.error


def test_a_report_is_whole_or_what_was_there(
    golden_bundle: Bundle, verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text("before")

    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)
        assert verify(golden_bundle(4, "int8"), published_files(4), "--json", str(report)) == 1
    assert "No space left" in verify.error
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert report.read_text() == "before"


def test_an_interrupt_leaves_nothing(
    golden_bundle: Bundle, verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    bundle = golden_bundle(4, "int8")
    before = sorted(bundle.iterdir())
    monkeypatch.setattr(Comparison, "read", interrupted)
    assert verify(bundle, published_files(4), "--json", str(tmp_path / "report.json")) == 130
    assert verify.error == "tinygptv-export verify: interrupted; nothing was written"
    assert list(tmp_path.iterdir()) == []
    assert sorted(bundle.iterdir()) == before


def test_from_python_errors_are_exceptions(golden_bundle: Bundle) -> None:
    with pytest.raises(TinyGPTVError, match="--stage says 3"):
        verify_bundle(**keywords(golden_bundle(4, "int8"), 4), stage=3)
