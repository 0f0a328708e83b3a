"""Clients that connect and send nothing, or a head byte by byte: the server answers everybody else meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from served import LAUNCH, RAMBLING, Served, ask, serving, wait_until
from tinygptv.runtime.server.connections import CONNECTIONS

QUICKLY = "import tinygptv.runtime.server.connections as c; c.HEAD_SECONDS = 1.0\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server")) as served:
        yield served


@contextmanager
def connected(served: Served, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each of which sent something."""
    url = httpx.URL(served.url)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection((url.host, url.port))) for _ in range(count)]
        for one in sockets:
            one.sendall(sent)
        yield sockets


@pytest.mark.parametrize("sent", [b"", b"GET /hea"])
def test_silence_keeps_nobody_out(sent: bytes, served: Served) -> None:
    """Three times as many as there may be; it was refused for as long as they stayed."""
    with connected(served, 3 * CONNECTIONS, sent):
        for _ in range(3):
            assert httpx.get(f"{served.url}/health", timeout=10).status_code == 200
        assert ask(served.client(), "teal_circle.png", "what shape?", max_tokens=4).choices[0].message.content
    assert "Traceback" not in served.messages.read_text(encoding="utf-8")


def test_who_is_answered_stays(tmp_path: Path) -> None:
    with serving(tmp_path, slowly=0.05) as served:
        stream = ask(served.client(), "teal_circle.png", "[caption]", stream=True, **RAMBLING)
        pieces = iter(stream)
        next(pieces)
        with connected(served, 2 * CONNECTIONS):
            assert served.health()["pending"] == 1
            *_, last = pieces
        assert last.choices[0].finish_reason in ("length", "stop")


def closed(one: socket.socket) -> bool:
    one.settimeout(0.01)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nHost: ", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h"]
)
def test_a_head_has_its_time(sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly its bytes come; on a connection that was used before, too."""
    monkeypatch.setattr("served.LAUNCH", QUICKLY + LAUNCH)
    with serving(tmp_path) as served, connected(served, 1, sent) as (one,):
        if sent.count(b"GET") == 2:
            one.settimeout(5)
            assert one.recv(12) == b"HTTP/1.1 200"
            time.sleep(0.2)
            one.recv(4096)
        started = time.monotonic()
        while not closed(one):
            assert time.monotonic() - started < 15, "it may go on for ever"
            if sent:
                try:
                    one.sendall(b"x")
                except OSError:
                    break
            time.sleep(0.1)
        wait_until(lambda: served.health()["receiving"] == 0)
