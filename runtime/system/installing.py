"""The command that installs an extra: from the folder that tinygptv came from, or its packages by name."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_PROJECT = "setup.cfg"


def install_command(extra: str) -> str:
    """The command that installs an extra, for the user to paste.

    Args:
        extra: Name of the extra, such as ``app``.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / _PROJECT).is_file():  # this very code is the checkout's
        return f'pip install -e "{checkout}[{extra}]"'
    try:
        installed = distribution("tinygptv")
    except PackageNotFoundError:  # copied, or frozen
        return f'pip install ".[{extra}]" in tinygptv\'s own folder'
    # https://packaging.python.org/en/latest/specifications/direct-url/
    origin = urlsplit(json.loads(installed.read_text("direct_url.json") or "{}").get("url", ""))
    source = Path(url2pathname(origin.path))
    if origin.scheme == "file" and (source.suffix == ".whl" or (source / _PROJECT).is_file()) and source.exists():
        return f'pip install "{source}[{extra}]"'
    wanted = [line for line in installed.requires or () if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return " ".join(["pip install", *dict.fromkeys(re.split(r"[^\w.-]", line)[0] for line in wanted)])
