"""Ray's clusters on this machine: nodes are processes, which can be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import plain_environment
from served import wait_until

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "7" * 64,
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""Of all its processes: nothing is sent, and no token is written to anybody's home."""
os.environ.update(ENVIRONMENT)  # Ray reads it when it is imported
LAUNCH = "import sys; from tinygptv.runtime import cli; sys.exit(cli.main(sys.argv[1:]))"


@dataclass
class LocalCluster:
    """A head without cores of its own, and nodes."""

    home: Path
    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self, cpus: int = 2) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=cpus, object_store_memory=100_000_000))

    def kill_node(self, place: int) -> None:
        self.cluster.remove_node(self.nodes.pop(place), allow_graceful=False)

    def caption(self, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """The command, on this cluster, until it ends."""
        more = {"env": self.environment()} | more
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=180, **more)

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-c", LAUNCH, "caption", *map(str, arguments), "--ray", self.address]

    def actors(self, title: str = "ray::MapWorker(MapBatches(BatchCaptioner))") -> list[psutil.Process]:
        """Of the model's processes, on every node of this cluster and of no other on this machine.

        Ray's agents are not among them, whatever the title: a node dies with its agents, and so does the head.
        """
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                name = (process.cmdline() or [""])[0]
                if name.startswith(title) and not name.endswith("Agent"):
                    found.append(process)
        return found

    def environment(self) -> dict[str, str]:
        return plain_environment(self.home, XDG_CACHE_HOME=str(self.home / "cache"), TQDM_DISABLE="1")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "built-in demo" not in line]
    return line


@contextmanager
def s3_server(home: Path) -> Iterator[None]:
    """A server of S3's protocol, which all programs that are started meanwhile take for Amazon's."""
    pytest.importorskip("moto.server", reason="needs moto")
    script = "import sys; from moto.server import main; main(sys.argv[1:])"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch, (home / "s3.txt").open("w") as log:
        for name, value in values.items():
            patch.setenv(name, value)
        process = subprocess.Popen([sys.executable, "-c", script, "-p", str(port)], stdout=log, stderr=log)
        try:
            wait_until(lambda: _answers(port))
            yield
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def cluster(home: Path, *cpus: int) -> Iterator[LocalCluster]:
    """Nodes with so many cores each, whatever this machine has."""
    pytest.importorskip("ray.data", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    try:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000}
        running = LocalCluster(home, Cluster(initialize_head=True, head_node_args=head))
        try:
            for count in cpus:
                running.add_node(count)
            yield running
        finally:
            running.cluster.shutdown()
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
