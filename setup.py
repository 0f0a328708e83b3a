"""The part of the package's metadata that setup.cfg cannot express: the description that a package index shows.

An index shows README.md alone. Its links and pictures are paths in this repository, which lead nowhere there, and an
index shows pictures from https addresses only (no data: URIs). So they are changed when the package is built.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
_PICTURE = re.compile(r'<img src="(?P<html>[^"]+)"[^>]*>|!\[[^\]]*\]\((?P<markdown>[^)\s]+)\)')
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_ABSOLUTE = ("https://", "#")


def description(readme: str, source: str | None, version: str) -> str:
    """README.md for an index.

    Args:
        readme: The text of README.md.
        source: The repository's address, such as ``https://github.com/owner/name``. Paths become addresses of the
            version's tag there. If None, pictures are left out, and of a link only its text stays.
        version: Without the tag's ``v``.
    """

    def picture(found: re.Match[str]) -> str:
        path = found["html"] or found["markdown"]
        if path.startswith(_ABSOLUTE):
            return found[0]
        return found[0].replace(path, f"{source}/raw/v{version}/{path}") if source else ""

    def link(found: re.Match[str]) -> str:
        if found["target"].startswith(_ABSOLUTE):
            return found[0]
        return f"[{found['text']}]({source}/blob/v{version}/{found['target']})" if source else found["text"]

    text = _LINK.sub(link, _PICTURE.sub(picture, readme))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"<!--.*?-->\n?", "", text))


def main() -> None:
    """Build; everything else is in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = config.get("metadata", "project_urls", fallback="").strip().splitlines()
    source = next((url.partition("=")[2].strip() for url in urls if url.partition("=")[0].strip() == "Source"), None)
    setup(
        long_description=description(
            (ROOT / "README.md").read_text(encoding="utf-8"), source, config["metadata"]["version"]
        ),
        long_description_content_type="text/markdown",
    )


if __name__ == "__main__":
    main()
