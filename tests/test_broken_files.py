"""Published files that are truncated, damaged, absent or malicious: one line that names them, and no bundle."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal, published_files
from safetensors.torch import load_file, save_file
from tinygptv.export.sources.opening import open_torch
from tinygptv.runtime.errors import ExportError
from variants import Published, write_bins, write_shards

Files = dict[str, str]
FILE_OPTIONS = ("--vision", "--qformer", "--checkpoint")


@pytest.mark.parametrize("name", ["--phi", *FILE_OPTIONS, "--architecture"])
def test_missing_file(name: str, tmp_path: Path, refusal: Refusal) -> None:
    files = published_files(4)
    files[name] = str(tmp_path / "not there")
    message = refusal(files)
    assert files[name] in message
    assert "no such" in message


@pytest.mark.parametrize("name", [*FILE_OPTIONS, "--architecture"])
@pytest.mark.parametrize("content", [b"", b'{"a": [1]}', b"[1]", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_something_else_in_place_of_a_file(name: str, content: bytes | None, tmp_path: Path, refusal: Refusal) -> None:
    """Empty, JSON of another kind, what git leaves without its large files, and (None) a folder."""
    files = published_files(4)
    wrong = tmp_path / "wrong"
    files[name] = str(wrong)
    if content is None:
        wrong.mkdir()
    else:
        wrong.write_bytes(content)
    message = refusal(files)
    assert str(wrong) in message
    assert "asks for" not in message, "there is no code in it"


def test_file_in_place_of_the_phi_folder(refusal: Refusal) -> None:
    files = published_files(4)
    files["--phi"] = files["--vision"]
    assert f"--phi {files['--phi']}" in refusal(files)


def test_phi_folder_without_weights(tmp_path: Path, refusal: Refusal) -> None:
    files = published_files(4)
    shutil.copytree(files["--phi"], tmp_path / "phi", ignore=shutil.ignore_patterns("*.safetensors*"))
    files["--phi"] = str(tmp_path / "phi")
    assert files["--phi"] in refusal(files)


@pytest.mark.parametrize("kept", [0, 4, 500, 0.5, -1])
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_truncated_shard(name: str, kept: float, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files", write_shards)
    truncate(Path(files["--phi"]) / name, kept)
    assert name in refusal(files)


@pytest.mark.parametrize("kept", [0, 2, 500, 0.5, -1])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", FILE_OPTIONS)
def test_truncated_torch_file(
    name: str, kept: float, zipped: bool, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    files = golden.write(tmp_path / "files", _use_new_zipfile_serialization=zipped)
    truncate(Path(files[name]), kept)
    message = refusal(files)
    assert files[name] in message
    assert "asks for" not in message


def truncate(path: Path, kept: float) -> None:
    size = path.stat().st_size
    os.truncate(path, size + kept if kept < 0 else int(kept * size) if isinstance(kept, float) else kept)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_with_other_bytes_in_its_pickle(zipped: bool, tmp_path: Path) -> None:
    """Whatever a damaged pickle makes torch raise is an ExportError."""
    path = tmp_path / "damaged.pth"
    torch.save({"cls_token": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    refused = 0
    for place in range(300):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            open_torch(path, "--vision")
        except ExportError:
            refused += 1
    assert 100 < refused < 300


class Code:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("entry", ["optimizer", "model", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(
    zipped: bool, entry: str | None, protocol: int, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    marker = tmp_path / "code was run"
    document = Code(marker) if entry is None else {**golden.checkpoint_file, entry: Code(marker)}
    files = golden.write(tmp_path / "files")
    path = Path(files["--checkpoint"])
    torch.save(document, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    message = refusal(files)
    assert not marker.exists()
    assert files["--checkpoint"] in message
    if protocol == 2:
        assert f"asks for {os.mkdir.__module__}.mkdir" in message
    torch.load(path, weights_only=False)
    assert marker.exists(), "there was no code in it to begin with"


def test_bare_pickle_of_code_is_not_run(tmp_path: Path, refusal: Refusal) -> None:
    files = published_files(4)
    files["--vision"] = str(tmp_path / "code.pth")
    Path(files["--vision"]).write_bytes(pickle.dumps(Code(tmp_path / "marker")))
    assert files["--vision"] in refusal(files)
    assert not (tmp_path / "marker").exists()
    pickle.loads(Path(files["--vision"]).read_bytes())
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("document", [[torch.ones(2)], torch.ones(2), 3, None])
def test_torch_file_that_holds_no_dictionary(
    document: Any, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    files = golden.write(tmp_path / "files")
    torch.save(document, files["--qformer"])
    assert files["--qformer"] in refusal(files)


# Indices of shards


@pytest.fixture(params=[write_shards, write_bins])
def sharded(request: pytest.FixtureRequest, golden: Published, tmp_path: Path) -> tuple[Files, Path]:
    """The files with a Phi-2 folder of shards, and its index."""
    files = golden.write(tmp_path / "files", request.param)
    return files, next(Path(files["--phi"]).glob("*.index.json"))


def rewrite(index: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(index.read_text())
    change(document["weight_map"])
    index.write_text(json.dumps(document))


def test_index_names_a_shard_that_is_absent(sharded: tuple[Files, Path], refusal: Refusal) -> None:
    files, index = sharded
    shard = next(index.parent.glob("*-00002-of-*"))
    shard.unlink()
    message = refusal(files)
    assert str(index) in message
    assert shard.name in message


def test_index_names_a_key_that_no_shard_holds(sharded: tuple[Files, Path], refusal: Refusal) -> None:
    files, index = sharded
    shard = next(index.parent.glob("*-00001-of-*"))
    rewrite(index, lambda weight_map: weight_map.update({"surprise.weight": shard.name}))
    assert "surprise.weight" in refusal(files)


def test_index_names_a_key_that_another_shard_holds(sharded: tuple[Files, Path], refusal: Refusal) -> None:
    files, index = sharded
    shard = next(index.parent.glob("*-00001-of-*"))
    rewrite(index, lambda weight_map: weight_map.update({"lm_head.bias": shard.name}))
    message = refusal(files)
    assert "lm_head.bias" in message
    assert shard.name in message


def test_key_in_two_shards(sharded: tuple[Files, Path], golden: Published, refusal: Refusal) -> None:
    files, index = sharded
    again = {"lm_head.bias": golden.phi["lm_head.bias"]}
    shard = next(index.parent.glob("*-00001-of-*"))
    if shard.suffix == ".bin":
        torch.save({**torch.load(shard), **again}, shard)
    else:
        save_file({**load_file(shard), **again}, shard)
    message = refusal(files)
    assert "lm_head.bias" in message
    assert shard.name in message


@pytest.mark.parametrize(
    "document", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b"}}, []]
)
def test_index_that_is_none(document: Any, sharded: tuple[Files, Path], refusal: Refusal) -> None:
    files, index = sharded
    index.write_text(json.dumps(document))
    assert str(index) in refusal(files)
