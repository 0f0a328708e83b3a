"""JSON files of the published model, read with errors that name them."""

from __future__ import annotations

import json
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
