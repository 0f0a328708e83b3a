"""Sums that notice damage, and the check that runs while a file is used."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tinygptv.runtime import BundleError
from tinygptv.runtime.bundle.checksums import COLUMNS, sums_of, verified


@pytest.mark.parametrize("size", [0, 1, 8, 4095, COLUMNS * 8, (4 << 20) - 1, 4 << 20, (4 << 20) + 8, 9_000_001])
def test_sums_notice_every_kind_of_damage(tmp_path: Path, size: int) -> None:
    generator = np.random.default_rng(size)
    path = tmp_path / "file"
    data = generator.integers(0, 256, size, dtype=np.uint8)
    path.write_bytes(data)
    sums = sums_of(path)
    assert len(sums) == -(-size // (4 << 20))
    assert sums == sums_of(path)

    def changed(other: np.ndarray) -> bool:
        assert not np.array_equal(other, data)
        path.write_bytes(other)
        return sums_of(path) != sums

    for place in generator.integers(0, max(size, 1), 5 if size else 0):
        flipped = data.copy()
        flipped[place] ^= 1 << int(generator.integers(8))
        assert changed(flipped)
    for start in range(0, size - 8192, max(size // 5, 8192)):
        zeroed, swapped = data.copy(), data.copy()
        zeroed[start : start + 4096] = 0
        swapped[start : start + 4096], swapped[start + 4096 : start + 8192] = (
            data[start + 4096 : start + 8192],
            data[start : start + 4096],
        )
        assert changed(zeroed)
        assert changed(swapped)
    if size:
        assert changed(data[:-1])


def test_a_file_is_checked_while_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40_000)
    sums = sums_of(path)
    with verified(path, sums, "do this"):
        pass
    path.write_bytes(bytes(range(256)) * 39_999 + bytes(256))
    with (
        pytest.raises(BundleError, match=r"file is damaged \(1 of 3 parts have changed\); do this"),
        verified(path, sums, "do this"),
    ):
        pass
    # What the damage led to is not what is told.
    with pytest.raises(BundleError, match="is damaged"), verified(path, sums, "do this"):
        raise RuntimeError
    assert threading.active_count() == 1 or all("ThreadPool" not in t.name for t in threading.enumerate())


def test_another_error_passes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(RuntimeError), verified(path, sums_of(path), ""):
        raise RuntimeError
