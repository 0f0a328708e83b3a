"""Bundles tuned to a machine: the same answers, damage and staleness noticed, and whole at every moment in between."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import QUESTION, export_arguments, plain_environment, published_files
from tinygptv.export import graph_ops
from tinygptv.export.cli import main as export_main
from tinygptv.runtime import BundleError, TinyGPTV, TinyGPTVError
from tinygptv.runtime.bundle.checksums import sums_of
from tinygptv.runtime.bundle.manifest import DECODER, GRAPHS, Manifest, read_manifest
from tinygptv.runtime.bundle.sessions import save_packed
from tinygptv.runtime.system import machine
from tinygptv.runtime.system.files import locked
from tinygptv.runtime.tuning import find as tuned_module
from tinygptv.runtime.tuning import make as tuning
from tinygptv.runtime.tuning.find import FOLDER, INDEX, Tuned, cache_home, find_tuned, is_intact, read_index
from tinygptv.runtime.tuning.make import tune, untune
from tinygptv.runtime.tuning.packed_weights import packed_weights

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses signals, limits and users as POSIX has them")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, on every system's terms."""
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


@pytest.fixture(scope="module")
def embeds(golden_bundle: Callable[[int, str], Path], photo: Path) -> Iterator[np.ndarray]:
    with TinyGPTV.load(golden_bundle(3, "int8")) as model:
        yield model.embed_prompt(model.encode_image(photo), QUESTION)


@pytest.fixture(scope="module")
def told(golden_bundle: Callable[[int, str], Path], photo: Path) -> str:
    """What the untuned bundle answers."""
    with TinyGPTV.load(golden_bundle(3, "int8")) as model:
        return model.ask(photo, QUESTION, max_new_tokens=12).text


def answer(folder: Path, photo: Path, **options: object) -> str:
    with TinyGPTV.load(folder, **options) as model:
        return model.ask(photo, QUESTION, max_new_tokens=12).text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tuned(folder: Path) -> Tuned | None:
    return find_tuned(folder, read_manifest(folder))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


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
    assert caught[0].filename == __file__
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


# Staleness and damage


@pytest.mark.parametrize("what", ["onnxruntime", "CPU", "bundle"])
def test_a_copy_that_does_not_fit_is_rebuilt(
    bundle: Path, photo: Path, told: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    manifest = read_manifest(bundle)
    with monkeypatch.context() as elsewhere:
        if what == "onnxruntime":
            elsewhere.setattr(tuned_module, "packing_version", lambda: "1.0.0")
        elif what == "CPU":
            here = tuned_module.processor()
            elsewhere.setattr(tuned_module, "processor", lambda: replace(here, features=("avx2",)))
        tune(bundle, manifest)
    if what == "bundle":
        with (bundle / "manifest.json").open("a", encoding="utf-8") as file:
            file.write("\n")
    reason = read_index(bundle, bundle, manifest)
    assert isinstance(reason, str) and reason.startswith(f"made for another {what}: ")
    assert tuned(bundle) is None
    assert answer(bundle, photo) == told
    assert tune(bundle, manifest)[1]
    assert tuned(bundle) is not None
    assert not (bundle / FOLDER / "staging").exists()
    assert answer(bundle, photo) == told


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"version": 2}', '{"version": 99}', '{"version": 2, "key": 3}', '"key": {"more": 3, "'],
)
def test_an_index_of_another_form(bundle: Path, photo: Path, told: str, text: str) -> None:
    manifest = read_manifest(bundle)
    tune(bundle, manifest)
    index = bundle / FOLDER / INDEX
    if text.endswith('"'):  # all else as it was
        text = index.read_text(encoding="utf-8").replace('"key": {"', text)
    index.write_text(text, encoding="utf-8")
    assert tuned(bundle) is None
    assert answer(bundle, photo) == told
    assert tune(bundle, manifest)[1]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("part", ["own weights", "packed weights", "graph"])
