"""Bundles of format version 1, which are out in the world, go on working.

``bundle_v1`` was exported by the last release that wrote them, in int8, from ``golden/stage3``; the ids that answers
are compared with are that release's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinygptv.runtime import BundleError, TinyGPTV
from tinygptv.runtime.bundle.manifest import parse_manifest, read_manifest, write_manifest
from tinygptv.runtime.cli import main
from tinygptv.runtime.loading import DEMO_BUNDLE

BUNDLE = Path(__file__).parent / "bundle_v1"
IMAGES = Path(__file__).parent / "images"
QUESTION = "[vqa] which shape is it?"
Document = dict[str, Any]


def document_of(bundle: Path) -> Document:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("picture", "ids"),
    [
        ("red_triangle.png", (262, 30, 294, 256, 158, 262, 30, 294, 256, 221, 228, 131)),
        ("teal_circle.png", (262, 30, 294, 256, 294, 256, 224, 40, 294, 256, 294, 256)),
    ],
)
def test_answers_are_those_of_the_release_that_wrote_it(picture: str, ids: tuple[int, ...]) -> None:
    assert document_of(BUNDLE)["format_version"] == 1
    with TinyGPTV.load(BUNDLE) as model:
        assert model.ask(IMAGES / picture, QUESTION, max_new_tokens=12).token_ids == ids


def test_what_became_of_it() -> None:
    manifest, document = read_manifest(BUNDLE), document_of(BUNDLE)
    language = document["architecture"]["language"]
    assert manifest.format_version == 1
    assert (manifest.family, manifest.stage, manifest.boxes) == ("tinygpt-v", 3, True)
    assert manifest.parts == {
        "eva_clip": document["architecture"]["vision"],
        "qformer": document["architecture"]["qformer"],
        "phi": language,
    }
    assert (manifest.image.fit, manifest.image.pad_color) == ("squash", None)
    assert "[identify]" in manifest.tasks and manifest.caption_question == "[caption]"
    contract = manifest.contract
    assert (contract.layers, contract.heads) == (language["num_hidden_layers"], language["num_attention_heads"])
    assert (contract.context, contract.hidden_size) == (language["max_position_embeddings"], language["hidden_size"])
    assert contract.image_tokens == document["architecture"]["qformer"]["num_query_tokens"]
    # 10 tokens; attention of 2 heads and an MLP of 279, in float32, in and out.
    assert manifest.graphs["vision_encoder"].working_bytes == 2 * 4 * 10 * (2 * 10 + 279)


def test_written_again_it_is_of_the_present_version(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "again"))
    manifest = read_manifest(bundle)
    write_manifest(manifest, bundle)
    document = document_of(bundle)
    assert (document["format_version"], document["format_minor"]) == (2, 0)
    again = read_manifest(bundle)
    assert (again.graphs, again.image, again.parts) == (manifest.graphs, manifest.image, manifest.parts)
    with TinyGPTV.load(bundle) as model, TinyGPTV.load(BUNDLE) as before:
        picture = IMAGES / "teal_circle.png"
        assert (
            model.ask(picture, QUESTION, max_new_tokens=4).text == before.ask(picture, QUESTION, max_new_tokens=4).text
        )


def test_the_commands_that_look_at_bundles(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["bundle", "info"], ["bundle", "verify"], ["doctor"]):
        assert main([*command, str(BUNDLE)]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert str(BUNDLE) in captured.out
    assert main(["bundle", "info", str(BUNDLE), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format_version"], found["family"], found["image"]["fit"]) == (1, "tinygpt-v", "squash")
    assert main(["bundle", "info", str(BUNDLE)]) == 0
    assert "format 1.0" in capsys.readouterr().out


def test_the_demo_is_of_a_version_that_is_read() -> None:
    assert document_of(DEMO_BUNDLE)["format_version"] in (1, 2)
    assert read_manifest(DEMO_BUNDLE).family == "tinygpt-v"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("architecture"), "no field architecture"),
        (lambda d: d.update(architecture=None), "architecture: found null; expected an object"),
        (lambda d: d["architecture"].pop("vision"), "architecture: no field vision"),
        (lambda d: d["architecture"].pop("qformer"), "architecture: no field qformer"),
        (lambda d: d["architecture"]["vision"].pop("image_size"), "vision: no field image_size"),
        (lambda d: d["architecture"]["vision"].update(patch_size=0), "patch_size is 0; expected at least 1"),
        (
            lambda d: d["architecture"]["vision"].update(patch_size="14"),
            'patch_size: found "14"; expected a whole number',
        ),
        (lambda d: d["architecture"]["language"].pop("num_hidden_layers"), "language: no field num_hidden_layers"),
        (lambda d: d["architecture"]["language"].update(num_hidden_layers=True), "num_hidden_layers: found true"),
        (lambda d: d["architecture"]["language"].update(max_position_embeddings=-1), "max_position_embeddings is -1"),
        (lambda d: d.pop("graphs"), "no field graphs"),
        (lambda d: d["graphs"].pop("decoder"), "graphs are ['projector', 'vision_encoder']"),
        (lambda d: d["graphs"]["decoder"].update(inputs=None), "decoder: inputs: found null"),
        (lambda d: d["graphs"]["decoder"]["inputs"][5].pop("axes"), "inputs[5]: no field axes"),
        (lambda d: d["graphs"]["decoder"]["inputs"].pop(5), "decoder has no past_key_values.{i}.key"),
        (lambda d: d.pop("image"), "no field image"),
        (lambda d: d["image"].pop("resample"), "image: no field resample"),
        (lambda d: d["image"].update(resample="nearest"), "resample 'nearest'"),
        (lambda d: d.pop("templates"), "no field templates"),
        (lambda d: d["templates"][0].pop("user"), "templates[0]: no field user"),
        (lambda d: d["files"].pop(0), "does not list"),
    ],
)
def test_one_that_is_not_whole_is_refused_by_name(
    change: Callable[[Document], object], named: str, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "spoilt"))
    document = document_of(bundle)
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        parse_manifest(bundle)
    message = str(caught.value)
    assert named in message
    assert str(bundle / "manifest.json") in message
    assert "\n" not in message


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "more"))
    document = document_of(bundle)
    for place in (document, document["image"], document["architecture"]["vision"], document["graphs"]["decoder"]):
        place["surprise"] = [1]
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    found, wanted = read_manifest(bundle), read_manifest(BUNDLE)
    assert (found.graphs, found.image, found.templates) == (wanted.graphs, wanted.image, wanted.templates)
