"""JSON files of the published model, read with errors that name them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinygptv.runtime.bundle.typed_json import described
from tinygptv.runtime.errors import ExportError, reason_of

from .harmless import HARMLESS

POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(file: Path) -> None:
    """Refuse a pointer file, which git leaves in place of a large file that it has not downloaded.

    Raises:
        ExportError: ``file`` is a pointer file.
    """
    start = b""
    with suppress(OSError), file.open("rb") as opened:  # whoever reads the file says what is wrong
        start = opened.read(len(POINTER))
    if start == POINTER:
        raise ExportError(
            f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it again"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        ExportError: There is no such file, or it holds no JSON object.
    """
    refuse_pointer(file)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{file}: no such file") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read as JSON ({reason_of(error)})") from error
    if not isinstance(document, dict):
        raise ExportError(f"{file}: holds {described(document)}; expected an object")
    return document


class Config:
    """A configuration, or a part of one, with typed access to its fields.

    Every field must be used, like the keys of weight files: :meth:`finish` refuses unused ones.

    Args:
        label: Name for messages: the file, and the part of it.
        given: Fields in the file.
        defaults: Values of fields that a file may leave out, from the published code.
    """

    def __init__(self, label: str, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.label = label
        self.given = dict(given)
        self.fields = dict(defaults or {}) | self.given
        self._asked: set[str] = set()

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same configuration with other defaults; both share the record of used fields."""
        same = Config(self.label, self.given, defaults)
        same._asked = self._asked
        return same

    def get(self, name: str) -> Any:
        """A field's value; None if it is absent."""
        self._asked.add(name)
        return self.fields.get(name)

    def part(self, name: str, defaults: Mapping[str, Any] | None = None) -> Config:
        """The nested object of this name."""
        fields = self.get(name)
        if not isinstance(fields, dict):
            raise ExportError(f"{self.label}: {name} is {fields!r:.60}; expected an object")
        return Config(f"{self.label}: {name}", fields, defaults)

    def integer(self, name: str) -> int:
        """A positive whole number."""
        value = self.get(name)
        if type(value) is not int or value < 1:
            raise ExportError(f"{self.label}: {name} is {value!r}; expected a positive integer")
        return value

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ExportError(f"{self.label}: {name} is {value!r}; expected a positive number")
        return float(value)

    def text(self, name: str) -> str:
        """A string."""
        value = self.get(name)
        if not isinstance(value, str) or not value:
            raise ExportError(f"{self.label}: {name} is {value!r:.60}; expected a text")
        return value

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse a field whose value (None if absent) is not one of the supported ones."""
        value = self.get(name)
        if not any(type(value) is type(other) and value == other for other in allowed):
            known = " or ".join("absent" if other is None else repr(other) for other in allowed)
            raise ExportError(f"{self.label}: {name} is {value!r:.60}, which is not supported; expected {known}")

    def finish(self) -> None:
        """Refuse unused fields, which might change the network; call it after all fields were read.

        Fields that are absent, null, false, 0 or empty are accepted; :data:`.harmless.HARMLESS` has the names of
        those that never affect the network.
        """
        unknown = [name for name, value in self.given.items() if value and name not in self._asked | HARMLESS]
        if unknown:
            shown = ", ".join(f"{name} ({self.given[name]!r:.40})" for name in unknown[:3])
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ExportError(
                f"{self.label}: unknown {shown}{more}; this may mean a different network from the one the exporter "
                "knows: if it does not, take it out of the file"
            )
