"""The queue of ``tinygptv serve``: order, room, clients that leave, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from served import RAMBLING, Served, about, ask, serving, wait_until


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Room for three requests: one is answered, two wait."""
    with serving(tmp_path_factory.mktemp("slow server"), "--queue", "2", slowly=0.05) as running:
        yield running


def test_first_come_first_served(slow: Served) -> None:
    finished = []

    def one(name: str) -> None:
        ask(slow.client(), None, f"name {name}", **RAMBLING | {"max_tokens": 12})
        finished.append(name)

    with ThreadPoolExecutor(3) as pool:
        for number, name in enumerate("abc", start=1):
            pool.submit(one, name)
            wait_until(lambda wanted=number: len(finished) + slow.health()["pending"] >= wanted)  # type: ignore[misc, operator]
    assert finished == ["a", "b", "c"]


def test_one_too_many(slow: Served) -> None:
    client = slow.client()
    streams = [ask(client, None, "hi", stream=True, **RAMBLING)]
    next(iter(streams[0]))
    assert httpx.get(f"{slow.url}/ready").status_code == 200
    waiting = [threading.Thread(target=lambda: ask(client, None, "hi", max_tokens=1)) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: slow.health()["pending"] == 3)
    assert httpx.get(f"{slow.url}/ready").status_code == 503
    with pytest.raises(openai.InternalServerError, match="3 requests") as caught:
        ask(client, None, "hi")
    assert (caught.value.status_code, caught.value.code) == (503, "busy")
    assert caught.value.response.headers["retry-after"] == "1"
    streams[0].close()
    for thread in waiting:
        thread.join(timeout=20)
    wait_until(lambda: slow.health()["pending"] == 0)


def test_a_client_that_leaves_cancels(slow: Served) -> None:
    """While its answer is streamed, while it is waited for, and in the queue."""
    before = slow.health()["cancelled"]
    stream = ask(slow.client(), "teal_circle.png", "hi", stream=True, **RAMBLING)
    next(iter(stream))

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
            waiting = [
                asyncio.create_task(
                    client.chat.completions.create(model="demo", messages=about(None, "hi"), **RAMBLING)  # type: ignore[arg-type]
                )
                for _ in range(2)
            ]
            await asyncio.to_thread(wait_until, lambda: slow.health()["pending"] == 3)
            waiting[1].cancel()  # in the queue
            await asyncio.to_thread(wait_until, lambda: slow.health()["pending"] == 2)
            stream.close()
            await asyncio.to_thread(wait_until, lambda: slow.health()["pending"] == 1)
            await asyncio.sleep(0.3)
            waiting[0].cancel()  # while it is computed
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(leave())
    started = time.monotonic()
    assert ask(slow.client(), "teal_circle.png", "[caption]").choices[0].message.content == "a teal circle"
    assert time.monotonic() - started < 10  # each of the others would have taken 23 seconds
    assert slow.health() == {**slow.health(), "pending": 0, "receiving": 0, "cancelled": before + 3}  # type: ignore[operator]


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not sent signals there")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_clean_stop(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """In the middle of an answer, with another waiting, and a connection that is kept open."""
    with serving(tmp_path, slowly=0.05) as running:
        streamed = ask(running.client(), None, "hi", stream=True, **RAMBLING)
        events = iter(streamed)
        next(events)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, running.client(), None, "hi")
            wait_until(lambda: running.health()["pending"] == 2)
            started = time.monotonic()
            assert running.stop(number) == status
            assert time.monotonic() - started < 10
            with pytest.raises(openai.APIError, match="being stopped"):
                list(events)
            streamed.close()
            with pytest.raises(openai.InternalServerError, match="being stopped"):
                waiting.result()
    assert "Traceback" not in running.messages.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not sent signals there")
def test_a_stop_while_a_request_is_half_sent(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        host, port = running.url.removeprefix("http://").split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"messages": '.encode())
            wait_until(lambda: running.health()["receiving"] == 1)
            started = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - started < 4.5  # a connection is cut off after 5
            with client.makefile("rb") as response:
                answer = response.read().decode()
    assert answer.startswith("HTTP/1.1 503 ")
    assert "being stopped" in answer
    assert running.messages.read_text().count("\n") == 2  # the demo is used, and where
