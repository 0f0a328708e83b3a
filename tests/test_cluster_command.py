"""What ``caption --ray`` needs no cluster for: options, the cores of its actors, Ray's statistics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from clusters import LAUNCH, complaint
from conftest import plain_environment
from tinygptv.runtime.cli import main
from tinygptv.runtime.cluster import node
from tinygptv.runtime.cluster.node import Cores
from tinygptv.runtime.commands import caption_ray


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--actors", "2"], "--actors is about --ray"),
        (["--column", "image"], "--column is about --ray"),
        (["--ship"], "--ship is about --ray"),
        (["--retry-failed"], "--retry-failed is about --ray"),
        (["--sidecar", "--ray"], "it does not go with --ray"),
        (["--ray", "photos"], "--ray is 'photos'; expected HOST:PORT, or nothing: then put it last"),
        (["-o", "-", "--ray"], "with --ray, OUTPUT is a folder of Parquet files"),
        (["-o", "here", "here/part-1.parquet", "--ray"], "here/part-1.parquet is where captions go"),
        (["-o", "s3://a/b", "s3://a/b/", "--ray"], "s3://a/b/ is where captions go"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["caption", "-o", str(tmp_path / "out"), str(tmp_path), *options])
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.7:6379", "ray://head:10001", "[::1]:6379"])
def test_addresses(address: str) -> None:
    assert caption_ray.ADDRESS.fullmatch(address)


def test_no_cluster_there(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    images = Path(__file__).parent / "images"
    command = [sys.executable, "-c", LAUNCH, "caption", images, "-o", tmp_path / "out", "--ray", "127.0.0.1:9"]
    environment = plain_environment(tmp_path)
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
    line = complaint(done)
    assert line.startswith("tinygptv: no Ray cluster at 127.0.0.1:9: ")
    assert line.endswith("start one with: ray start --head")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the calls")
def test_actors_compute_on_cores_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[set[int]] = []
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7, 8, 9})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: used.append(cores))
    first, second, third = Cores(2), Cores(2), Cores(2)
    for cores in (first, second, third):
        cores.use()
    assert used == [{3, 5}, {7, 8}], "the third has none of its own"
    del first
    Cores(2).use()
    assert used[2:] == [{3, 5}]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(None, False), ('{"usage_stats": false}', False), ('{"usage_stats": true}', True), ("{", False), ("[]", False)],
)
def test_statistics_are_off_unless_the_user_turned_them_on(
    text: str | None, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("RAY_USAGE_STATS_CONFIG_PATH", str(path))
    assert caption_ray._wants_statistics() == wanted


def test_what_ray_is_told(tmp_path: Path) -> None:
    """Before it is imported, as it reads its environment then."""
    pytest.importorskip("ray", reason="needs the extra ray")
    script = """
import json, os, sys
from tinygptv.runtime.commands import caption_ray
assert "ray" not in sys.modules
with caption_ray._cluster(""):
    import ray
    names = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE")
    @ray.remote(num_cpus=0)
    def seen():
        return {name: os.environ.get(name) for name in names}
    print(json.dumps([ray.get(seen.remote()), len(os.environ["RAY_AUTH_TOKEN"])]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=plain_environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == [{"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}, 64]
    assert not (tmp_path / ".ray").exists()


def test_an_interrupt_that_a_library_swallows() -> None:
    """It is noticed at the next batch; a program that ignores Ctrl-C goes on ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caption_ray._interrupts() as check:
            check()
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with caption_ray._interrupts() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
