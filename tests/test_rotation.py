"""Rotations are orthogonal, spread what they rotate, and fit any width."""

from __future__ import annotations

import pytest
import torch
from tinygptv.export.rotation import BLOCK, block_of, orthogonal, rotate


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, 72, 80, 88])
def test_orthogonal(size: int) -> None:
    matrix = orthogonal(size)
    assert matrix.shape == (size, size)
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(size))
    # No entry is much more than an even share: one channel becomes all of its block.
    assert matrix.abs().max() <= (2 / size) ** 0.5 + 1e-6


def test_powers_of_two_are_hadamards() -> None:
    torch.testing.assert_close(orthogonal(64).abs(), torch.full((64, 64), 1 / 8))


@pytest.mark.parametrize(
    ("width", "expected"),
    [(2560, 64), (10240, 64), (1408, 64), (6144, 64), (1152, 64), (4304, 16), (4096, 64), (96, 48), (67, 1), (61, 61)],
)
def test_block_of(width: int, expected: int) -> None:
    assert block_of(width) == expected
    assert width % block_of(width) == 0 and block_of(width) <= BLOCK


def test_blocks_are_rotated_each_for_itself() -> None:
    x, block = torch.arange(24, dtype=torch.float32).view(2, 12), orthogonal(4)
    found = rotate(x, block)
    for start in range(0, 12, 4):
        torch.testing.assert_close(found[:, start : start + 4], x[:, start : start + 4] @ block)
    torch.testing.assert_close(rotate(found, block.t()), x)
