"""The second pass of a 4-bit calibration: rounds each weight, smoothed and rotated, for its actual inputs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .gptq import PACKED_INT4, SCALES_INT4, hessians, quantize_gptq
from .precision import GroupWise, Scheme
from .smoothing import Group, Smoothing
from .torch_ops import Value


class Compensator:
    """Rounds the layers of a group when the first of them runs: all layers of a group read the same input.

    Args:
        tensors: Tensors with smoothing folded in, ``<name>.weight`` for each linear layer.
        smoothings: Smoothing by group; the observed inputs come from the model without it.
        schemes: The quantisation of each layer; only those with 4 bits are rounded here.
        groups: The groups of layers that share an input.
        folder: Where the rounded weights wait, a file for each layer, until the graph is written.
        bar: Counts the groups.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        smoothings: Mapping[Group, Smoothing],
        schemes: Mapping[str, Scheme],
        groups: Sequence[Group],
        folder: Path,
        bar: tqdm,
    ) -> None:
        self.rounded: dict[str, Tensor] = {}
        """``<name>.packed_int4`` and ``<name>.scales_int4``, read from their files when they are used."""
        self._tensors, self._smoothings, self._folder, self._bar = tensors, smoothings, folder, bar
        self._groups = {group.linears[0]: (group, size) for group in groups if (size := _group_size(schemes, group))}
        bar.reset(len(self._groups))

    @property
    def awaited(self) -> bool:
        """Whether any layer still has to be rounded."""
        return bool(self._groups)

    def observe(self, name: str, x: Value) -> None:
        """Observer of the decoder's linear layers."""
        if name not in self._groups:
            return
        group, size = self._groups[name]
        inputs = x.data.flatten(0, -2)
        if group in self._smoothings:
            inputs = self._smoothings[group].apply(inputs)
        gram = hessians(inputs)
        for linear in group.linears:
            packed, scales = quantize_gptq(self._tensors[f"{linear}.weight"], gram, size)
            file = self._folder / f"{linear}.pt"
            content = io.BytesIO()  # torch's own errors do not say that the disk is full
            torch.save({f"{linear}.{PACKED_INT4}": packed, f"{linear}.{SCALES_INT4}": scales}, content)
            file.write_bytes(content.getbuffer())
            self.rounded |= torch.load(file, weights_only=True, mmap=True)
        self._bar.update()


def _group_size(schemes: Mapping[str, Scheme], group: Group) -> int | None:
    """Number of weights that share a 4-bit scale; None if the group's layers have another precision."""
    scheme = schemes.get(group.linears[0])
    return scheme.size if isinstance(scheme, GroupWise) and scheme.bits == 4 else None
