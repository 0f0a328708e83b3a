"""Image embeddings by the content of the picture: no picture is encoded twice."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import PROJECTOR, VISION_ENCODER, Manifest
from ..errors import ArgumentError, reason_of
from ..system.files import write_atomically

Float32Array = NDArray[np.float32]
SUFFIX = "embeds"
"""Suffix of a cache file, which holds a SHA-256, then the embeddings, float32 in little-endian order."""
_STORED, _CHECKSUM_BYTES = np.dtype("<f4"), 32
MEMORY_BYTES = 64_000_000
"""Maximum size of embeddings in memory, except that the last image's are always kept: some 195 of TinyGPT-V's images
(0.33 MB each), or 8 of those with 729 tokens (7.5 MB)."""


class ImageCache:
    """The last images' embeddings in memory, and all of them in a folder if one is given; thread-safe."""

    def __init__(self, manifest: Manifest, folder: Path | None) -> None:
        """
        Args:
            manifest: Manifest of the bundle; embeddings of other encoders or projectors are kept apart.
            folder: Cache folder, with a file for each image in a subfolder for each encoder; created if needed.

        Raises:
            ArgumentError: ``folder`` cannot be made.
        """
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Float32Array] = OrderedDict()
        self._shape = (manifest.contract.image_tokens, manifest.contract.hidden_size)
        self._folder: Path | None = None
        if folder is not None:
            self._folder = folder / _encoder_key(manifest)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArgumentError(
                    f"image_cache {folder} cannot be made ({reason_of(error)}); choose another folder"
                ) from error

    def find(self, key: str) -> Float32Array | None:
        """The embeddings [image tokens, hidden] of pixel values with this :func:`pixel_key`, if cached."""
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        embeds = self._read(key)
        if embeds is not None:
            self._remember(key, embeds)
        return embeds

    def add(self, key: str, embeds: Float32Array) -> None:
        """Store embeddings; if the folder is full or missing, they are only computed again later."""
        self._remember(key, embeds)
        if self._folder is None:
            return
        content = np.ascontiguousarray(embeds, _STORED).tobytes()
        with suppress(OSError):
            write_atomically(self._path(key), lambda file: file.write(_checksum(key, content) + content))

    def _remember(self, key: str, embeds: Float32Array) -> None:
        embeds.setflags(write=False)  # every question about the image is answered from this very array
        with self._lock:
            self._recent[key] = embeds
            self._recent.move_to_end(key)
            while len(self._recent) > max(1, MEMORY_BYTES // embeds.nbytes):
                self._recent.popitem(last=False)

    def _read(self, key: str) -> Float32Array | None:
        """Read embeddings from the folder; None if the file is incomplete or of another image (then it is replaced)."""
        if self._folder is None:
            return None
        size = math.prod(self._shape) * _STORED.itemsize
        try:
            with self._path(key).open("rb") as file:
                checksum, content = file.read(_CHECKSUM_BYTES), file.read(size + 1)
        except OSError:
            return None
        if len(content) != size or checksum != _checksum(key, content):
            return None
        return np.frombuffer(content, _STORED).reshape(self._shape).astype(np.float32)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.{SUFFIX}"


def _checksum(key: str, content: bytes) -> bytes:
    """Checksum of a file's content and its image's key, so that a renamed file is detected."""
    return hashlib.sha256(key.encode() + content).digest()


def pixel_key(pixel_values: Float32Array) -> str:
    """SHA-256 of the encoder's input."""
    return hashlib.sha256(pixel_values.tobytes()).hexdigest()


def _encoder_key(manifest: Manifest) -> str:
    digest = hashlib.sha256()
    for record in sorted(manifest.files, key=lambda record: record.name):
        if record.name.startswith((VISION_ENCODER, PROJECTOR)):
            digest.update(f"{record.name} {record.sha256}\n".encode())
    return digest.hexdigest()[:16]
