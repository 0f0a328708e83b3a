"""Nothing leaves this machine and nothing is left behind on it: no connection, no file.

onnxruntime's wheels carry a telemetry client that is on by default from 1.29 on: creating a session makes a database of
events under the user's cache folder, for upload. Each check here runs in a process of its own with an empty home.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import QUESTION, plain_environment
from tinygptv.runtime.bundle.sessions import TELEMETRY_OFF

REPORT = """
import json, os, sys
def report(**more):
    descriptors = "/proc/self/fd"
    links = [os.path.join(descriptors, fd) for fd in os.listdir(descriptors)] if os.path.isdir(descriptors) else []
    opened = [os.readlink(link) for link in links if os.path.islink(link)]
    print(json.dumps({"opened": opened, **more}), flush=True)
    os._exit(0)  # with telemetry on, a regular exit would try to send what was gathered
"""
ASK = """
events = []
sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith(("socket.", "urllib.")) else None)
from tinygptv.runtime import TinyGPTV
with TinyGPTV.load(sys.argv[1]) as model:
    text = model.ask(sys.argv[2], sys.argv[3], max_new_tokens=12).text
    report(text=text, events=events)
"""
PLAIN = """
import onnxruntime
session = onnxruntime.InferenceSession(os.path.join(sys.argv[1], "projector.onnx"))
report()
"""
HOST_FIRST = """
import warnings
import onnxruntime
from tinygptv.runtime import TinyGPTV
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    TinyGPTV.load(sys.argv[1])  # this line
report(caught=[[w.category.__name__, str(w.message), w.filename, w.lineno] for w in caught])
"""
HOST_LATER = """
import warnings
from tinygptv.runtime import TinyGPTV
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    TinyGPTV.load(sys.argv[1])
    import onnxruntime
    onnxruntime.InferenceSession(os.path.join(sys.argv[1], "projector.onnx"))
    TinyGPTV.load(sys.argv[1])
report(caught=[str(w.message) for w in caught])
"""


class Sandbox:
    """An empty home and working folder, and what a process left in them."""

    def __init__(self, folder: Path) -> None:
        self.home, self.cwd, self.temporary = folder / "home", folder / "cwd", folder / "tmp"
        for path in (self.home, self.cwd, self.temporary):
            path.mkdir()
        self.script = folder / "host.py"

    def run(self, script: str, *arguments: str, **variables: str) -> dict[str, list[str]]:
        """What the script reports of itself."""
        self.script.write_text(REPORT + script, encoding="utf-8")
        # Should telemetry be on (PLAIN and HOST_FIRST), nothing answers where it would have to pass.
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        cache = {"XDG_CACHE_HOME": str(self.home / ".cache"), "TMPDIR": str(self.temporary)}
        done = subprocess.run(
            [sys.executable, str(self.script), *arguments],
            capture_output=True,
            cwd=self.cwd,
            env=plain_environment(self.home, **nowhere, **cache, **variables),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        report: dict[str, list[str]] = json.loads(done.stdout)
        return report

    def left_behind(self) -> list[str]:
        """Everything that is now in the folders that were empty."""
        return [str(path) for folder in (self.home, self.cwd, self.temporary) for path in folder.rglob("*")]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path]) -> Path:
    return golden_bundle(3, "fp32")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def sockets(report: dict[str, list[str]]) -> list[str]:
    return [name for name in report["opened"] if name.startswith(("socket:", "anon_inode:[io_uring"))]


def databases(report: dict[str, list[str]]) -> list[str]:
    return [name for name in report["opened"] if "onnxruntime.db" in name]


def test_an_answer_leaves_no_file_and_opens_no_connection(sandbox: Sandbox, bundle: Path, photo: Path) -> None:
    before = listing(bundle)
    report = sandbox.run(ASK, str(bundle), str(photo), QUESTION)
    assert report["text"]
    assert sandbox.left_behind() == []
    assert listing(bundle) == before
    assert report["events"] == []
    assert sockets(report) == [] == databases(report)


def test_an_outer_wish_for_telemetry_is_not_heard(sandbox: Sandbox, bundle: Path, photo: Path) -> None:
    report = sandbox.run(ASK, str(bundle), str(photo), QUESTION, ORT_DISABLE_TELEMETRY="0")
    assert sandbox.left_behind() == []
    assert databases(report) == []


def test_these_checks_can_fail(sandbox: Sandbox, bundle: Path) -> None:
    """onnxruntime by itself does leave files, so the tests above would see them."""
    report = sandbox.run(PLAIN, str(bundle))
    if not sandbox.left_behind():
        pytest.skip(f"onnxruntime {version('onnxruntime')} leaves no file by itself on this system")
    assert any("onnxruntime.db" in path for path in sandbox.left_behind())
    if sys.platform == "linux":
        assert databases(report)


def test_connections_would_be_seen(sandbox: Sandbox) -> None:
    report = sandbox.run(
        ASK.split("from tinygptv")[0] + "import socket\nlistening = socket.create_server(('127.0.0.1', 0))\n"
        "report(events=events)\n"
    )
    assert "socket.bind" in report["events"]
    if sys.platform == "linux":
        assert sockets(report)


@pytest.mark.parametrize("variables", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_a_host_with_telemetry_on_is_told(sandbox: Sandbox, bundle: Path, variables: dict[str, str]) -> None:
    caught = sandbox.run(HOST_FIRST, str(bundle), **variables)["caught"]
    assert caught
    category, message, filename, line = caught[0]
    assert category == "RuntimeWarning"
    assert "set ORT_DISABLE_TELEMETRY=1 before importing it" in message
    # It points at the host's own line, not at ours.
    assert filename == str(sandbox.script)
    assert sandbox.script.read_text(encoding="utf-8").splitlines()[int(line) - 1].endswith("# this line")


@pytest.mark.parametrize("value", [*TELEMETRY_OFF, "TRUE", " 1"])
def test_a_host_with_telemetry_off_is_left_alone(sandbox: Sandbox, bundle: Path, value: str) -> None:
    """And every value that counts as off here is one that onnxruntime obeys."""
    report = sandbox.run(HOST_FIRST, str(bundle), ORT_DISABLE_TELEMETRY=value)
    assert report["caught"] == []
    assert sandbox.left_behind() == [] == databases(report)


def test_a_host_that_imports_onnxruntime_later_is_private_too(sandbox: Sandbox, bundle: Path) -> None:
    report = sandbox.run(HOST_LATER, str(bundle))
    assert report["caught"] == []
    assert sandbox.left_behind() == [] == databases(report)
