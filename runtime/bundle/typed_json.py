"""Parses JSON values into frozen dataclasses by their type hints; errors name the field."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from typing import Any

from ..errors import BundleError

_WORDS: dict[Any, str] = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def from_json(kind: Any, value: Any, where: str) -> Any:
    """Build ``kind`` from what :func:`json.loads` gives.

    Fields that ``kind`` does not have are ignored, and those that have a default may be missing: so a reader
    understands what a later minor version writes, and what an earlier one wrote.

    Args:
        kind: A dataclass, tuple, dict, scalar, or a union of one of them with None; Any takes everything.
        value: The JSON value.
        where: The file and the position in it, for messages.

    Raises:
        BundleError: A field is missing or of another type; names it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where}: found {described(value)}; expected an object: copy the bundle again")
        hints = typing.get_type_hints(kind)
        optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
        if missing := sorted(set(hints) - set(value) - optional):
            named = ", ".join(f"no field {name}" for name in missing)
            raise BundleError(f"{where}: {named}; copy the bundle again, or export the model again")
        fields = {
            name: from_json(hint, value[name], f"{where}: {name}") for name, hint in hints.items() if name in value
        }
        return typing.cast(Any, kind)(**fields)
    if kind is Any:
        return value
    if origin is types.UnionType:
        return None if value is None else from_json(next(a for a in arguments if a is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return {key: from_json(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(
                from_json(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True))
            )
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # NaN is not
        return float(value)
    if isinstance(kind, type) and kind is not float and type(value) is kind:
        return value
    wanted = _WORDS.get(origin or kind, "another")
    raise BundleError(f"{where}: found {json.dumps(value):.80}; expected {wanted}: copy the bundle again")


def described(value: object) -> str:
    """The kind of a JSON value, in words."""
    return _WORDS.get(type(value), "something else")
