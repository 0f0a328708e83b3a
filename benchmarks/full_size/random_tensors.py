"""Tensors of random values: what is known of each before it is drawn, and the drawing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tensor:
    """One tensor to be drawn from a normal distribution; an int64 one counts up from 0 instead."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    std: float = 1.0
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Draw = Callable[[str, Tensor], torch.Tensor]
"""Gives the values of a tensor of the named file (or folder)."""


def draw_tensor(seed: int, file: str, tensor: Tensor) -> torch.Tensor:
    """The values of one tensor: the same for the same seed, file, name and shape, whatever was drawn before."""
    if tensor.dtype == torch.int64:
        return torch.arange(math.prod(tensor.shape)).view(tensor.shape)
    digest = hashlib.sha256(f"{seed}/{file}/{tensor.name}".encode()).digest()
    # PyTorch's CPU generator looks at 32 bits of its seed.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    values = torch.randn(tensor.shape, generator=generator)
    return values.mul_(tensor.std).add_(tensor.mean).to(tensor.dtype)


def linear_tensors(
    name: str, rows: int, columns: int, dtype: torch.dtype, bias_dtype: torch.dtype | None = None, gain: float = 1.0
) -> Iterator[Tensor]:
    """Weight [rows, columns] and bias [rows] that keep an input's standard deviation, times ``gain``."""
    yield Tensor(f"{name}.weight", (rows, columns), dtype, std=gain / math.sqrt(columns))
    yield Tensor(f"{name}.bias", (rows,), bias_dtype or dtype, std=0.02)


def norm_weight(name: str, width: int, dtype: torch.dtype, mean: float = 1.0) -> Tensor:
    return Tensor(f"{name}.weight", (width,), dtype, std=0.05 * mean, mean=mean)


def norm_tensors(name: str, width: int, dtype: torch.dtype) -> Iterator[Tensor]:
    yield norm_weight(name, width, dtype)
    yield Tensor(f"{name}.bias", (width,), dtype, std=0.02)


def patch_tensor(name: str, width: int, patch_size: int, dtype: torch.dtype) -> Tensor:
    """The weight of the convolution that reads the patches of an RGB picture."""
    return Tensor(name, (width, 3, patch_size, patch_size), dtype, std=1 / math.sqrt(3 * patch_size**2))
