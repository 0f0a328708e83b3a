"""Documentation that is made from the code, and links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tinygptv import runtime

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/**/*.md")]


def test_the_api_reference_is_that_of_the_code(tmp_path: Path) -> None:
    script = "import sys; sys.path.insert(0, sys.argv[1]); import make_api; print(make_api.reference(), end='')"
    command = [sys.executable, "-c", script, str(ROOT / "docs")]
    made = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == made, "run python docs/make_api.py"
    for name in runtime.__all__:
        assert name == "ImageSource" or f"## {name}\n" in made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    assert links or page != ROOT / "README.md"
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
