"""One module for each network: its sizes, its tensors, their published keys, and its computation.

A part's module has the members of :class:`Part`. Nothing else in the exporter depends on a network's content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ..documents import Config
from ..ops import Ops, T

Shape = tuple[int, ...]
Three = tuple[float, float, float]
Read = Callable[[], Tensor]
"""A function that reads a tensor, float32."""


class Weights(Protocol):
    """The published files of a model as one source of tensors under canonical keys."""

    def has(self, key: str) -> bool:
        """Whether the key exists."""

    def has_in_some_layer(self, key: str) -> bool:
        """Whether the key exists in its own layer or in any other."""

    def shape(self, key: str) -> Shape:
        """Shape of an existing key."""

    def take(self, key: str, shape: Shape) -> Read:
        """The tensor of a key, with LoRA merged; a missing or misshapen one is reported at the end."""

    def merged(self, weight: Read, name: str, shape: Shape) -> Read:
        """A weight merged with the LoRA of the linear layer ``name``, if there is one."""


class Part(Protocol):
    """The members of a part's module."""

    @property
    def EXACT(self) -> frozenset[str]:  # noqa: N802
        """Linear layers that stay float32 in int8 bundles."""

    def tensors(self, sizes: Any) -> dict[str, Shape]:
        """Name and shape of every tensor, layer after layer."""

    def read(self, weights: Weights, sizes: Any) -> Mapping[str, Read]:
        """A reader for each tensor, from its published keys."""

    def unused(self, sizes: Any) -> Iterable[str]:
        """Patterns of canonical keys that published files contain and the network does not use."""

    def example_input(self, sizes: Any) -> Shape:
        """Shape of an example input for ``run``."""

    def run(self, ops: Ops[T], sizes: Any, x: T) -> T:
        """Compute the network."""


class Tower(Part, Protocol):
    """Additional members of a part's module that is the vision tower of models configured in ``transformers``' form."""

    @property
    def DEFAULTS(self) -> Mapping[str, Any]:  # noqa: N802
        """Values of configuration fields that files may leave out."""

    @property
    def KNOWN(self) -> Mapping[str, Mapping[str, Any]]:  # noqa: N802
        """Configurations of published towers by name, for folders that contain only the weights."""

    @property
    def MEAN(self) -> Three:  # noqa: N802
        """Mean of pixels by channel, from the tower's processor."""

    @property
    def STD(self) -> Three:  # noqa: N802
        """Standard deviation of pixels by channel, from the tower's processor."""

    @property
    def CROPS(self) -> bool:  # noqa: N802
        """Whether its processor resizes the shorter side and cuts out the middle; otherwise it resizes to a square."""

    def sizes_from(self, config: Config, select_layer: int, keep_first: bool) -> Any:
        """Read the sizes; see :func:`.vit.sizes_from`. ``keep_first``: the first token is passed to the projector."""
