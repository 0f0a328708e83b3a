"""What the exporter is calibrated with: which files, what is seen of them, and that it helps."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refusal, export_arguments, golden_checkpoint, published_files
from PIL import Image
from tinygptv.export.calibration import (
    MAX_PHOTOS,
    PACKAGED,
    CalibrationSet,
    Finder,
    calibrate,
    find_calibration_set,
)
from tinygptv.export.cli import main as export_main
from tinygptv.export.precision import CLOSE_ENOUGH, GroupWise, PerChannel, Scheme, candidates
from tinygptv.export.smoothing import Group, Smoothing, find_smoothing
from tinygptv.export.sources.families import TINYGPT_V
from tinygptv.export.sources.model import Model
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.export.torch_ops import TorchOps, Value
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Source, read_manifest
from tinygptv.runtime.language.decoder import ALL_LOGITS
from tinygptv.runtime.language.prompt import encode_segments, render
from tinygptv.runtime.vision.image import open_image
from torch import Tensor
from tqdm import tqdm
from variants import LANGUAGE, Published

TEMPLATE = TINYGPT_V.templates[0]
Array = np.ndarray
Bundle = Callable[[int, str], Path]
Expected = Callable[[int], dict[str, Array]]


def write_photo(path: Path, colour: str = "teal") -> Path:
    Image.new("RGB", (30, 20), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of the user's own: two pictures and a text, beside what is none."""
    folder = tmp_path / "my set é"
    (folder / "more").mkdir(parents=True)
    write_photo(folder / "b.PNG")
    write_photo(folder / "a.jpeg", "red")
    (folder / "c.Txt").write_text("Two blue boats lie on the shore.\n", encoding="utf-8")
    (folder / "notes.md").write_text("no text of the set")
    write_photo(folder / "more" / "d.png")
    return folder


# Which files


def test_what_is_in_a_folder(folder: Path) -> None:
    found = find_calibration_set(folder)
    assert found == CalibrationSet((folder / "a.jpeg", folder / "b.PNG"), (folder / "c.Txt",))
    assert found.files == (*found.photos, *found.texts)


def test_the_packaged_set_is_whole() -> None:
    found = find_calibration_set(PACKAGED, "int4")
    assert len(found.photos) >= 3 and len(found.texts) >= 1
    assert set(find_calibration_set(PACKAGED).files) == {path for path in found.files if path.parent == PACKAGED}
    readme = (PACKAGED / "README.md").read_text(encoding="utf-8")
    table = [line for line in readme.splitlines() if line.startswith("| `")]
    listed = {name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    stored = {path.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("*") if path.is_file()}
    assert stored == {"README.md", *listed}
    assert {path.relative_to(PACKAGED).as_posix() for path in found.files} == listed
    assert all(line.split("|")[3].strip() for line in table), "each has a licence"
    for path in found.photos:
        assert max(open_image(path).size) <= 512
    for path in found.texts:
        assert len(path.read_text(encoding="utf-8").split()) > 100
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 1_000_000


def test_no_such_folder(refusal: Refusal, folder: Path) -> None:
    for path in (folder / "nowhere", folder / "notes.md"):
        message = refusal(published_files(3), "--calibration", str(path))
        assert f"{path}: no such folder" in message
        assert "expected one with pictures and .txt files, or none" in message


@pytest.mark.parametrize(("kind", "suffixes"), [("pictures", ".jpeg, .jpg, .png, .webp"), ("texts", ".txt")])
def test_half_a_set(kind: str, suffixes: str, refusal: Refusal, folder: Path) -> None:
    found = find_calibration_set(folder)
    for path in found.photos if kind == "pictures" else found.texts:
        path.unlink()
    message = refusal(published_files(3), "--calibration", str(folder))
    assert f"{folder}: no {kind} ({suffixes})" in message
    assert "expected both" in message


def test_more_pictures_than_are_of_use(refusal: Refusal, folder: Path) -> None:
    for i in range(MAX_PHOTOS - 2):
        write_photo(folder / f"{i}.png")
    assert len(find_calibration_set(folder).photos) == MAX_PHOTOS
    write_photo(folder / "one more.webp")
    message = refusal(published_files(3), "--calibration", str(folder))
    assert f"{folder}: {MAX_PHOTOS + 1} pictures; expected at most {MAX_PHOTOS}" in message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("b.PNG", b"no picture", "is text, not a picture"),
        ("b.PNG", b"", "is empty"),
        ("c.Txt", b"", "is empty"),
        ("c.Txt", b" \n\n", "is empty"),
        ("c.Txt", b"caf\xe9", "expected UTF-8 text"),
    ],
    ids=["no picture", "empty picture", "empty text", "blank text", "latin-1"],
)
def test_file_that_cannot_be_used(name: str, content: bytes, told: str, refusal: Refusal, folder: Path) -> None:
    (folder / name).write_bytes(content)
    message = refusal(published_files(3), "--calibration", str(folder), begun=True)
    assert "--calibration" in message
    assert str(folder / name) in message
    assert told in message


