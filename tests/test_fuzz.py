"""The fuzzer for a while: always with the same inputs, and with others each day."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 45


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, int(time.time()) // 86_400], ids=["fixed", "of the day"])
def test_nothing_breaks(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", str(seed)]
    command += ["--failures", str(tmp_path / "failures")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr[-5000:]}"
    assert len(done.stdout.splitlines()) == 7
