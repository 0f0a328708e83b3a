"""Tuned copies that are stale, damaged, half-made or in use by others: noticed, and whole at every moment."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import QUESTION, plain_environment
from file_contents import contents, flip
from tinygptv.runtime import BundleError, TinyGPTV, TinyGPTVError
from tinygptv.runtime.bundle.manifest import DECODER, GRAPHS, read_manifest
from tinygptv.runtime.bundle.sessions import products_saturate, save_packed
from tinygptv.runtime.system.files import locked
from tinygptv.runtime.tuning import find as tuned_module
from tinygptv.runtime.tuning import make as tuning
from tinygptv.runtime.tuning.find import FOLDER, INDEX, is_intact, read_index
from tinygptv.runtime.tuning.make import tune, untune
from tuned_bundles import COMMAND, answer, posix, tuned

pytest_plugins = "tuning_fixtures"
pytestmark = pytest.mark.usefixtures("cache")


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
    # Where products saturate, the file with uint8 weights is too large before onnxruntime's is.
    is_ours = products_saturate() and not cached
    assert (os.strerror(errno.EFBIG) if is_ours else "is the disk full?") in message
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
