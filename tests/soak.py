"""Keeps a server busy for long, and looks for what grows or goes wrong: `python -m tests.soak --minutes 60`.

Several clients ask the demo model about changing pictures, end streams in the middle, send what is no request, connect
and stay silent, and ask whether the server is well. Each answer is compared with the one that the library gave by
itself before. Memory, descriptors and threads of the server are read every few seconds.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw
from tinygptv.runtime import TinyGPTV
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from served import Served, serving

CLIENTS = 4
QUESTIONS = (
    *("what shape is in the image?", "what color is the shape?", "is there a circle?", "[caption]"),
    *("[detection] triangle", "does the image not contain a red shape?"),
)
COLOURS = ("red", "teal", "blue", "black", "gray", "green", "yellow", "brown")
WARM_UP, END = 0.1, 0.9
"""Shares of the time: what is there after the first is compared with what is there after the second."""
MEMORY_GROWTH = 1.05
"""The most that is still called flat: an allocator keeps pieces, and gives some back."""


def picture(draw: random.Random) -> bytes:
    """A shape somewhere, as a file of some format."""
    image = Image.new("RGB", (64, 64), tuple(draw.randint(200, 255) for _ in range(3)))
    x, y, side = draw.randint(2, 30), draw.randint(2, 30), draw.randint(16, 32)
    shape, colour = ImageDraw.Draw(image), draw.choice(COLOURS)
    match draw.choice(("circle", "rectangle", "triangle")):
        case "circle":
            shape.ellipse((x, y, x + side, y + side), colour)
        case "rectangle":
            shape.rectangle((x, y, x + side, y + side), colour)
        case _:
            shape.polygon(((x, y + side), (x + side, y + side), (x + side // 2, y)), colour)
    file = io.BytesIO()
    image.save(file, draw.choice(("PNG", "JPEG", "WEBP", "BMP", "GIF")))
    return file.getvalue()


def body(image: bytes, question: str, **fields: object) -> dict[str, object]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 40} | fields


class Client:
    """One of those who ask; counts what became of what it did."""

    def __init__(self, served: Served, known: Sequence[tuple[bytes, str, str]], seed: int) -> None:
        """``known`` are pictures, questions and right answers."""
        self._http = httpx.Client(base_url=served.url, timeout=60)
        self._known, self._draw = known, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        ways: list[tuple[int, Callable[[], None]]] = [
            (12, self._ask),
            (3, self._cancel),
            (4, self._send_nonsense),
            (1, self._stay_silent),
            (2, self._look),
        ]
        weights = [weight for weight, _ in ways]
        with self._http:
            while time.monotonic() < until:
                _, way = self._draw.choices(ways, weights)[0]
                try:
                    way()
                except Exception as error:
                    self.wrong.append(f"{way.__name__}: {type(error).__name__}: {error}")
                self.done[way.__name__.strip("_")] += 1

    def _ask(self) -> None:
        image, question, right = self._draw.choice(self._known)
        answered = self._http.post("/v1/chat/completions", json=body(image, question))
        text = answered.json()["choices"][0]["message"]["content"]
        if text != right:
            self.wrong.append(f"{question!r} was answered {text!r}; expected {right!r}")

    def _cancel(self) -> None:
        image, question, _ = self._draw.choice(self._known)
        long = body(image, question, stream=True, temperature=100, max_tokens=400)
        with self._http.stream("POST", "/v1/chat/completions", json=long) as stream:
            for _ in zip(stream.iter_lines(), range(self._draw.randint(1, 6)), strict=False):
                pass

    def _send_nonsense(self) -> None:
        image, question, _ = self._draw.choice(self._known)
        content: Any = self._draw.choice(
            (
                b"{",
                b"\xff" * 1000,
                json.dumps([[[]]] * 100).encode(),
                json.dumps({"messages": []}).encode(),
                json.dumps(body(image[: len(image) // 3], question)).encode(),
                json.dumps(body(b"no picture", question)).encode(),
                json.dumps(body(image, "why? " * 20_000)).encode(),
                json.dumps(body(image, question, max_tokens=-1)).encode(),
            )
        )
        status = self._http.post("/v1/chat/completions", content=content).status_code
        if not 400 <= status < 500:
            self.wrong.append(f"nonsense was answered with status {status}: {content[:60]!r}")

    def _stay_silent(self) -> None:
        url = self._http.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=10) as one:
            one.sendall(b"POST /v1/chat/completions HT")
            time.sleep(0.1)

    def _look(self) -> None:
        if self._http.get("/health").status_code != 200:
            self.wrong.append("the server says that it is not well")


def state(process: int) -> dict[str, int]:
    """What a process holds."""
    place = Path("/proc") / str(process)
    rollup = (place / "smaps_rollup").read_text()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return {
        "resident_bytes": kilobytes["Rss"] * 1024,
        "anonymous_bytes": kilobytes["Anonymous"] * 1024,
        "descriptors": len(os.listdir(place / "fd")),
        "threads": len(os.listdir(place / "task")),
    }


def soak(minutes: float, pictures: int, seed: int) -> dict[str, Any]:
    """What was done, what was wrong, and samples of what the server held."""
    draw = random.Random(seed)
    with TinyGPTV.load() as model:
        asked = [(picture(draw), question) for _ in range(pictures) for question in draw.sample(QUESTIONS, 2)]
        known = [(image, question, model.ask(image, question, max_new_tokens=40).text) for image, question in asked]
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as served:
        clients = [Client(served, known, seed + number) for number in range(CLIENTS)]
        started = time.monotonic()
        until = started + 60 * minutes
        with ThreadPoolExecutor(CLIENTS) as pool, tqdm(total=round(60 * minutes), unit="s") as bar:
            running = [pool.submit(client.run, until) for client in clients]
            while time.monotonic() < until:
                threading.Event().wait(min(5, minutes * 60 / 40))
                samples.append({"seconds": time.monotonic() - started, **state(served.process.pid)})
                bar.update(min(bar.total, round(samples[-1]["seconds"])) - bar.n)
            for one in running:
                one.result()
        time.sleep(1)
        at_rest = state(served.process.pid)
        status = served.stop()
        said = served.messages.read_text(encoding="utf-8")
    wrong = [text for client in clients for text in client.wrong]
    if status != 0 or "Traceback" in said:
        wrong.append(f"the server ended with status {status}: {said[-2000:]}")
    return {
        "minutes": minutes,
        "clients": CLIENTS,
        "pictures": pictures,
        "seed": seed,
        "done": dict(sum((client.done for client in clients), Counter())),
        "wrong": wrong,
        "flat": flat(samples, 60 * minutes),
        "at_rest": at_rest,
        "samples": samples,
    }


def flat(samples: Sequence[dict[str, float]], seconds: float) -> dict[str, dict[str, float | bool]]:
    """The medians of each figure after the warm-up and at the end, and whether the one is no more than the other."""
    found: dict[str, dict[str, float | bool]] = {}
    for name in ("resident_bytes", "anonymous_bytes", "descriptors", "threads"):
        first = [s[name] for s in samples if WARM_UP <= s["seconds"] / seconds < 2 * WARM_UP]
        last = [s[name] for s in samples if s["seconds"] / seconds >= END]
        before, after = statistics.median(first), statistics.median(last)
        most = MEMORY_GROWTH * before if name.endswith("bytes") else before + CLIENTS
        found[name] = {"after_warm_up": before, "at_the_end": after, "flat": after <= most}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where an answer was wrong or something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="(default: 60)")
    parser.add_argument("--pictures", type=int, default=300, metavar="N", help="different ones (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was found")
    options = parser.parse_args(argv)
    found = {"date": str(datetime.now(UTC).date()), **soak(options.minutes, options.pictures, options.seed)}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{count} {way}" for way, count in found["done"].items()))
    for name, figures in found["flat"].items():
        print(f"{name}: {figures['after_warm_up']:,.0f} after the warm-up, {figures['at_the_end']:,.0f} at the end")
    for text in found["wrong"][:20]:
        print(text, file=sys.stderr)
    return 1 if found["wrong"] or not all(figures["flat"] for figures in found["flat"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
