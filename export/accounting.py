"""Every key of a file accounted for: taken as a tensor of the model, known to be unused, or a reason to stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from tinygptv.runtime.errors import ExportError

from .readers import Reader

Tensor = torch.Tensor
Shape = tuple[int, ...]
LAYER_NUMBER = re.compile(r"\.\d+\.")


class KeyLedger:
    """One reader, and which of its keys were taken; whatever is wrong is collected and told in one message."""

    def __init__(self, reader: Reader, cause: str, rename: Callable[[str], str] = lambda key: key) -> None:
        self.reader = reader
        self.cause = cause
        self._keys = {rename(key): key for key in reader.shapes}
        if len(self._keys) != len(reader.shapes):
            twice = next(key for key in reader.shapes if self._keys[rename(key)] != key)
            raise ExportError(f"{reader.label}: {twice} is there under two namings at once")
        self._kinds = {LAYER_NUMBER.sub(".N.", key) for key in self._keys}
        self.taken_bytes = 0
        """Bytes that reading every taken key takes from the file."""
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the source holds ``key``."""
        return key in self._keys

    def has_in_some_layer(self, key: str) -> bool:
        """Whether the source holds ``key`` for the layer it names, or for any other."""
        return LAYER_NUMBER.sub(".N.", key) in self._kinds

    def shape(self, key: str) -> Shape:
        """Shape of a key that is there."""
        return self.reader.shapes[self._keys[key]]

    def take(self, key: str, shape: Shape) -> Callable[[], Tensor]:
        """A function that reads ``key``; a key that is missing or of another shape is remembered as a problem."""
        if key not in self._keys:
            self._missing.append(key)
            return lambda: torch.empty(0)
        stored = self._keys[key]
        self._taken.add(key)
        self.taken_bytes += self.reader.stored_bytes[stored]
        if self.shape(key) != shape:
            self._misshapen.append(f"{stored} has shape {list(self.shape(key))}, expected {list(shape)}")
        return lambda: self.reader.read(stored)

    def overridden(self, key: str) -> None:
        """Account for ``key``, which another file's tensor takes the place of."""
        self._taken.add(key)

    def finish(self, unused: Iterable[str]) -> None:
        """Stop unless every key was taken or matches one of the patterns of known-unused keys."""
        known = re.compile("|".join(f"(?:{pattern})" for pattern in unused) or r"(?!)")
        unknown = [self._keys[key] for key in self._keys if key not in self._taken and not known.fullmatch(key)]
        problems = [
            *(f"{kind} {_few(names)}" for kind, names in (("missing", self._missing), ("unknown", unknown)) if names),
            *([_few(self._misshapen)] if self._misshapen else []),
        ]
        if problems:
            raise ExportError(f"{self.reader.label}: {'; '.join(problems)}; likely cause: {self.cause}")


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown
