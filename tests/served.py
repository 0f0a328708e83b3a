"""A real server in a process of its own, for tests."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from conftest import plain_environment

IMAGES = Path(__file__).parent / "images"
LAUNCH = """
import sys
from tinygptv.runtime import cli
sys.exit(cli.main(sys.argv[1:]))
"""
SLOWLY = """
import time
from tinygptv.runtime.language.decoder import DecoderState
run = DecoderState.run
def slow_run(*arguments, **named):
    time.sleep({seconds})
    return run(*arguments, **named)
DecoderState.run = slow_run
"""
"""Before the command: a decode step takes so much longer."""


RAMBLING: dict[str, Any] = {"temperature": 100, "seed": 1, "max_tokens": 450}
"""Any word is as probable as any other, the end of the text too: one in 640."""


@dataclass(frozen=True)
class Served:
    """Where it is, and its process."""

    url: str
    process: subprocess.Popen[str]
    messages: Path
    """What it says on stderr."""
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, token: str = "none") -> openai.OpenAI:
        """What other programs use; closed when the server has ended."""
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=60))
        return self.clients[-1]

    def health(self) -> dict[str, object]:
        return httpx.get(f"{self.url}/health").json()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@contextmanager
def serving(home: Path, *options: str, slowly: float = 0, **environment: str) -> Iterator[Served]:
    """Serve the demo model at a port that is free.

    Args:
        home: Where it runs.
        options: Of the command.
        slowly: Seconds that each decode step takes, at least: 0.05 is about that of the published sizes.
        environment: Variables.
    """
    messages = home / "messages.txt"
    with messages.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOWLY.format(seconds=slowly) + LAUNCH, "serve", "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=home,
            env=plain_environment(home, **environment),
        )
        try:
            assert process.stderr is not None
            url = None
            while url is None:
                line = process.stderr.readline()
                assert line, f"the server ended with status {process.wait(timeout=20)}: {messages.read_text()}"
                stderr.write(line)
                stderr.flush()
                url = re.search(r"http://\S+", line)
            served = Served(url[0], process, messages)
            yield served
            for client in served.clients:
                client.close()
        finally:
            if process.poll() is None:
                process.kill()
            out, rest = process.communicate(timeout=20)
            stderr.write(rest)
            assert out == ""


def data_uri(path: Path) -> str:
    """A picture as it is sent."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(image: str | None, question: str) -> list[dict[str, object]]:
    """Messages that ask a question about one of the pictures in tests/images."""
    if image is None:
        return [{"role": "user", "content": question}]
    picture = {"type": "image_url", "image_url": {"url": data_uri(IMAGES / image)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def ask(client: openai.OpenAI, image: str | None, question: str, **fields: Any) -> Any:
    """A completion, or a stream of one."""
    return client.chat.completions.create(model="demo", messages=about(image, question), **fields)  # type: ignore[arg-type]


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.02)
