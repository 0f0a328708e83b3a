"""One file a network: its sizes, its tensors, how published keys become them, and what it computes.

A part's module has what :class:`Part` says. Nothing else in the exporter knows what is in a network.
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
"""Reads a tensor, float32, when it is called."""


class Weights(Protocol):
    """The published files of a model as one source of tensors under canonical keys."""

    def has(self, key: str) -> bool:
        """Whether there is such a key."""

    def has_in_some_layer(self, key: str) -> bool:
        """Whether there is such a key for the layer it names, or for any other."""

    def shape(self, key: str) -> Shape:
        """Shape of a key that is there."""

    def take(self, key: str, shape: Shape) -> Read:
        """The tensor of a key, LoRA merged; one that is missing or of another shape is reported at the end."""

    def merged(self, weight: Read, name: str, shape: Shape) -> Read:
        """A weight with the LoRA of the linear layer ``name``, where it has one."""


class Part(Protocol):
    """What a module of this package has."""

    @property
    def EXACT(self) -> frozenset[str]:  # noqa: N802
        """Linear layers that stay float32 in int8 bundles."""

    def tensors(self, sizes: Any) -> dict[str, Shape]:
        """Name and shape of every tensor, those of a layer behind those of the layer before it."""

    def read(self, weights: Weights, sizes: Any) -> Mapping[str, Read]:
        """Each of the tensors, from its published keys."""

    def unused(self, sizes: Any) -> Iterable[str]:
        """Patterns of canonical keys that published files hold and the network does not use."""

    def example_input(self, sizes: Any) -> Shape:
        """Shape of an input of ``run``."""

    def run(self, ops: Ops[T], sizes: Any, x: T) -> T:
        """The network."""


class Tower(Part, Protocol):
    """What a module has besides that is the vision tower of models with a configuration in ``transformers``' form."""

    @property
    def DEFAULTS(self) -> Mapping[str, Any]:  # noqa: N802
        """Fields of its configuration that files may leave out."""

    @property
    def KNOWN(self) -> Mapping[str, Mapping[str, Any]]:  # noqa: N802
        """Configurations of published towers, by their names: for folders that hold the weights alone."""

    @property
    def MEAN(self) -> Three:  # noqa: N802
        """Of pixels, by channel, as its processor has it."""

    @property
    def STD(self) -> Three:  # noqa: N802
        """See MEAN."""

    @property
    def CROPS(self) -> bool:  # noqa: N802
        """Whether its processor resizes the shorter side and cuts the middle out; else it resizes to a square."""

    def sizes_from(self, config: Config, select_layer: int, keep_first: bool) -> Any:
        """Its sizes; see :func:`.vit.sizes_from`. ``keep_first``: the first token goes on to the projector."""
