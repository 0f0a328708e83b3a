"""Accounts for every key of every file: used by the model, listed as unused, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from tinygptv.runtime.errors import ExportError

from ..parts import Read, Shape
from .lora import Lora, Prefixes
from .readers import Reader

LAYER_NUMBER = re.compile(r"\.\d+\.")


class KeyLedger:
    """One reader under canonical keys, and which of them were taken.

    Args:
        reader: The file or files.
        cause: What is most likely wrong if a key is missing or unknown.
        prefixes: From stored to canonical keys.
        home: Pattern of the canonical keys that are looked for here if no file has them.
        spare: Pattern of the canonical keys that this file may hold without use; those of other files are unknown here.
    """

    def __init__(self, reader: Reader, cause: str, prefixes: Prefixes, home: str = r"(?!)", spare: str = r"") -> None:
        self.reader, self._cause, self._prefixes = reader, cause, prefixes
        self.home, self._spare = re.compile(home), re.compile(spare)
        self._keys: dict[str, str] = {}
        for stored in reader.shapes:
            key = self._canonical(stored)
            if key in self._keys:
                raise ExportError(f"{reader.label}: {stored} is there under two names")
            self._keys[key] = stored
        self._kinds = {kind_of(key) for key in self._keys}
        self.taken_bytes = 0
        """Size in the files of all keys that were taken, in bytes."""
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the source holds ``key``."""
        return key in self._keys

    def has_in_some_layer(self, key: str) -> bool:
        """Whether the source holds ``key`` for the layer it names, or for any other."""
        return kind_of(key) in self._kinds

    def shape(self, key: str) -> Shape:
        """Shape of an existing key."""
        return self.reader.shapes[self._keys[key]]

    def take(self, key: str, shape: Shape) -> Read:
        """A function that reads ``key``; a key that is missing or of another shape is remembered as a problem."""
        if key not in self._keys:
            self._missing.append(self._stored(key))
            return lambda: torch.empty(0)
        stored = self._keys[key]
        if key not in self._taken:
            self._taken.add(key)
            self.taken_bytes += self.reader.stored_bytes[stored]
        if self.shape(key) != shape:
            self._misshapen.append(f"{stored} has shape {list(self.shape(key))}, expected {list(shape)}")
        return lambda: self.reader.read(stored)

    def bases(self) -> Iterator[tuple[str, str]]:
        """(canonical name, stored key) of each linear layer that an adapter was made for."""
        for key, stored in self._keys.items():
            if ".base_layer." in stored:
                yield key.rpartition(".")[0], stored

    def overridden(self, key: str) -> None:
        """Account for a key that is replaced by another file's tensor."""
        self._taken.add(key)

    def finish(self, unused: Iterable[str]) -> None:
        """Raise an error unless every key was taken or matches a pattern of known unused keys."""
        known = re.compile("|".join(f"(?:{pattern})" for pattern in unused) or r"(?!)")
        unknown = [
            stored
            for key, stored in self._keys.items()
            if key not in self._taken and not (self._spare.match(key) and known.fullmatch(key))
        ]
        problems = [
            *(f"{kind} {_few(names)}" for kind, names in (("missing", self._missing), ("unknown", unknown)) if names),
            *([_few(self._misshapen)] if self._misshapen else []),
        ]
        if problems:
            raise ExportError(f"{self.reader.label}: {'; '.join(problems)}; likely cause: {self._cause}")

    def _canonical(self, stored: str) -> str:
        # Adapters are called "default" by some writers, and what they adapt "base_layer".
        key = stored.replace(".base_layer.", ".").replace(".default.", ".")
        for old, new in self._prefixes:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    def _stored(self, key: str) -> str:
        fitting = [(old, new) for old, new in self._prefixes if key.startswith(new)]
        if not fitting:
            return key
        old, new = max(fitting, key=lambda pair: len(pair[1]))
        return old + key.removeprefix(new)


class Ledgers:
    """Several files as one source of tensors: see :class:`..parts.Weights`.

    Of a kind of key (the same in every layer) that several files hold, the first file's count.

    Args:
        ledgers: The files, those that win first.
        lora: The adapters, where there are any.
    """

    def __init__(self, ledgers: Sequence[KeyLedger], lora: Lora | None = None) -> None:
        self._ledgers, self._lora = ledgers, lora

    def has(self, key: str) -> bool:
        return any(ledger.has(key) for ledger in self._ledgers)

    def has_in_some_layer(self, key: str) -> bool:
        return any(ledger.has_in_some_layer(key) for ledger in self._ledgers)

    def shape(self, key: str) -> Shape:
        return next(ledger for ledger in self._ledgers if ledger.has(key)).shape(key)

    def take(self, key: str, shape: Shape) -> Read:
        read = self._take(key, shape)
        name, _, kind = key.rpartition(".")
        return self.merged(read, name, shape) if kind == "weight" and len(shape) == 2 else read

    def merged(self, weight: Read, name: str, shape: Shape) -> Read:
        lora = self._lora
        if lora is None or not lora.adapted(name):
            return weight
        keys = [f"{name}.lora_{part}.weight" for part in "AB"]
        a_shape, b_shape = (self.shape(key) if self.has(key) else () for key in keys)
        rank = lora.rank or max(1, (*a_shape[:1], *b_shape[1:], 1)[0])  # A's rows, or where it is missing B's columns
        a, b = self._take(keys[0], (rank, shape[1])), self._take(keys[1], (shape[0], rank))
        scale = lora.alpha / rank
        return lambda: torch.addmm(weight(), b(), a(), alpha=scale)

    def finish(self, unused: Iterable[str]) -> int:
        """Raise an error unless all keys are accounted for; returns the size of all tensors in the files, in bytes."""
        patterns = list(unused)
        # Where the base model's file does not fit, neither do the adapters: it is the one to name.
        for ledger in reversed(self._ledgers):
            ledger.finish(patterns)
            for name, stored in ledger.bases():
                if self._lora is None or not self._lora.adapted(name):
                    raise ExportError(
                        f"{ledger.reader.label}: {stored} is the base weight of an adapter that is missing; "
                        "download adapter_config.json and adapter_model too"
                    )
        return sum(ledger.taken_bytes for ledger in self._ledgers)

    def _take(self, key: str, shape: Shape) -> Read:
        holding = [ledger for ledger in self._ledgers if ledger.has_in_some_layer(key)]
        for other in holding[1:]:
            other.overridden(key)
        if not holding:
            holding = [ledger for ledger in self._ledgers if ledger.home.match(key)]
        return holding[0].take(key, shape)


def kind_of(key: str) -> str:
    """A key without the number of its layer."""
    return LAYER_NUMBER.sub(".N.", key, count=1)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown
