"""JSON files of the published model, read with errors that name them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinygptv.runtime.errors import ExportError


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        ExportError: There is no such file, or it holds no JSON object.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{file}: no such file") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise ExportError(f"{file}: holds a JSON {type(document).__name__}; expected an object")
    return document


class Config:
    """A configuration, or a part of one, whose fields are asked for by name and kind.

    Args:
        label: What messages call it: its file, and the part of it.
        fields: As the file has them.
        defaults: Of fields that a file may leave out, by the published code.
    """

    def __init__(self, label: str, fields: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.label = label
        self.fields = dict(defaults or {}) | dict(fields)

    def part(self, name: str, defaults: Mapping[str, Any] | None = None) -> Config:
        """The object under a name."""
        fields = self.fields.get(name)
        if not isinstance(fields, dict):
            raise ExportError(f"{self.label}: {name} is {fields!r:.60}; expected an object")
        return Config(f"{self.label}: {name}", fields, defaults)

    def integer(self, name: str) -> int:
        """A positive whole number."""
        value = self.fields.get(name)
        if type(value) is not int or value < 1:
            raise ExportError(f"{self.label}: {name} is {value!r}; expected a positive integer")
        return value

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ExportError(f"{self.label}: {name} is {value!r}; expected a positive number")
        return float(value)

    def text(self, name: str) -> str:
        """A string."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value:
            raise ExportError(f"{self.label}: {name} is {value!r:.60}; expected a text")
        return value

    def expect(self, name: str, *allowed: object) -> None:
        """Stop unless a field, None where it is absent, has one of the values that the exporter knows how to honour."""
        value = self.fields.get(name)
        if not any(type(value) is type(other) and value == other for other in allowed):
            known = " or ".join("absent" if other is None else repr(other) for other in allowed)
            raise ExportError(f"{self.label}: {name} is {value!r:.60}, which is not supported; expected {known}")
