"""The token embedding table, read from disk row by row, and the decoder's input assembled from text and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.contract import Contract
from ..errors import ArgumentError, BundleError


class TokenEmbeddings:
    """The table [vocab_size, hidden_size], memory-mapped: only the requested rows are loaded."""

    def __init__(self, path: Path, contract: Contract) -> None:
        try:
            self._table = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy reads the header as Python, and raises whatever that gives
            raise BundleError(f"{path} is not a complete .npy file; copy the bundle again") from error
        expected = (contract.vocab_size, contract.hidden_size)
        if self._table.shape != expected or self._table.dtype not in (np.float16, np.float32):
            raise BundleError(
                f"{path} holds {self._table.dtype}{list(self._table.shape)}; expected float16{list(expected)}"
            )

    @property
    def hidden_size(self) -> int:
        return int(self._table.shape[1])

    def rows(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of tokens, float32 [tokens, hidden]."""
        rows: NDArray[np.float32] = self._table[np.asarray(token_ids, dtype=np.intp)].astype(np.float32)
        return rows


def assemble(
    table: TokenEmbeddings,
    segments: Sequence[Sequence[int]],
    images: Sequence[NDArray[np.float32]],
    start: int = 0,
) -> NDArray[np.float32]:
    """Join text segments and images alternately into the decoder's input.

    Args:
        table: Token embeddings.
        segments: Token ids, one list more than there are images.
        images: Image embeddings, each [image tokens, hidden].
        start: The first position to return; embeddings of those before it are not looked up.

    Returns:
        inputs_embeds, float32 [1, sequence - start, hidden].

    Raises:
        ArgumentError: See :func:`check_images`.
    """
    check_images(table, segments, images)
    parts: list[NDArray[np.float32]] = []
    for number, segment in enumerate(segments):
        if number:
            image = images[number - 1]
            parts.append(image[start:])
            start = max(0, start - len(image))
        parts.append(table.rows(segment[start:]))
        start = max(0, start - len(segment))
    return np.concatenate(parts)[np.newaxis]


def check_images(
    table: TokenEmbeddings, segments: Sequence[Sequence[int]], images: Sequence[NDArray[np.float32]]
) -> None:
    """Raise ArgumentError unless there is one image for each slot, encoded by this model."""
    if len(segments) != len(images) + 1:
        raise ArgumentError(
            f"{len(segments)} text segments have room for {len(segments) - 1} images, not {len(images)}"
        )
    for image in images:
        if image.ndim != 2 or image.shape[1] != table.hidden_size:
            raise ArgumentError(
                f"an image's embeds are {image.shape}; expected (tokens, {table.hidden_size}): encode it with this "
                "very model"
            )
