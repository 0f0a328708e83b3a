"""Bundles tuned to a machine: the same answers to the bit, the room they take, and how they are undone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import QUESTION, export_arguments, published_files
from file_contents import contents, flip
from tinygptv.export import graph_ops
from tinygptv.export.cli import main as export_main
from tinygptv.runtime import BundleError, TinyGPTV, TinyGPTVError
from tinygptv.runtime.bundle.checksums import sums_of
from tinygptv.runtime.bundle.manifest import DECODER, GRAPHS, Manifest, read_manifest
from tinygptv.runtime.system import machine
from tinygptv.runtime.tuning import find as tuned_module
from tinygptv.runtime.tuning import make as tuning
from tinygptv.runtime.tuning.find import FOLDER, INDEX, cache_home, find_tuned
from tinygptv.runtime.tuning.make import tune, untune
from tinygptv.runtime.tuning.packed_weights import packed_weights
from tuned_bundles import answer, posix, tuned

pytest_plugins = "tuning_fixtures"
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def embeds(golden_bundle: Callable[[int, str], Path], photo: Path) -> Iterator[np.ndarray]:
    with TinyGPTV.load(golden_bundle(3, "int8")) as model:
        yield model.embed_prompt(model.encode_image(photo), QUESTION)


# What it is good for


def test_outputs_are_the_same_to_the_bit(bundle: Path, photo: Path, embeds: np.ndarray) -> None:
    def outputs() -> list[np.ndarray]:
        with TinyGPTV.load(bundle, threads=1) as model:
            return [model.encode_image(photo).embeds, model._decoder.start().run(embeds, 0).copy()]

    before = outputs()
    made, is_new = tune(bundle, read_manifest(bundle))
    assert is_new and made.home == bundle
    assert tuned(bundle) == made
    for one, other in zip(before, outputs(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cached", [False, True])
def test_weights_as_uint8(bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """As on x86 without VNNI: products are the same to the bit everywhere, and each weight of theirs is packed."""
    monkeypatch.setattr(tuning, "products_saturate", lambda: True)

    def outputs() -> tuple[np.ndarray, np.ndarray]:
        with TinyGPTV.load(bundle, threads=1) as model:
            image = model.encode_image(photo)
            return image.embeds, model._decoder.start().run(model.embed_prompt(image, QUESTION), 0).copy()

    manifest, before, exact = read_manifest(bundle), contents(bundle), outputs()
    made, _ = tune(bundle, manifest, cache=cached)
    assert tuned(bundle) == made
    for one, other in zip(exact, outputs(), strict=True):
        np.testing.assert_array_equal(one, other)
    count = 0
    for name in GRAPHS:
        graph, model = manifest.graphs[name], made.model(manifest.graphs[name])
        packed = packed_weights(model.read_bytes())
        for node in onnx.load(model, load_external_data=False).graph.node:
            if node.op_type in ("MatMulIntegerToFloat", "MatMulNBits"):
                assert packed[node.input[1]], f"{node.input[1]} is not packed"
                count += 1
        data, own = (made.home / graph.data).read_bytes(), before[graph.data]
        assert data.startswith(own) == (not cached or name == "projector")  # which has no such weights
    assert count > 20
    assert untune(bundle, manifest) == [made.home]
    assert contents(bundle) == before


@pytest.mark.parametrize("saturating", [False, True])
def test_an_encoder_that_takes_its_tokens_in_chunks(
    golden_bundle: Callable[[int, str], Path],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saturating: bool,
) -> None:
    """As the published one does: the same to the bit as at once, and once tuned, with VNNI and without."""
    if saturating:
        monkeypatch.setattr(tuning, "products_saturate", lambda: True)
    monkeypatch.setattr(graph_ops, "chunk_size", lambda tokens: tokens // 2)
    files = published_files(3)
    chunked = tmp_path / "chunked"
    assert export_main(export_arguments(files, chunked)) == 0
    assert b"Scan" in (chunked / "vision_encoder.onnx").read_bytes()

    def embeds(folder: Path) -> np.ndarray:
        with TinyGPTV.load(folder) as model:
            return model.encode_image(photo).embeds

    whole = embeds(golden_bundle(3, "int8"))
    assert np.array_equal(embeds(chunked), whole)
    tune(chunked, read_manifest(chunked))
    assert tuned(chunked) is not None
    assert np.array_equal(embeds(chunked), whole)


def test_packed_weights_are_what_is_computed_with(bundle: Path, embeds: np.ndarray) -> None:
    """A change to them that the sums vouch for must show: in the logits (1.31), or by being refused (1.32)."""

    def logits() -> np.ndarray:
        try:
            with TinyGPTV.load(bundle, threads=1) as model:
                return model._decoder.start().run(embeds, 0).copy()
        except BundleError:
            return np.zeros(0)

    manifest = read_manifest(bundle)
    tune(bundle, manifest)
    before = logits()
    assert before.size
    graph = manifest.graphs[DECODER]
    data = bundle / graph.data
    own = next(record.size for record in manifest.files if record.name == graph.data)
    changed = bytearray(data.read_bytes())
    changed[own + 8192 :] = bytes(byte ^ 1 for byte in changed[own + 8192 :])
    data.write_bytes(changed)
    index = bundle / FOLDER / INDEX
    document = json.loads(index.read_text(encoding="utf-8"))
    document["graphs"][DECODER]["sums"] = sums_of(data)
    index.write_text(json.dumps(document), encoding="utf-8")
    assert tuned(bundle) is not None
    assert not np.array_equal(before, logits())


def test_the_weights_are_on_the_disk_once(bundle: Path) -> None:
    before = contents(bundle)
    tune(bundle, read_manifest(bundle))
    after = contents(bundle)
    assert set(after) - set(before) == {
        os.path.join(FOLDER, INDEX),
        *(os.path.join(FOLDER, f"{name}.onnx") for name in GRAPHS),
    }
    for name, data in before.items():
        if name.endswith(".data"):
            assert after[name].startswith(data)
            assert len(data) < len(after[name])
            assert data not in after[name][len(data) :]
        else:
            assert after[name] == data


def test_once_more_does_nothing(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    tune(bundle, manifest)
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}
    assert tune(bundle, manifest) == (tuned(bundle), False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_undoing_gives_the_bundle_back_to_the_bit(bundle: Path, photo: Path, told: str) -> None:
    manifest, before = read_manifest(bundle), contents(bundle)
    assert untune(bundle, manifest) == []
    tune(bundle, manifest)
    tune(bundle, manifest, cache=True)
    assert untune(bundle, manifest) == [cache_home(bundle), bundle]
    assert contents(bundle) == before
    assert not (bundle / FOLDER).exists()
    assert tuned(bundle) is None
    assert answer(bundle, photo) == told


@posix
def test_permissions_stay(bundle: Path) -> None:
    data, manifest = bundle / "decoder.onnx.data", read_manifest(bundle)
    data.chmod(0o664)
    for change in (tune, untune):
        change(bundle, manifest)
        assert data.stat().st_mode & 0o777 == 0o664


def test_a_tuned_bundle_can_be_moved(bundle: Path, photo: Path, told: str, tmp_path: Path) -> None:
    tune(bundle, read_manifest(bundle))
    moved = bundle.rename(tmp_path / "elsewhere")
    found = tuned(moved)
    assert found is not None and found.home == moved
    assert answer(moved, photo) == told
    # And without its index it is a portable bundle still.
    shutil.rmtree(moved / FOLDER)
    assert tuned(moved) is None
    assert answer(moved, photo) == told


def test_a_running_model_keeps_what_it_mapped(bundle: Path, photo: Path, told: str) -> None:
    manifest = read_manifest(bundle)
    tune(bundle, manifest)
    with TinyGPTV.load(bundle) as model:
        untune(bundle, manifest)
        tune(bundle, manifest)
        assert model.ask(photo, QUESTION, max_new_tokens=12).text == told


# On first load


def test_nothing_is_written_unless_asked(bundle: Path, photo: Path, cache: Path) -> None:
    before = contents(bundle)
    answer(bundle, photo)
    assert contents(bundle) == before
    assert not cache.exists()


def test_on_first_load(bundle: Path, photo: Path, told: str) -> None:
    assert answer(bundle, photo, tune=True) == told
    found = tuned(bundle)
    assert found is not None and found.home == bundle
    before = contents(bundle)
    assert answer(bundle, photo, tune=True) == told
    assert contents(bundle) == before


def test_where_it_cannot_be_a_warning_says_so(
    bundle: Path, photo: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.warns(RuntimeWarning, match=r"loaded without tuning: .* cannot be tuned \(0\.0 GB are free") as caught:
        assert answer(bundle, photo, tune=True) == told
    assert caught[0].filename == answer.__code__.co_filename  # the caller of load
    assert contents(bundle) == before


def test_a_folder_that_says_it_can_be_written(
    bundle: Path, photo: Path, told: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows os.access does not ask who may; the cache is taken there too."""
    before, opened = contents(bundle), Path.open

    def refusing(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "x" in mode and path.is_relative_to(bundle):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    assert os.access(bundle, os.W_OK)
    assert answer(bundle, photo, tune=True) == told
    assert contents(bundle) == before
    found = tuned(bundle)
    assert found is not None and found.home == cache_home(bundle)


@pytest.mark.parametrize("change", [tune, untune])
def test_weights_that_another_program_has_mapped(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Manifest], object]
) -> None:
    """Windows replaces no such file: who reads of it is told what to do, and the bundle loads as before."""
    manifest = read_manifest(bundle)
    if change is untune:
        tune(bundle, manifest)

    def refuse(made: Path, place: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied", str(place))

    monkeypatch.setattr(tuning, "publish_file", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(TinyGPTVError, match=r"Access is denied.*; close other programs that use the bundle"):
        change(bundle, manifest)
    monkeypatch.undo()
    TinyGPTV.load(bundle).close()


def test_an_onnxruntime_that_keeps_no_packed_weights(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle)
    names = dict.fromkeys(packed_weights((bundle / "decoder.onnx").read_bytes()), ())
    monkeypatch.setattr(tuning, "packed_weights", lambda model: names)
    with pytest.raises(TinyGPTVError, match=r"onnxruntime \S+ keeps no packed weights of decoder.onnx: install"):
        tune(bundle, read_manifest(bundle))
    assert contents(bundle) == before


# Looking for a tuned copy


def test_the_machine_is_looked_at_only_for_a_tuned_copy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    for name in ("processor", "packing_version"):
        real = getattr(tuned_module, name)
        monkeypatch.setattr(tuned_module, name, lambda name=name, real=real: (looks.append(name), real())[1])
    manifest = read_manifest(bundle)
    assert find_tuned(bundle, manifest) is None
    (bundle / FOLDER).mkdir()  # as an interrupted tuning leaves it
    assert find_tuned(bundle, manifest) is None
    assert looks == []
    tune(bundle, manifest)
    looks.clear()
    assert find_tuned(bundle, manifest) is not None
    assert sorted(looks) == ["packing_version", "processor"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own files")
def test_a_machine_that_does_not_describe_itself(
    bundle: Path, photo: Path, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as silent:
        for name in ("PROC", "CGROUPS", "CPUS"):
            silent.setattr(machine, name, tmp_path / "nowhere")
        assert answer(bundle, photo) == told
        assert answer(bundle, photo, tune=True) == told
        assert tuned(bundle) is not None
        assert answer(bundle, photo) == told
    assert tuned(bundle) is None  # what it was tuned for is not known well enough


@posix
def test_a_user_without_a_home(bundle: Path, photo: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As programs in containers are."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable)
    manifest = read_manifest(bundle)
    assert cache_home(bundle) is None
    assert answer(bundle, photo) == told
    with pytest.raises(TinyGPTVError, match="no home folder; set HOME, or tune the bundle itself"):
        tune(bundle, manifest, cache=True)
    assert tune(bundle, manifest)[1] and tuned(bundle) is not None
    assert answer(bundle, photo) == told
    assert untune(bundle, manifest) == [bundle]


# In the cache


def test_in_the_cache(bundle: Path, photo: Path, told: str, cache: Path) -> None:
    before = contents(bundle)
    made, is_new = tune(bundle, read_manifest(bundle), cache=True)
    assert is_new and made.home.is_relative_to(cache)
    assert contents(bundle) == before
    assert tuned(bundle) == made
    assert answer(bundle, photo) == told
    flip(made.home / "decoder.onnx.data", 5000)
    with pytest.raises(BundleError, match=r"decoder.onnx.data is damaged .*tinygptv tune"):
        TinyGPTV.load(bundle)
    assert tune(bundle, read_manifest(bundle), cache=True)[1]
    assert answer(bundle, photo) == told


def test_the_cache_forgets_bundles_that_are_gone(bundle: Path, golden_bundle: Callable[[int, str], Path]) -> None:
    gone, _ = tune(bundle, read_manifest(bundle), cache=True)
    shutil.rmtree(bundle)
    other = golden_bundle(4, "int8")
    kept, _ = tune(other, read_manifest(other), cache=True)
    assert kept.home.is_dir() and not gone.home.exists()
    tune(other, read_manifest(other), cache=True)
    assert kept.home.is_dir()


def test_tuning_the_bundle_takes_the_cache_away(bundle: Path) -> None:
    cached, _ = tune(bundle, read_manifest(bundle), cache=True)
    made, is_new = tune(bundle, read_manifest(bundle))
    assert is_new and made.home == bundle
    assert not cached.home.exists()
