"""What git leaves in the place of large files that it has not downloaded is called that, whatever file it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Refusal
from sibling_layouts import build, one_folder
from siblings import Sibling, write
from variants import Published, write_bins, write_shards

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1a" * 32 + b"\nsize 4943162240\n"


def assert_named(message: str, file: Path) -> None:
    what = "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it again"
    assert message == f"tinygptv-export: {file}: {what}"


@pytest.mark.parametrize("option", ["--vision", "--qformer", "--checkpoint", "--architecture"])
def test_a_file_of_tinygpt_v(option: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    Path(files[option]).write_bytes(POINTER)
    assert_named(refusal(files), Path(files[option]))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ],
)
def test_a_file_of_phi_2(name: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files", write_shards)
    file = Path(files["--phi"]) / name
    assert file.is_file()
    file.write_bytes(POINTER)
    assert_named(refusal(files), file)


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin"])
def test_a_file_of_phi_2_in_torchs_format(name: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files", write_bins)
    (Path(files["--phi"]) / name).write_bytes(POINTER)
    assert_named(refusal(files), Path(files["--phi"]) / name)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "model-00002-of-00002.safetensors"])
def test_a_file_of_a_sibling(name: str, tmp_path: Path, refusal: Refusal) -> None:
    files = one_folder(Sibling.golden("llava-phi"))
    assert f"model/{name}" in files
    files[f"model/{name}"] = POINTER
    if name == "tokenizer.json":
        del files["model/vocab.json"]
    assert_named(refusal(write(files, tmp_path / "files")), tmp_path / "files" / "model" / name)


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("LoRA", "model/adapter_config.json"),
        ("LoRA", "model/adapter_model.safetensors"),
        ("LoRA .bin", "model/adapter_model.bin"),
        ("LoRA", "model/non_lora_trainables.bin"),
        ("LoRA", "tower/config.json"),
        ("LoRA", "tower/model.safetensors"),
        ("LoRA", "tower/preprocessor_config.json"),
    ],
)
def test_a_file_of_adapters_or_a_tower(layout: str, path: str, tmp_path: Path, refusal: Refusal) -> None:
    files = build("bunny", layout)
    assert path in files
    files[path] = POINTER
    assert_named(refusal(write(files, tmp_path / "files")), tmp_path / "files" / path)
