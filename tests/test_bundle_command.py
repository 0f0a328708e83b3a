"""``tinygptv bundle verify`` and ``info``: whether a bundle is whole, tuned or not, and what is in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from file_contents import flip
from tinygptv.runtime.bundle.manifest import parse_manifest, read_manifest
from tinygptv.runtime.cli import main
from tinygptv.runtime.tuning.find import FOLDER
from tinygptv.runtime.tuning.make import tune


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


def verified(bundle: Path, capsys: pytest.CaptureFixture[str], status: int) -> dict[str, str]:
    """Names of what is damaged, with what is wrong with it."""
    assert main(["bundle", "verify", str(bundle), "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert found["folder"] == str(bundle)
    assert found["whole"] == (status == 0)
    assert {record.name for record in parse_manifest(bundle).files} <= {file["name"] for file in found["files"]}
    return {file["name"]: file["note"] for file in found["files"] if not file["whole"]}


def test_a_whole_one(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bundle.parent.rglob("*"))
    assert main(["bundle", "verify", str(bundle)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    *files, last = captured.out.splitlines()
    assert [re.sub(r": [\d,]+ bytes$", "", line) for line in files] == [
        f"complete  {record.name}" for record in read_manifest(bundle).files
    ]
    assert last == f"{bundle} is complete"
    assert verified(bundle, capsys, 0) == {}
    assert sorted(bundle.parent.rglob("*")) == before  # nothing was written


def test_every_file_is_read_to_its_end(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones too, which loading does not hash."""
    monkeypatch.setattr("tinygptv.runtime.bundle.manifest.HASHED_BYTES", 0)
    for record in parse_manifest(bundle).files:
        flip(bundle / record.name, -1)
        (name, note), *more = verified(bundle, capsys, 1).items()
        assert (name, more) == (record.name, [])
        assert "SHA-256" in note
        flip(bundle / record.name, -1)
    assert verified(bundle, capsys, 0) == {}


def test_all_that_is_wrong_is_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "projector.onnx").unlink()
    flip(bundle / "tokenizer.json", 100)
    with (bundle / "decoder.onnx.data").open("ab") as file:
        file.write(b"more")
    found = verified(bundle, capsys, 1)
    assert set(found) == {"projector.onnx", "tokenizer.json", "decoder.onnx.data"}
    assert "is missing" in found["projector.onnx"]
    assert re.search(r"has [\d,]+ bytes; the manifest says [\d,]+", found["decoder.onnx.data"])
    assert main(["bundle", "verify", str(bundle)]) == 1
    out = capsys.readouterr().out
    assert out.count("damaged  ") == 3
    assert out.endswith("is not complete: see the 3 above\n")


def test_a_file_that_cannot_be_read(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *more: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tinygptv.runtime.commands.bundle.is_whole", refused)
    assert set(verified(bundle, capsys, 1).values()) == {"Permission denied"}


def test_a_tuned_one(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed weights follow the weights in their files: the bundle is whole all the same, and they are checked too."""
    tune(bundle, read_manifest(bundle))
    assert verified(bundle, capsys, 0) == {}
    flip(bundle / "decoder.onnx.data", -1)
    assert verified(bundle, capsys, 1) == {str(bundle): "damaged: run tinygptv tune again"}
    flip(bundle / "decoder.onnx.data", -1)
    flip(bundle / "decoder.onnx.data", 0)
    assert set(verified(bundle, capsys, 1)) == {"decoder.onnx.data", str(bundle)}
    shutil.rmtree(bundle / FOLDER)
    assert set(verified(bundle, capsys, 1)) == {"decoder.onnx.data"}


def test_what_is_no_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "manifest.json").write_text("{}")
    for folder, said in ((tmp_path / "nowhere", "is not a folder"), (bundle, "format_version None")):
        for action in ("verify", "info"):
            assert main(["bundle", action, str(folder)]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("tinygptv: ") and captured.err.count("\n") == 1
            assert said in captured.err


def test_info(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "info", str(bundle)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [(line[:14].strip(), line[16:]) for line in captured.out.splitlines()]
    found = dict(rows)
    names = [name for name, _ in rows]
    manifest = read_manifest(bundle)
    assert names[:17] == [
        *(
            "bundle",
            "family",
            "made by",
            *manifest.parts,
            "images",
            "context",
            "KV cache",
            "templates",
            "tasks",
            "boxes",
            "caption",
        ),
        *("stop strings", "vision_encoder", "projector", "decoder"),
    ]
    assert names.count("source") == len(manifest.sources) > 3
    assert str(bundle) in found["bundle"] and found["family"] == "tinygpt-v, stage 3"
    assert all(
        f"{name} {value}" in found[part] for part in manifest.parts for name, value in manifest.parts[part].items()
    )
    assert found["images"].startswith(f"squash to {manifest.image.image_size} px, bicubic, mean 0.4815 0.4578 0.4082")
    assert found["images"].endswith(f": {manifest.contract.image_tokens} tokens each")
    assert found["tasks"].split() == list(manifest.tasks)
    assert "human_assistant (default)" in found["templates"]
    assert re.search(r"int8: \d+ matrices in 8 bits", found["decoder"])
    assert f"vocabulary of {manifest.contract.vocab_size}" in found["context"]
    assert found["tuned"].endswith("not tuned")


def test_info_for_a_program(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the manifest, also of a bundle that is not whole, and what tuning has done."""
    tune(bundle, read_manifest(bundle))
    (bundle / "projector.onnx").unlink()
    assert main(["bundle", "info", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert {name: found[name] for name in manifest} == manifest
    assert found["bytes"] == sum(record["size"] for record in manifest["files"])
    assert [place["usable"] for place in found["tuned"]] == [True, False]


def test_the_demo_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify"]) == 0
    assert "is complete" in capsys.readouterr().out


def test_tune_for_a_program(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for new in (True, False):
        assert main(["tune", str(bundle), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["home"], found["new"]) == (str(bundle), new)
        assert found["bytes"] > 0 and found["seconds"] > 0
    assert main(["tune", str(bundle), "--undo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": [str(bundle)]}
