"""The manifest is read back as it was written, and refused where it does not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tinygptv.runtime import BundleError, TinyGPTV
from tinygptv.runtime.bundle.manifest import FileRecord, read_manifest, write_manifest

Bundle = Callable[[int, str], Path]
Document = dict[str, Any]


@pytest.fixture
def bundle(golden_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of a bundle, to be spoilt."""
    return Path(shutil.copytree(golden_bundle(4, "int8"), tmp_path / "spoilt bundle"))


def rewrite(bundle: Path, change: Callable[[Document], object]) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def refusal(bundle: Path) -> str:
    """The one line that a bundle is refused with, both when its manifest is read and when it is loaded."""
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    with pytest.raises(BundleError) as again:
        TinyGPTV.load(bundle)
    message = str(caught.value)
    assert str(again.value) == message
    assert "\n" not in message
    assert str(bundle) in message
    return message


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_read_back_equal(precision: str, golden_bundle: Bundle, bundle: Path) -> None:
    source = golden_bundle(4, precision)
    manifest = read_manifest(source)
    shutil.rmtree(bundle)
    shutil.copytree(source, bundle)
    (bundle / "manifest.json").unlink()
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest
    assert (bundle / "manifest.json").read_bytes() == (source / "manifest.json").read_bytes()
    assert hash(manifest.architecture) == hash(read_manifest(bundle).architecture), "frozen all the way down"


def test_other_files_and_texts_are_kept(bundle: Path) -> None:
    record = FileRecord("notes é.txt", 0, hashlib.sha256(b"").hexdigest())
    (bundle / record.name).touch()
    manifest = read_manifest(bundle)
    manifest = replace(manifest, name="größer <|\\u2028|>", stop_strings=(), files=(*manifest.files, record))
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest


PLACES: list[tuple[str, Callable[[Document], Document]]] = [
    ("manifest", lambda d: d),
    ("architecture", lambda d: d["architecture"]),
    ("vision", lambda d: d["architecture"]["vision"]),
    ("language", lambda d: d["architecture"]["language"]),
    ("image", lambda d: d["image"]),
    ("templates[1]", lambda d: d["templates"][1]),
    ("decoder", lambda d: d["graphs"]["decoder"]),
    ("quantization[0]", lambda d: d["graphs"]["projector"]["quantization"][0]),
    ("inputs[0]", lambda d: d["graphs"]["decoder"]["inputs"][0]),
    ("axes[1]", lambda d: d["graphs"]["vision_encoder"]["outputs"][0]["axes"][1]),
    ("sources[0]", lambda d: d["sources"][0]),
    ("files[2]", lambda d: d["files"][2]),
]
IDS = [name for name, _ in PLACES]


@pytest.mark.parametrize(("name", "place"), PLACES, ids=IDS)
def test_unknown_field(name: str, place: Callable[[Document], Document], bundle: Path) -> None:
    rewrite(bundle, lambda document: place(document).update(surprise=1))
    message = refusal(bundle)
    assert "unknown field surprise" in message
    assert name in message


@pytest.mark.parametrize(("name", "place"), PLACES, ids=IDS)
def test_missing_field(name: str, place: Callable[[Document], Document], bundle: Path) -> None:
    """Each field in turn, except the version."""
    path = bundle / "manifest.json"
    whole = path.read_text(encoding="utf-8")
    for field in set(place(json.loads(whole))) - {"format_version"}:
        rewrite(bundle, lambda document, field=field: place(document).pop(field))  # type: ignore[misc]
        message = refusal(bundle)
        assert f"no field {field}" in message
        assert name in message
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(stage="4"), "stage"),
        (lambda d: d.update(stage=True), "stage"),
        (lambda d: d.update(stage=4.0), "stage"),
        (lambda d: d.update(templates={}), "templates"),
        (lambda d: d.update(eos_token_ids=["a"]), "eos_token_ids"),
        (lambda d: d.update(architecture=[]), "architecture"),
        (lambda d: d.update(graphs=None), "graphs"),
        (lambda d: d["image"].update(mean=[0.5, 0.5]), "mean"),
        (lambda d: d["image"].update(std=[0.5, 0.5, "x"]), "std"),
        (lambda d: d["architecture"]["language"].update(rope_theta=None), "rope_theta"),
        (lambda d: d["files"][0].update(size=-0.5), "size"),
        (lambda d: d["graphs"]["decoder"].update(quantization=None), "quantization"),
        (
            lambda d: d["graphs"]["decoder"].update(quantization=d["graphs"]["decoder"]["quantization"][0]),
            "quantization",
        ),
        (lambda d: d["graphs"]["decoder"]["quantization"][0].update(block_size="row"), "block_size"),
        (lambda d: d["graphs"]["decoder"]["quantization"][0].update(layers=None), "layers"),
    ],
)
def test_field_of_another_type(change: Callable[[Document], object], named: str, bundle: Path) -> None:
    rewrite(bundle, change)
    message = refusal(bundle)
    assert named in message
    assert "expected" in message


