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
from file_contents import flip
from tinygptv.runtime import BundleError, TinyGPTV
from tinygptv.runtime.bundle.manifest import (
    Contract,
    FileRecord,
    TensorSpec,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from tinygptv.runtime.bundle.sessions import open_session

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
    assert (manifest.format_version, manifest.format_minor) == (2, 0)
    assert hash(manifest.contract) == hash(read_manifest(bundle).contract), "frozen all the way down"


def test_other_files_and_texts_are_kept(bundle: Path) -> None:
    record = FileRecord("notes é.txt", 0, hashlib.sha256(b"").hexdigest())
    (bundle / record.name).touch()
    manifest = read_manifest(bundle)
    manifest = replace(manifest, name="größer <|\\u2028|>", stop_strings=(), files=(*manifest.files, record))
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest


PLACES: list[tuple[str, Callable[[Document], Document]]] = [
    ("manifest", lambda d: d),
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
OPTIONAL = {"before_answer", "after_answer", "strip_question"}
"""Older bundles are without them."""


DEFAULTS = {
    "manifest": {"stage"},
    "image": {"pad_color"},
    "templates[1]": {"before_answer", "after_answer", "strip_question"},
    "decoder": {"working_bytes"},
    "inputs[0]": {"note", "count"},
    "axes[1]": {"maximum"},
}
"""Fields that may be missing."""


@pytest.mark.parametrize("minor", [0, 1, 99])
def test_fields_of_later_minor_versions_are_ignored(minor: int, bundle: Path, photo: Path) -> None:
    """At any depth; what is known stays, and the bundle answers as before."""
    with TinyGPTV.load(bundle) as model:
        before, wanted = model.manifest, model.ask(photo, "what?", max_new_tokens=4).token_ids
    rewrite(bundle, lambda document: document.update(format_minor=minor))
    for _, place in PLACES:
        rewrite(bundle, lambda document, place=place: place(document).update(surprise={"deep": [1, None]}))
    with TinyGPTV.load(bundle) as model:
        assert model.manifest == replace(before, format_minor=minor)
        assert model.ask(photo, "what?", max_new_tokens=4).token_ids == wanted


@pytest.mark.parametrize(("name", "place"), PLACES, ids=IDS)
def test_missing_field(name: str, place: Callable[[Document], Document], bundle: Path) -> None:
    """Each field in turn, except the version; those with a default may be missing."""
    path = bundle / "manifest.json"
    whole = path.read_text(encoding="utf-8")
    assert DEFAULTS.get(name, set()) <= set(place(json.loads(whole)))
    for field in set(place(json.loads(whole))) - {"format_version"} - DEFAULTS.get(name, set()):
        rewrite(bundle, lambda document, field=field: place(document).pop(field))  # type: ignore[misc]
        message = refusal(bundle)
        assert f"no field {field}" in message
        assert name in message
        path.write_text(whole, encoding="utf-8")
    for field in DEFAULTS.get(name, ()):
        rewrite(bundle, lambda document, field=field: place(document).pop(field))  # type: ignore[misc]
    read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(stage="4"), "stage"),
        (lambda d: d.update(stage=True), "stage"),
        (lambda d: d.update(stage=4.0), "stage"),
        (lambda d: d.update(templates={}), "templates"),
        (lambda d: d.update(eos_token_ids=["a"]), "eos_token_ids"),
        (lambda d: d.update(format_minor="1"), "format_minor"),
        (lambda d: d.update(family=None), "family"),
        (lambda d: d.update(parts=[]), "parts"),
        (lambda d: d.update(parts={"phi": 7}), "parts: phi"),
        (lambda d: d.update(tasks="[vqa]"), "tasks"),
        (lambda d: d.update(tasks=["[vqa]", None]), "tasks[1]"),
        (lambda d: d.update(boxes=1), "boxes"),
        (lambda d: d["templates"][0].update(strip_question="no"), "strip_question"),
        (lambda d: d["image"].update(pad_color=[1, 2]), "pad_color"),
        (lambda d: d["image"].update(pad_color=[1, 2, 3.5]), "pad_color[2]"),
        (lambda d: d["image"].update(mean=[0.5, 0.5, float("nan")]), "mean[2]"),
        (lambda d: d["image"].update(mean=[0.5, 0.5, 10**400]), "mean[2]"),
        (lambda d: d["graphs"]["decoder"]["inputs"][0].update(count=None), "count"),
        (lambda d: d["graphs"]["decoder"].update(working_bytes=1.5), "working_bytes"),
        (lambda d: d.update(graphs=None), "graphs"),
        (lambda d: d["image"].update(mean=[0.5, 0.5]), "mean"),
        (lambda d: d["image"].update(std=[0.5, 0.5, "x"]), "std"),
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
    rewrite(bundle, lambda document: document["image"].update(std=[1, 1, 2]))
    assert read_manifest(bundle).image.std == (1.0, 1.0, 2.0)


def test_weights_of_one_output_may_share_a_scale(bundle: Path) -> None:
    """Whatever their number: there is no block size then."""
    manifest = read_manifest(bundle)
    sizes = {name: {how.block_size for how in graph.quantization} for name, graph in manifest.graphs.items()}
    assert sizes["vision_encoder"] == {None} and sizes["decoder"] == {None, 64, 16}
    rewrite(bundle, lambda document: document["graphs"]["decoder"].update(quantization=[]))
    assert read_manifest(bundle).graphs["decoder"].quantization == ()


@pytest.mark.parametrize("version", [0, -1, 3, 2.0, True, "2", None, [2]])
def test_other_version(version: Any, bundle: Path) -> None:
    """Told before anything else: a later version's fields may mean something else."""
    rewrite(bundle, lambda document: document.update(format_version=version, graphs=None))
    message = refusal(bundle)
    assert f"format_version {version!r}" in message
    assert "reads 1 to 2" in message
    assert ("update tinygptv" in message) == (version == 3)


def decoder_input(document: Document, number: int) -> Document:
    return document["graphs"]["decoder"]["inputs"][number]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["image"].update(fit="anyres"), "fit 'anyres'"),
        (lambda d: d["image"].update(resample="lanczos"), "resample 'lanczos'"),
        (lambda d: d["graphs"]["decoder"]["inputs"].append(decoder_input(d, 1) | {"name": "mrope"}), "mrope"),
        (lambda d: d["graphs"]["vision_encoder"]["inputs"].append(decoder_input(d, 1)), "position_ids"),
    ],
)
def test_what_this_version_cannot_compute(change: Callable[[Document], object], named: str, bundle: Path) -> None:
    """So a change of the numbers never goes unnoticed by an older reader."""
    rewrite(bundle, change)
    message = refusal(bundle)
    assert named in message
    assert "update" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["image"].update(fit="pad"), "pad_color is None with fit 'pad'"),
        (lambda d: d["image"].update(pad_color=[1, 2, 3]), "pad_color is (1, 2, 3) with fit 'squash'"),
        (lambda d: d["image"].update(fit="pad", pad_color=[1, 2, 256]), "pad_color is (1, 2, 256)"),
        (lambda d: d["image"].update(std=[0.5, 0.5, 0.0]), "std is (0.5, 0.5, 0.0)"),
        (lambda d: d["image"].update(image_size=57), "image_size is 57, but pixel_values are 56 x 56"),
        (lambda d: d.update(default_template="none"), "'none', the default one"),
        (lambda d: d.update(templates=[]), "the default one"),
        (lambda d: d["graphs"]["decoder"]["outputs"].pop(0), "decoder has no logits"),
        (lambda d: d["graphs"]["decoder"]["outputs"].append(decoder_input(d, 0)), "inputs_embeds more than once"),
        (lambda d: d["graphs"]["projector"]["outputs"].pop(0), "projector has no image_embeds"),
        (lambda d: decoder_input(d, 0).update(dtype="float16"), "inputs_embeds is 1 of float16 with 3 axes"),
        (lambda d: decoder_input(d, 0)["axes"].pop(), "inputs_embeds is 1 of float32 with 2 axes"),
        (lambda d: decoder_input(d, 5).update(count=0), "past_key_values.{i}.key is 0 of float16"),
        (lambda d: decoder_input(d, 5).update(count=2), "layers, heads and head_dim are"),
        (lambda d: decoder_input(d, 5).update(dtype="float32"), "layers, heads and head_dim are"),
        (lambda d: decoder_input(d, 6)["axes"][1].update(size=5), "layers, heads and head_dim are"),
        (
            lambda d: decoder_input(d, 5)["axes"][2].update(maximum=None),
            "the size of past_length (its maximum) is None",
        ),
        (lambda d: decoder_input(d, 0)["axes"][2].update(size=161), "the hidden size are 160 and 161"),
        (lambda d: decoder_input(d, 0)["axes"][2].update(size=None), "inputs_embeds: the size of hidden is None"),
        (lambda d: decoder_input(d, 0)["axes"][2].update(size=0), "inputs_embeds: the size of hidden is 0"),
        (
            lambda d: d["graphs"]["projector"]["inputs"][0]["axes"][2].update(size=95),
            "image_features' width are 95 and 96",
        ),
        (
            lambda d: d["graphs"]["projector"]["inputs"][0]["axes"][1].update(size=16),
            "image_features' tokens are 16 and 17",
        ),
        (
            lambda d: d["graphs"]["vision_encoder"]["inputs"][0]["axes"][3].update(size=42),
            "pixel_values' height and width are 42 and 56",
        ),
        (lambda d: decoder_input(d, 5).update(count=2**31), "is 2147483648 of float16 with 4 axes; expected int8"),
        (lambda d: decoder_input(d, 0)["axes"][2].update(size=2**40), "the size of hidden is 1099511627776"),
        (
            lambda d: decoder_input(d, 5)["axes"][2].update(maximum=10**30),
            "the size of past_length (its maximum) is 1000000000000000000000000000000",
        ),
        (lambda d: decoder_input(d, 5)["axes"][2].update(maximum=8), "an image takes 8 positions, and the context"),
        (lambda d: d.update(eos_token_ids=[0, 640]), "eos_token_ids are (0, 640)"),
        (lambda d: d.update(eos_token_ids=[-1]), "eos_token_ids are (-1,)"),
        (lambda d: d.update(name="\x1b[2Jowned"), "name is '\\x1b[2Jowned'"),
        (lambda d: d.update(family="a\nb"), "family is 'a\\nb'"),
        (lambda d: d["templates"][0].update(name="\x07"), "name of template 0 is '\\x07'"),
        (lambda d: d["graphs"]["decoder"].update(data="a\nb"), "file of decoder is 'a\\nb'"),
        (lambda d: decoder_input(d, 0).update(name="a\nb"), "name or dtype of a tensor is 'a\\nb'"),
        (lambda d: decoder_input(d, 0)["axes"][0].update(name="\x9b"), "of an axis of inputs_embeds is '\\x9b'"),
    ],
)
def test_sizes_and_settings_that_do_not_fit(change: Callable[[Document], object], named: str, bundle: Path) -> None:
    rewrite(bundle, change)
    message = refusal(bundle)
    assert named in message
    assert "manifest.json" in message


