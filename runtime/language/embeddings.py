"""The token embedding table, read from disk row by row, and the decoder's input put together from text and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..architecture import LanguageArchitecture
from ..errors import ArgumentError, BundleError


class TokenEmbeddings:
    """The table [vocab_size, hidden_size], memory-mapped: only the rows that are asked for are ever in memory."""

    def __init__(self, path: Path, sizes: LanguageArchitecture) -> None:
        try:
            self._table = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy reads the header as Python, and raises whatever that gives
            raise BundleError(f"{path} is not a whole .npy file ({error}); copy the bundle again") from error
        expected = (sizes.vocab_size, sizes.hidden_size)
        if self._table.shape != expected or self._table.dtype not in (np.float16, np.float32):
            raise BundleError(
                f"{path} holds {self._table.dtype}{list(self._table.shape)}; expected float16{list(expected)}"
            )

    def rows(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [tokens, hidden]."""
        rows: NDArray[np.float32] = self._table[np.asarray(token_ids, dtype=np.intp)].astype(np.float32)
        return rows


def assemble(
    table: TokenEmbeddings, segments: Sequence[Sequence[int]], images: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Text segments with an image between each two of them.

    Args:
        table: Token embeddings.
        segments: Token ids, one list more than there are images.
        images: Image embeddings, each [queries, hidden].

    Returns:
        inputs_embeds, float32 [1, sequence, hidden].
    """
    if len(segments) != len(images) + 1:
        raise ArgumentError(
            f"{len(segments)} text segments have room for {len(segments) - 1} images, not {len(images)}"
        )
    parts = [table.rows(segments[0])]
    hidden = parts[0].shape[1]
    for image in images:
        if image.ndim != 2 or image.shape[1] != hidden:
            raise ArgumentError(
                f"an image's embeds are {image.shape}; expected (queries, {hidden}): encode it with this very model"
            )
    for image, segment in zip(images, segments[1:], strict=True):
        parts += [image, table.rows(segment)]
    return np.concatenate(parts)[np.newaxis]