def test_damage_is_noticed(bundle: Path, photo: Path, told: str, name: str, part: str) -> None:
    manifest = read_manifest(bundle)
    made, _ = tune(bundle, manifest)
    graph = manifest.graphs[name]
    data = bundle / graph.data
    own = next(record.size for record in manifest.files if record.name == graph.data)
    place = {"own weights": (data, own // 2), "packed weights": (data, own + 9000), "graph": (made.model(graph), 99)}
    flip(*place[part])
    for memory in ("default", "low"):
        with pytest.raises(BundleError, match=r"is damaged"):
            answer(bundle, photo, memory=memory)
    assert not is_intact(made, manifest)
    if part == "own weights":
        with pytest.raises(BundleError, match=f"{graph.data} is damaged .*copy it again"):
            tune(bundle, manifest)
    else:
        assert tune(bundle, manifest)[1]
        assert answer(bundle, photo) == told


def test_a_damaged_bundle_is_not_tuned(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    flip(bundle / "decoder.onnx.data", 1000)
    before = contents(bundle)
    with pytest.raises(BundleError, match=r"decoder.onnx.data is damaged"):
        tune(bundle, manifest)
    assert contents(bundle) == before


@pytest.mark.parametrize("extra", [b"x", bytes(5000)])
def test_only_tuning_may_append(bundle: Path, extra: bytes) -> None:
    with (bundle / "decoder.onnx.data").open("ab") as file:
        file.write(extra)
    with pytest.raises(BundleError, match=r"decoder.onnx.data has [\d,]+ bytes; the manifest says"):
        read_manifest(bundle)


# Interruption, competition, and no room

DYING = """
import os, signal, sys
from pathlib import Path
from tinygptv.runtime.tuning import make as tuning
from tinygptv.runtime.bundle.manifest import read_manifest
folder, step, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def dying(function):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
setattr(tuning, step, dying(getattr(tuning, step)))
tuning.tune(folder, read_manifest(folder))
"""


@posix
@pytest.mark.parametrize("already", [False, True], ids=["fresh", "stale"])
@pytest.mark.parametrize(
    ("step", "count"), [("save_packed", 1), ("_copy", 3), *(("publish_file", n) for n in range(7)), ("_append", 5)]
)
def test_being_killed_leaves_a_bundle_that_loads(
    bundle: Path, photo: Path, told: str, monkeypatch: pytest.MonkeyPatch, already: bool, step: str, count: int
) -> None:
    manifest, before = read_manifest(bundle), contents(bundle)
    if already:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(tuned_module, "packing_version", lambda: "1.0.0")
            tune(bundle, manifest)
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(bundle), step, str(count)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert read_manifest(bundle) == manifest
    assert tuned(bundle) is None
    assert answer(bundle, photo) == told
    after = contents(bundle)
    assert all(after[name].startswith(data) for name, data in before.items())
    untouched = Path(shutil.copytree(bundle, bundle.parent / "copy"))
    assert tune(bundle, manifest)[1]
    assert answer(bundle, photo) == told
    assert tuned(bundle) is not None
    assert not (bundle / FOLDER / "staging").exists()
    untune(untouched, manifest)
    assert contents(untouched) == before


@posix
@pytest.mark.parametrize("cached", [False, True])
def test_a_disk_that_fills_up(bundle: Path, photo: Path, told: str, tmp_path: Path, cached: bool) -> None:
    """A limit on the size of files stands for the disk."""
    import resource

    sizes = sorted(path.stat().st_size for path in bundle.glob("*.data"))
    limit = int(sizes[-1] * 1.6)
    before = contents(bundle)
    done = subprocess.run(
        [*COMMAND, "tune", str(bundle), *(["--cache"] if cached else [])],
        capture_output=True,
        env=plain_environment(tmp_path / "home"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        timeout=60,
        check=False,
    )
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (1, b""), message
    assert message.startswith("tinygptv: ") and message.count("\n") == 1
    assert "is the disk full?" in message
    assert contents(bundle) == before
    assert not (bundle / FOLDER).exists()
    assert list((tmp_path / "home").rglob("tinygptv")) == []
    assert answer(bundle, photo) == told


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_at_the_last_graph_gives_all_room_back(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, error: BaseException
) -> None:
    before, calls, save = contents(bundle), [], tuning.save_packed

    def failing(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == len(GRAPHS):
            raise error
        save(*arguments)

    monkeypatch.setattr(tuning, "save_packed", failing)
    expected = TinyGPTVError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        tune(bundle, read_manifest(bundle), cache=cached)
    assert contents(bundle) == before
    assert not (bundle / FOLDER).exists()
    assert list(cache.rglob("tinygptv")) == []


@posix
@pytest.mark.parametrize("number", [errno.ENOENT, errno.ELOOP])
def test_onnxruntime_s_system_errors(number: int, bundle: Path, tmp_path: Path) -> None:
    """Raised by a class that depends on the number, with the number alone."""
    graph = read_manifest(bundle).graphs[DECODER]
    if number == errno.ELOOP:
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / graph.file).symlink_to(graph.file)
    with pytest.raises(TinyGPTVError, match=os.strerror(number)) as caught:
        save_packed(bundle, graph, tmp_path / "saved")
    assert str(bundle / graph.file) in str(caught.value)


@pytest.mark.parametrize("loading", [False, True])
def test_what_a_kill_at_the_end_left_goes_with_the_next_run(bundle: Path, photo: Path, loading: bool) -> None:
    """The tuned copy was complete."""
    manifest = read_manifest(bundle)
    tune(bundle, manifest)
    before = contents(bundle)
    (bundle / FOLDER / tuning.STAGING).mkdir()
    for name in (tuning.LOCK, f"{tuning.STAGING}/{INDEX}"):
        (bundle / FOLDER / name).touch()
    if loading:
        answer(bundle, photo, tune=True)
    else:
        assert not tune(bundle, manifest)[1]
    assert contents(bundle) == before
    assert not (bundle / FOLDER / tuning.STAGING).exists()


@posix
def test_another_process_is_not_waited_for_if_all_is_tuned(bundle: Path, photo: Path) -> None:
    tune(bundle, read_manifest(bundle))
    lock = bundle / FOLDER / tuning.LOCK
    with locked(lock):
        answer(bundle, photo, tune=True)
        assert lock.exists()


def test_the_index_goes_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from the cache."""
    manifest = read_manifest(bundle)
    made, _ = tune(bundle, manifest, cache=True)

    def failing(folder: Path, **named: object) -> None:
        assert folder == made.home and not (folder / FOLDER / INDEX).exists()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as now:
        now.setattr(tuning.shutil, "rmtree", failing)
        with pytest.raises(TinyGPTVError, match=os.strerror(errno.EIO)):
            untune(bundle, manifest)
    assert untune(bundle, manifest) == [made.home]
    assert not made.home.exists()


def test_a_small_graph_without_packed_weights(
    bundle: Path, photo: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an onnxruntime may have it that packs other kinds of weights than this one."""
    read = tuning.packed_weights
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(tuning, "packed_weights", lambda model: {} if b"pixel_values" in model else read(model))
        tune(bundle, read_manifest(bundle))
    assert tuned(bundle) is not None
    assert answer(bundle, photo) == told


def test_loading_while_it_is_tuned_and_untuned(bundle: Path, photo: Path, told: str) -> None:
    """A copy that comes or goes meanwhile is no damage."""
    manifest, done = read_manifest(bundle), threading.Event()

    def change() -> None:
        while not done.is_set():
            tune(bundle, manifest)
            untune(bundle, manifest)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(40):
            with TinyGPTV.load(bundle, threads=1) as model:
                assert model.ask(photo, QUESTION, max_new_tokens=12).text == told
    finally:
        done.set()
        changing.join()


@posix
def test_two_processes_at_once(bundle: Path, tmp_path: Path) -> None:
    """One makes it; the other waits, and takes what was made."""
    both = [
        subprocess.Popen(
            [*COMMAND, "tune", str(bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=plain_environment(tmp_path / "home"),
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [err for _, err in outputs] == [b"", b""]
    assert not (bundle / FOLDER / tuning.LOCK).exists()
    said = sorted("was tuned already" in out.decode() for out, _ in outputs)
    assert said == [False, True]
    found = tuned(bundle)
    assert found is not None and is_intact(found, read_manifest(bundle))


def obey_permissions() -> None:
    """Root may write everywhere, by a capability that it can give up (prctl(2), capabilities(7))."""
    drop_from_bounding_set, dac_override = 24, 1
    assert ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


@pytest.mark.skipif(
    sys.platform == "win32" or (sys.platform != "linux" and os.geteuid() == 0), reason="permissions as Linux has them"
)
def test_a_bundle_that_cannot_be_written(bundle: Path, photo: Path, told: str, tmp_path: Path, cache: Path) -> None:
    """The command says what to do; on first load the cache folder is taken."""
    bundle.chmod(0o555)
    environment = plain_environment(cache, XDG_CACHE_HOME=str(cache))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
            preexec_fn=obey_permissions if os.geteuid() == 0 else None,
        )

    before = contents(bundle)
    refused = run("tune", str(bundle))
    assert refused.returncode == 1
    assert "cannot be tuned" in refused.stderr and "--cache" in refused.stderr
    assert refused.stderr.count("\n") == 1
    asked = run("ask", str(photo), QUESTION, "--bundle", str(bundle), "--max-new-tokens", "12", "--tune")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, told + "\n", "")
    assert contents(bundle) == before
    assert list(cache.rglob(INDEX)) != []
    again = run("tune", str(bundle), "--cache")
    assert again.returncode == 0 and "was tuned already" in again.stdout
    undone = run("tune", str(bundle), "--undo")
    assert undone.returncode == 0, undone.stderr
    assert list(cache.rglob(INDEX)) == []
    bundle.chmod(0o755)


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