def test_the_contract(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    phi = manifest.parts["phi"]
    assert manifest.contract == Contract(
        image_size=56,
        image_tokens=manifest.parts["qformer"]["num_query_tokens"],
        hidden_size=phi["hidden_size"],
        vocab_size=phi["vocab_size"],
        layers=phi["num_hidden_layers"],
        heads=phi["num_attention_heads"],
        head_dim=phi["hidden_size"] // phi["num_attention_heads"],
        context=phi["max_position_embeddings"],
        cache_dtype="float16",
    )
    assert manifest.contract.cache_bytes_per_position == 2 * 3 * 160 * 2


def with_axis(spec: TensorSpec, axis: int, size: int | None) -> TensorSpec:
    axes = tuple(replace(one, size=size) if i == axis else one for i, one in enumerate(spec.axes))
    return replace(spec, axes=axes)


PROMISES: list[tuple[str, str, Callable[[TensorSpec], TensorSpec], str]] = [
    ("dtype", "logits", lambda spec: replace(spec, dtype="float16"), "tensor(float)[any, any, 320]; the manifest says"),
    ("unknown dtype", "logits", lambda spec: replace(spec, dtype="int4"), "the manifest says int4"),
    ("axes", "logits", lambda spec: replace(spec, axes=()), "the manifest says float32[]"),
    ("size", "logits", lambda spec: with_axis(spec, 2, 321), "the manifest says float32[any, any, 321]"),
    ("fixed", "inputs_embeds", lambda spec: with_axis(spec, 0, 1), "the manifest says float32[1, any, 160]"),
    ("not fixed", "inputs_embeds", lambda spec: with_axis(spec, 2, None), "the manifest says float32[any, any, any]"),
    (
        "name",
        "seqlens_k",
        lambda spec: replace(spec, name="lengths"),
        "inputs are not those of the manifest (lengths, ",
    ),
    ("output", "logits", lambda spec: replace(spec, name="scores"), "outputs are not those of the manifest (scores)"),
    ("fewer", "past_key_values.{i}.key", lambda spec: replace(spec, count=2), "(past_key_values.2.key)"),
    ("more", "past_key_values.{i}.key", lambda spec: replace(spec, count=4), "(past_key_values.3.key)"),
    ("far more", "present.{i}.key", lambda spec: replace(spec, count=10**15), "outputs are not those of the manifest"),
]


@pytest.mark.parametrize(("case", "name", "change", "named"), PROMISES, ids=[case for case, *_ in PROMISES])
def test_a_graph_that_does_not_keep_the_contract(
    case: str, name: str, change: Callable[[TensorSpec], TensorSpec], named: str, bundle: Path
) -> None:
    graph = read_manifest(bundle).graphs["decoder"]
    inputs, outputs = (
        tuple(change(spec) if spec.name == name else spec for spec in specs) for specs in (graph.inputs, graph.outputs)
    )
    assert (inputs, outputs) != (graph.inputs, graph.outputs)
    open_session(bundle, graph, threads=1)
    with pytest.raises(BundleError) as caught:
        open_session(bundle, replace(graph, inputs=inputs, outputs=outputs), threads=1)
    message = str(caught.value)
    assert named in message
    assert str(bundle / "decoder.onnx") in message and "export the model again" in message


def test_outputs_that_nobody_was_promised_are_no_harm(bundle: Path) -> None:
    graph = read_manifest(bundle).graphs["decoder"]
    open_session(bundle, replace(graph, outputs=graph.outputs[:1]), threads=1)


def test_a_graph_of_another_model(bundle: Path, golden_bundle: Bundle) -> None:
    """Found when it is loaded, by the public API."""
    spoilt = read_manifest(bundle).graphs["vision_encoder"]
    shutil.copy(golden_bundle(3, "int8") / spoilt.file, bundle)
    shutil.copy(golden_bundle(3, "int8") / spoilt.data, bundle)
    records = {name: (bundle / name).read_bytes() for name in (spoilt.file, spoilt.data)}
    manifest = parse_manifest(bundle)
    files = tuple(
        FileRecord(record.name, len(records[record.name]), hashlib.sha256(records[record.name]).hexdigest())
        if record.name in records
        else record
        for record in manifest.files
    )
    write_manifest(replace(manifest, files=files), bundle)
    with pytest.raises(BundleError, match=r"pixel_values is .*42, 42\]; the manifest says float32\[any, 3, 56, 56\]"):
        TinyGPTV.load(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
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


def test_a_size_below_nothing(bundle: Path) -> None:
    """Also of weights, behind whose own bytes tuning leaves a mark."""
    manifest = read_manifest(bundle)
    for number, record in enumerate(manifest.files):
        files = (*manifest.files[:number], replace(record, size=-1), *manifest.files[number + 1 :])
        write_manifest(replace(manifest, files=files), bundle)
        assert f"{bundle / record.name} has" in refusal(bundle)


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
    flip(path, path.stat().st_size // 2)
    assert f"{path} is damaged" in refusal(bundle)
