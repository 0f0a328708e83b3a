"""Every write path with a few faults, others each day."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.paths import PATHS
from faults.tracing import missing

ROOT = Path(__file__).resolve().parents[1]
SLOW = ["export-int4", "verify"]
"""Left to the full sweep."""
MOST = 2


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_old_or_new(tmp_path: Path) -> None:
    of_the_day = int(time.time()) // 86_400
    results = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--most", str(MOST), "--jobs", "2", "--seed", str(of_the_day)]
    command += ["--json", str(results), "--only", *(name for name in PATHS if name not in SLOW)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {of_the_day}:\n{done.stdout}\n{done.stderr[-5000:]}"
    found = json.loads(results.read_text(encoding="utf-8"))["paths"]
    assert all(sum(one["runs"].values()) for one in found.values())
