"""The soak for a short while: nothing wrong, and as many descriptors and threads as before. Memory takes longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import flat, soak

if not Path("/proc/self/smaps_rollup").exists():
    pytest.skip("what a process holds is read as Linux tells it", allow_module_level=True)


@pytest.mark.slow
def test_a_busy_server_stays_as_it_is() -> None:
    found = soak(minutes=0.25, pictures=12, seed=1)
    assert found["wrong"] == []
    assert found["done"]["ask"] > 10 and found["done"]["send_nonsense"] > 0 and found["done"]["cancel"] > 0
    assert found["flat"]["descriptors"]["flat"] and found["flat"]["threads"]["flat"]


def test_what_grows_is_seen() -> None:
    samples = [
        {"seconds": s, "resident_bytes": 100 + s, "anonymous_bytes": 100, "descriptors": 10 + s / 10, "threads": 4}
        for s in range(101)
    ]
    assert [name for name, found in flat(samples, 100).items() if not found["flat"]] == [
        "resident_bytes",
        "descriptors",
    ]
