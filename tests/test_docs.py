"""Documentation that is made from the code, and links that lead somewhere."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from tinygptv.runtime import TinyGPTV

from tinygptv import runtime

sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("docs", "benchmarks", "."))
import make_pictures
import pages
from make_pictures import EXAMPLES, Example

import setup

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]


def test_the_api_reference_is_that_of_the_code(tmp_path: Path) -> None:
    script = "import sys; sys.path.insert(0, sys.argv[1]); import make_api; print(make_api.reference(), end='')"
    command = [sys.executable, "-c", script, str(ROOT / "docs")]
    made = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == made, "run python docs/make_api.py"
    for name in runtime.__all__:
        assert name == "ImageSource" or f"## {name}\n" in made


def test_tables_are_those_of_the_results_files() -> None:
    for page, name, text in pages.sections():
        section = f"<!-- {name}: start -->\n{text}\n<!-- {name}: end -->"
        assert section in page.read_text(encoding="utf-8"), f"{page.name}, {name}: run python benchmarks/pages.py"


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.name)
def shown(request: pytest.FixtureRequest) -> tuple[Example, str]:
    """An example, and its answer as docs/demo.md has it."""
    example: Example = request.param
    _, found, after = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").partition(f"\n{example.command}\n# ")
    assert found, "paste what docs/make_pictures.py prints"
    return example, after.partition("\n")[0]


def test_the_demo_answers_as_its_page_says(shown: tuple[Example, str]) -> None:
    example, answer = shown
    with TinyGPTV.load() as model:
        found = make_pictures.ask(model, example)
    number = re.compile(r"\d+")
    assert number.sub("", found) == number.sub("", answer)
    # Another CPU's int8 products may be rounded differently, and move an edge by a hundredth.
    assert [*map(int, number.findall(found))] == pytest.approx([*map(int, number.findall(answer))], abs=1)


def test_pictures_show_the_answers_on_the_page(shown: tuple[Example, str]) -> None:
    example, answer = shown
    with Image.open(example.drawn_picture) as picture:
        drawn = make_pictures.draw(example, answer)
        assert picture.mode == drawn.mode and picture.size == drawn.size
        different = np.any(np.asarray(ImageChops.difference(picture, drawn)), axis=2)
        # Pillow's versions draw a letter's edge now and then a little otherwise.
        assert different.mean() < 0.001, "run python docs/make_pictures.py"


def test_pictures_are_those_of_the_test_split(shown: tuple[Example, str]) -> None:
    example, _ = shown
    package = pytest.importorskip("easy_vqa", reason="easy-vqa is not installed")
    path = package.get_test_image_paths()[example.number]
    with Image.open(example.picture) as picture:
        assert ImageChops.difference(picture, make_pictures.enlarge(path)).getbbox() is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    assert links or page != ROOT / "README.md"
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_links_lead_to_sections() -> None:
    """Anchors as GitHub makes them from headings."""
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link) if link else page
            if link.startswith("https://"):
                continue
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {link}#{anchor}"


def test_an_index_shows_no_path_of_this_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = re.compile(r'\]\((?!https://|#)|src="(?!https://)')
    assert paths.search(text)
    without, shown = (setup.description(text, source, "1.2.3") for source in (None, "https://example.org/x"))
    assert not paths.search(without) and "<img" not in without and "<!--" not in without
    assert not paths.search(shown)
    for path in re.findall(r"https://example\.org/x/(?:raw|blob)/v1\.2\.3/([^)\"#]+)", shown):
        assert (ROOT / path).exists()
    assert 'src="https://example.org/x/raw/v1.2.3/docs/images/app.png"' in shown


def test_the_install_without_a_network_stack_is_complete() -> None:
    """All that the package needs, by the versions that it needs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = {line.replace(" ", "") for line in config["options"]["install_requires"].split("\n") if line[:1].isalpha()}
    lines = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8").splitlines()
    (last,) = (number for number, line in enumerate(lines) if line.startswith("pip install --no-deps"))
    assert set(re.findall(r'"([^"]+)"', "".join(lines[last - 1 : last + 1]))) == needed


def test_versions_are_the_same_everywhere() -> None:
    version = re.search(r"^version = (\S+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