def test_context_without_room(refusal: Refusal, golden: Published, tmp_path: Path) -> None:
    golden.config["max_position_embeddings"] = 16
    message = refusal(golden.write(tmp_path / "files"), begun=True)
    assert "a context of 16 tokens is too short for calibration; pass --calibration none" in message


# What is seen


def calibrated(folder: Path, checkpoint: Model) -> dict[Group, Smoothing]:
    tokenizer = build_tokenizer(checkpoint.description.tokenizer, checkpoint.networks[DECODER].sizes.vocab_size)
    calibration = find_calibration_set(folder)
    with tqdm(disable=True) as bar:
        return calibrate(checkpoint, TEMPLATE, tokenizer, calibration, candidates("int8", 32), folder, bar).smoothings


class Watched:
    """The networks of a model, and what each of them was given and gave."""

    def __init__(self, checkpoint: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[str, Tensor] = {}
        self.gave: dict[str, Tensor] = {}
        for graph, network in checkpoint.networks.items():
            monkeypatch.setattr(network.part, "run", self._watching(graph, network.part.run))

    def _watching(self, graph: str, run: Callable[[TorchOps, Any, Value], Value]) -> Callable[..., Value]:
        def watching(ops: TorchOps, sizes: Any, x: Value) -> Value:
            result = run(ops, sizes, x)
            if not x.data.is_meta:
                self.given[graph], self.gave[graph] = x.data, result.data
            return result

        return watching


def test_each_picture_is_asked_about_and_answered_by_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = golden_checkpoint(3)
    watched = Watched(checkpoint, monkeypatch)
    calibrated(folder, checkpoint)
    image = checkpoint.description.image
    pixels = watched.given[VISION_ENCODER]
    assert pixels.shape == (2, 3, image.image_size, image.image_size)
    shown = pixels[:, :, 0, 0] * torch.tensor(image.std) + torch.tensor(image.mean)
    torch.testing.assert_close(shown, colours("red", "teal"), atol=0.02, rtol=0)
    assert torch.equal(watched.given[PROJECTOR], watched.gave[VISION_ENCODER])

    tokenizer = build_tokenizer(checkpoint.description.tokenizer, checkpoint.networks[DECODER].sizes.vocab_size)
    before, after = encode_segments(tokenizer, render(TEMPLATE, [("[caption]", None)]))
    text = tokenizer.encode("Two blue boats lie on the shore.", add_special_tokens=False).ids
    table, images = checkpoint["model.embed_tokens.weight"], watched.gave[PROJECTOR]
    prompts = watched.given[DECODER]
    assert prompts.shape == (2, 256, table.shape[1]), "a context of 256, all of it"
    start, end = len(before), len(before) + images.shape[1]
    room = 256 - end - len(after)
    assert room > 2 * len(text) and room % len(text), "the text is begun again, each time elsewhere"
    for i, prompt in enumerate(prompts):
        assert torch.equal(prompt[:start], table[before])
        assert torch.equal(prompt[start:end], images[i])
        assert torch.equal(prompt[end : end + len(after)], table[after])
        answer = [text[(i * room + j) % len(text)] for j in range(room)]
        assert torch.equal(prompt[end + len(after) :], table[answer])


def colours(*names: str) -> Tensor:
    return torch.tensor([Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in names]) / 255


def test_what_is_found_fits_the_layers(folder: Path) -> None:
    checkpoint = golden_checkpoint(4)
    found = calibrated(folder, checkpoint)
    assert len(found) > 5
    for group, smoothing in found.items():
        columns = checkpoint.shape(f"{group.linears[0]}.weight")[1]
        for tensor in (smoothing.shift, smoothing.factor):
            assert tensor.dtype == torch.float32
            assert tensor.shape == (columns,)
            assert tensor.isfinite().all()
        assert smoothing.factor.gt(0).all()


def test_the_first_layer_of_a_group_speaks_for_it() -> None:
    """The others read the same; what is not quantised is not smoothed; each group counts."""
    generator = torch.Generator().manual_seed(1)
    # 67 channels cannot be rotated.
    x, *weights = (torch.randn(20, 67, generator=generator) for _ in range(4))
    x[:, 3] *= 50
    tensors = {f"{name}.weight": weight for name, weight in zip("abc", weights, strict=True)}
    groups = [Group(("a", "b")), Group(("c",)), Group(("exact",))]
    with tqdm(file=io.StringIO()) as bar:
        finder = Finder(tensors, groups, bar)
        assert bar.total == 3
        one, other = (PerChannel(),), (GroupWise(16),)
        candidates_of: dict[str, tuple[Scheme, ...]] = {"a": one, "b": one, "c": other, "exact": (), "other": one}
        observe = finder.observer(candidates_of.__getitem__)
        for name in candidates_of:
            observe(name, Value(x if name != "b" else torch.full_like(x, torch.nan)))
        assert bar.n == 3
    assert set(finder.smoothings) == set(groups[:2])
    assert finder.smoothings[groups[0]].factor[3] > 2
    assert finder.schemes == {"a": PerChannel(), "b": PerChannel(), "c": GroupWise(16)}


@pytest.mark.parametrize("spikes", [False, True])
def test_the_fastest_scheme_that_is_close_enough(spikes: bool) -> None:
    """Neither a factor nor a rotation helps against large inputs that no weight reads."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(40, 256, generator=generator), torch.randn(96, 256, generator=generator)
    if spikes:
        unread = torch.randn(256, generator=generator)
        unread /= unread.norm()
        x += 300 * torch.randn(40, 1, generator=generator) * unread
        weight -= torch.outer(weight @ unread, unread)
    fast, careful = PerChannel(), GroupWise(16)
    group = Group(("a",))
    assert (find_smoothing(group, x, [weight], fast).error > CLOSE_ENOUGH) == spikes
    with tqdm(disable=True) as bar:
        finder = Finder({"a.weight": weight}, [group], bar)
        finder.observer(lambda name: (fast, careful))("a", Value(x))
    assert finder.schemes == {"a": careful if spikes else fast}


@pytest.mark.parametrize("least", [None, -0.17])
def test_a_least_value_is_made_use_of(least: float | None) -> None:
    """Half of a token's 256 steps would be for values that there are none of."""
    # 67 channels cannot be rotated.
    x = torch.nn.functional.gelu(torch.randn(60, 67, generator=torch.Generator().manual_seed(1)))
    x[:, 3] *= 4
    weight = torch.randn(24, 67, generator=torch.Generator().manual_seed(2))
    group = Group(("a",), least=least)
    with tqdm(disable=True) as bar:
        finder = Finder({"a.weight": weight}, [group], bar)
        finder.observer(lambda name: (PerChannel(),))("a", Value(x))
    expected, not_expected = (
        find_smoothing(Group(("a",), least=limit), x, [weight], PerChannel())
        for limit in (least, -0.17 if least is None else None)
    )
    assert finder.smoothings[group].error == expected.error != not_expected.error


# What comes of it


def sources_of(folder: Path) -> set[tuple[str, str, int, str]]:
    return {
        ("calibration", path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in find_calibration_set(folder).files
    }


def told(sources: tuple[Source, ...]) -> list[tuple[str, str, int, str]]:
    return [(s.role, s.name, s.size, s.sha256) for s in sources if s.role == "calibration"]


def test_the_manifest_names_the_set(golden_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    packaged = read_manifest(golden_bundle(3, "int8")).sources
    assert set(told(packaged)) == sources_of(PACKAGED)
    assert len(told(packaged)) == len(sources_of(PACKAGED))
    assert told(read_manifest(golden_bundle(3, "fp32")).sources) == []
    made = {}
    for name in (str(folder), "none"):
        output = tmp_path / Path(name).name / "bundle"
        output.parent.mkdir(exist_ok=True)
        assert export_main(export_arguments(published_files(3), output, "--calibration", name)) == 0
        made[name] = output
    assert set(told(read_manifest(made[str(folder)]).sources)) == sources_of(folder)
    assert told(read_manifest(made["none"]).sources) == []
    # Each of the three is another model, where there is something to be smoothed.
    for graph in (VISION_ENCODER, PROJECTOR, DECODER):
        contents = [(path / f"{graph}.onnx.data").read_bytes() for path in (golden_bundle(3, "int8"), *made.values())]
        assert len(set(contents)) == 3


def test_fp32_has_no_need_of_it(golden_bundle: Bundle, tmp_path: Path) -> None:
    bundle = golden_bundle(3, "fp32")
    arguments = ("--precision", "fp32", "--calibration", "none")
    assert export_main(export_arguments(published_files(3), tmp_path / bundle.name, *arguments)) == 0
    for path in bundle.iterdir():
        assert (tmp_path / bundle.name / path.name).read_bytes() == path.read_bytes()


def test_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def interrupted(finder: Finder, group: Group, *arguments: Any) -> None:
        asked.append(group.linears[0])
        if asked[-1].startswith("model.layers."):
            raise KeyboardInterrupt

    monkeypatch.setattr(Finder, "_find", interrupted)
    output = tmp_path / "made here" / "bundle"
    output.parent.mkdir()
    assert export_main(export_arguments(published_files(3), output, "--calibration", str(folder))) == 130
    assert asked[-1] == "model.layers.0.self_attn.qkv"
    captured = capsys.readouterr()
    assert captured.err.endswith("\ntinygptv-export: interrupted; nothing was written\n")
    assert "calibration" in captured.err
    assert list(output.parent.iterdir()) == []


def mean_error(bundle: Path, expected: dict[str, Array]) -> dict[str, float]:
    """1 - cosine, over the tokens."""
    with TinyGPTV.load(bundle) as model:
        assert model._vision is not None and model._decoder is not None
        found = {
            "image_features": model._vision.image_features(expected["pixel_values"]),
            "prefill_logits": model._decoder.start().run(expected["inputs_embeds"], ALL_LOGITS)[np.newaxis],
        }
    errors = {}
    for name, x in found.items():
        wanted = expected[name].astype(np.float64)
        cosines = (x * wanted).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(wanted, axis=-1)
        errors[name] = float(1 - cosines.mean())
    return errors


OUTLIERS, LOUDER = [3, 50], 40.0


def make_outliers(golden: Published) -> None:
    """The same function, with channels far louder than others in both encoders: what trained models are like."""
    layer, block = "model.layers.0", "blocks.0"
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            golden.vision[f"{block}.{norm}.{part}"][OUTLIERS] *= LOUDER
    for linear in ("attn.qkv", "mlp.fc1"):
        golden.vision[f"{block}.{linear}.weight"][:, OUTLIERS] /= LOUDER
    golden.checkpoint[f"{LANGUAGE}{layer}.input_layernorm.weight"][OUTLIERS] *= LOUDER
    golden.phi[f"{layer}.input_layernorm.bias"][OUTLIERS] *= LOUDER
    for linear in ("self_attn.query_key_value", "mlp.fc1"):
        golden.phi[f"{layer}.{linear}.weight"][:, OUTLIERS] /= LOUDER
    adapter = f"{LANGUAGE}{layer}.self_attn.query_key_value.lora_A.default.weight"
    golden.checkpoint[adapter][:, OUTLIERS] /= LOUDER


def test_outliers_cost_less(golden: Published, golden_bundle: Bundle, expected: Expected, tmp_path: Path) -> None:
    """Nearly as close as a model that has none."""
    make_outliers(golden)
    files = golden.write(tmp_path / "files")
    errors = {}
    for name, more in (("calibrated", ()), ("not", ("--calibration", "none"))):
        assert export_main(export_arguments(files, tmp_path / name, *more)) == 0
        errors[name] = mean_error(tmp_path / name, expected(4))
    without_outliers = mean_error(golden_bundle(4, "int8"), expected(4))
    for name, error in errors["calibrated"].items():
        assert error < 0.5 * errors["not"][name], name
        assert error < 1.5 * without_outliers[name], name
    shutil.rmtree(tmp_path / "files")
