"""Keys with the names that wrappers of training programs put before them: taken off where all keys have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal, open_published, published_files
from sibling_layouts import build
from siblings import Files, prefixed, write
from tinygptv.export.sources import open_model
from variants import ROLES, PhiWriter, Published, write_bins, write_safetensors, write_shards

PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."]
Tensors = dict[str, Any]


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def expected() -> Tensors:
    return dict(open_published(published_files(4)))


def wrap(golden: Published, role: str, prefix: str) -> None:
    tensors = golden.tensors(role)
    wrapped = prefixed(tensors, prefix)
    tensors.clear()
    tensors.update(wrapped)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("role", ROLES)
def test_a_wrapper_around_a_whole_model(
    role: str, prefix: str, golden: Published, tmp_path: Path, expected: Tensors
) -> None:
    wrap(golden, role, prefix)
    assert_same(dict(open_published(golden.write(tmp_path / "files"))), expected)


def write_old_bin(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write_phi", [write_safetensors, write_shards, write_bins, write_old_bin])
def test_in_every_format(write_phi: PhiWriter, golden: Published, tmp_path: Path, expected: Tensors) -> None:
    for role in ROLES:
        wrap(golden, role, "module._orig_mod.")
    files = golden.write(tmp_path / "files", write_phi, _use_new_zipfile_serialization=write_phi is not write_old_bin)
    assert_same(dict(open_published(files)), expected)


def opened(files: Files, folder: Path) -> Tensors:
    return dict(open_model(**{name.removeprefix("--"): value for name, value in write(files, folder).items()}))


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llava-phi", "one file"),
        ("mipha", "fp16"),
        ("tinyllava", "recipe"),
        ("tinyllava", "LoRA recipe"),
        ("tinyllava", "legacy"),
        ("bunny", "merged"),
        ("bunny", "LoRA .bin"),
    ],
)
def test_in_every_file_of_a_sibling(family: str, layout: str, tmp_path: Path) -> None:
    files, expected = build(family, layout), opened(build(family, layout), tmp_path / "plain")
    for path, content in files.items():
        if path.endswith((".safetensors", ".bin")):
            files[path] = prefixed(content, "module.")
        elif path.endswith(".index.json"):
            content["weight_map"] = {f"module.{key}": shard for key, shard in content["weight_map"].items()}
    assert_same(opened(files, tmp_path / "wrapped"), expected)


def test_a_missing_key_is_still_named(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    del golden.phi["lm_head.bias"]
    wrap(golden, "phi", "module.")
    assert "missing lm_head.bias" in refusal(golden.write(tmp_path / "files"))


# Not before every key


def only_some(tensors: Tensors) -> None:
    key = next(iter(tensors))
    for other in [other for other in tensors if other != key]:
        tensors[f"module.{other}"] = tensors.pop(other)


def only_one(tensors: Tensors) -> None:
    key = next(iter(tensors))
    tensors[f"_orig_mod.{key}"] = tensors.pop(key)


def within(tensors: Tensors) -> None:
    for key in list(tensors):
        head, _, rest = key.rpartition(".")
        tensors[f"{head}._orig_mod.{rest}" if head else f"_orig_mod.{rest}"] = tensors.pop(key)


def within_a_wrapper(tensors: Tensors) -> None:
    only_one(tensors)
    for key in list(tensors):
        tensors[f"module.{key}"] = tensors.pop(key)


@pytest.mark.parametrize("change", [only_some, only_one, within, within_a_wrapper])
@pytest.mark.parametrize("role", ROLES)
def test_a_wrapper_around_something_else_is_the_cause(
    role: str, change: Callable[[Tensors], None], golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    change(golden.tensors(role))
    keys = set(golden.tensors(role))
    files = golden.write(tmp_path / "files")
    message = refusal(files)
    assert message.startswith(f"tinygptv-export: {files[f'--{role}']}: ")
    named = message.partition("such as ")[2].partition(", have a wrapper's name in them")[0]
    assert named in keys
    assert f" of {len(keys)} keys" in message
    assert "expected none, or the same before every key: save the model that is inside the wrapper" in message


def test_a_key_beside_its_wrapped_copy(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.vision["module.cls_token"] = golden.vision["cls_token"].clone()
    assert "module.cls_token, have a wrapper's name" in refusal(golden.write(tmp_path / "files"))


def test_a_tower_that_is_wrapped_within_the_model(tmp_path: Path, refusal: Refusal) -> None:
    """It is not taken for one that is absent."""
    files = build("bunny", "merged")
    for path in files:
        if path.endswith(".safetensors") and path.startswith("model/"):
            files[path] = {key.replace("vision_model.", "_orig_mod.vision_model."): t for key, t in files[path].items()}
    index = files["model/model.safetensors.index.json"]
    index["weight_map"] = {
        key.replace("vision_model.", "_orig_mod.vision_model."): shard for key, shard in index["weight_map"].items()
    }
    assert "have a wrapper's name in them" in refusal(write(files, tmp_path / "files"))