def test_whole_number_where_a_fraction_is_expected(bundle: Path) -> None:
    rewrite(bundle, lambda document: document["architecture"]["language"].update(rope_theta=10000))
    assert read_manifest(bundle).architecture.language.rope_theta == 10000.0


def test_weights_of_one_output_may_share_a_scale(bundle: Path) -> None:
    """Whatever their number: there is no block size then."""
    manifest = read_manifest(bundle)
    sizes = {name: {how.block_size for how in graph.quantization} for name, graph in manifest.graphs.items()}
    assert sizes["vision_encoder"] == {None} and None not in sizes["decoder"]
    rewrite(bundle, lambda document: document["graphs"]["decoder"].update(quantization=[]))
    assert read_manifest(bundle).graphs["decoder"].quantization == ()


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_version(version: Any, bundle: Path) -> None:
    """Told before anything else: a later version's fields are unknown."""
    rewrite(bundle, lambda document: document.update(format_version=version, surprise=1))
    message = refusal(bundle)
    assert f"format_version {version!r}" in message
    assert "reads 1" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_manifest_that_is_none(text: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(text)
    assert "manifest.json" in refusal(bundle)


def test_manifest_that_is_no_text(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "manifest.json" in refusal(bundle)


def test_no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    assert "has no manifest.json" in refusal(bundle)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("not there", "file"):
        assert "is not a folder" in refusal(tmp_path / name)


def test_every_file_must_be_there_with_its_size(bundle: Path) -> None:
    names = {record.name for record in read_manifest(bundle).files}
    assert len(names) == 8
    for name in names:
        path = bundle / name
        content = path.read_bytes()
        path.unlink()
        assert f"{path} is missing" in refusal(bundle)
        for resized in (content[:-1], content + b"\0", b""):
            path.write_bytes(resized)
            message = refusal(bundle)
            assert str(path) in message
            assert f"{len(resized):,}" in message and f"{len(content):,}" in message
        path.write_bytes(content)
    read_manifest(bundle)


def test_every_file_must_be_listed(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for left_out in manifest.files:
        write_manifest(replace(manifest, files=tuple(r for r in manifest.files if r != left_out)), bundle)
        assert f"does not list {left_out.name}" in refusal(bundle)


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/hostname", "folder/file", "..", ""])
def test_file_outside_of_the_bundle(name: str, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(replace(manifest, files=(*manifest.files, FileRecord(name, 1, ""))), bundle)
    refusal(bundle)


def test_graph_outside_of_the_bundle(bundle: Path) -> None:
    rewrite(bundle, lambda document: document["graphs"]["decoder"].update(file="../decoder.onnx"))
    assert "../decoder.onnx" in refusal(bundle)


@pytest.mark.parametrize(
    "change", [lambda graphs: graphs.pop("projector"), lambda graphs: graphs.update(more=graphs["decoder"])]
)
def test_graphs_are_the_three(change: Callable[[Document], object], bundle: Path) -> None:
    rewrite(bundle, lambda document: change(document["graphs"]))
    assert "graphs are" in refusal(bundle)


@pytest.mark.parametrize("name", ["tokenizer.json", "decoder.onnx", "decoder.onnx.data"])
def test_file_with_a_changed_byte(name: str, bundle: Path) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path} is damaged" in refusal(bundle)
