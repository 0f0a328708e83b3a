"""Commands in fresh processes, and what they took."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

QUESTION, SECOND_QUESTION = "what is this person wearing?", "what is behind this person?"
PHOTO = "scikit-image's astronaut, 512x512"
STAGES = Path(__file__).resolve().parent / "stages.py"
Samples = dict[str, float]


def save_photo(folder: Path) -> Path:
    """What every question is about."""
    path = folder / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, typed: str = ""
) -> tuple[str, float, int]:
    """Run a command to its end, in a folder that has no modules: (its stdout, seconds, peak resident bytes)."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8") as words,
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
    ):
        words.write(typed)
        words.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=words, stdout=output, cwd=folder, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        output.seek(0)
        return output.read(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def first_token(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Seconds from a command's start to its first byte on stdout; it is then awaited to its end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=folder, env=environment
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            seconds = time.perf_counter() - started
            process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


def drop_page_cache() -> None:
    """Have the system forget what it has read of any file: Linux, as root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def ask(
    bundle: Path,
    photo: Path,
    threads: int,
    tokens: int,
    *more: str,
    environment: Mapping[str, str] | None = None,
    cold: bool = False,
) -> Samples:
    """One question, asked in new processes one after the other; every figure of them, flat.

    The stages are those of stages.py; the others are of `tinygptv ask`: until its first token, warm and on request
    cold, and as a whole.
    """
    asked = [str(photo), QUESTION, "--bundle", str(bundle.absolute()), "--threads", str(threads), *more]
    command = [sys.executable, "-m", "tinygptv.runtime.cli", "ask", *asked]
    some, one = (["--max-new-tokens", str(count)] for count in (tokens, 1))
    found: Samples = {}
    if cold:
        drop_page_cache()
        found["first_token_cold"] = first_token([*command, *one], environment)
    stages, _, _ = run([sys.executable, str(STAGES), *asked, *some], environment)
    found |= json.loads(stages)
    found["first_token"] = first_token([*command, *one], environment)
    output, seconds, peak = run([*command, *some, "--json"], environment)
    answer = json.loads(output)
    return found | {
        "process": seconds,
        "prompt_tokens": answer["prompt_tokens"],
        "new_tokens": len(answer["token_ids"]),
        "anonymous_bytes": answer["anonymous_bytes"],
        "file_backed_bytes": peak - answer["anonymous_bytes"],
        "peak_rss_bytes": peak,
    }


def ask_again(bundle: Path, photo: Path, threads: int) -> Samples:
    """A second question about a photo, begun anew: what `tinygptv chat` in a new process says of it."""
    command = [sys.executable, "-m", "tinygptv.runtime.cli", "chat", str(photo), "--bundle", str(bundle.absolute())]
    options = ["--json", "--threads", str(threads), "--max-new-tokens", "8"]
    output, _, _ = run([*command, *options], typed=f"{QUESTION}\n/reset\n{SECOND_QUESTION}\n")
    answer = json.loads(output.splitlines()[1])
    figures = ("time_to_first_token", "prefill")
    return {
        **{name: answer["timings"][name] for name in figures},
        "prompt_tokens": answer["prompt_tokens"],
        "cached_tokens": answer["cached_tokens"],
    }


def summarise(samples: Sequence[Samples]) -> dict[str, dict[str, Any]]:
    """Median, spread and every sample of each figure."""
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": values}
        for name in samples[0]
        for values in [[sample[name] for sample in samples]]
    }
