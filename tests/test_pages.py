"""Every page's commands, pasted in order as a newcomer would, in one environment made by the page Getting started.

The environment sees the packages of the one that runs the tests, so nothing is downloaded. Where a page names published
weights, small files in the same formats have these names. What is not run is listed here, with the reason.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import plain_environment

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
INDEX = ROOT / "docs" / "README.md"
GETTING_STARTED = ROOT / "docs" / "getting-started.md"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the pages' commands are for a POSIX shell")

FILES = {
    "photo.jpg": ROOT / "export" / "calibration" / "cat.jpg",
    "Pictures/cat.jpg": ROOT / "export" / "calibration" / "cat.jpg",
    "phi-2": GOLDEN / "stage4" / "phi-2",
    "eva_vit_g.pth": GOLDEN / "stage4" / "eva_vit_g.pth",
    "blip2_pretrained_flant5xxl.pth": GOLDEN / "stage4" / "blip2_pretrained_flant5xxl.pth",
    "TinyGPT-V_for_Stage4.pth": GOLDEN / "stage4" / "TinyGPT-V_for_Stage4.pth",
    "architecture.json": GOLDEN / "stage4" / "architecture.json",
    "Mipha-3B": GOLDEN / "siblings" / "mipha" / "checkpoint",
}
"""What has the names that pages use for published files and for a user's own."""
BUNDLES = ("mipha", "tinygptv-stage4")
"""Names that pages use for exported bundles: the demo, unless the page makes one."""
CHANGED = {
    # The small files' numbers of heads are not the published ones.
    r"(--checkpoint TinyGPT-V_for_Stage4\.pth)": r"\1 --architecture architecture.json",
    r"tinygptv-export (?=--)": "tinygptv-export --calibration none ",  # which takes most of the time
    # Random weights: many tokens are almost equally likely.
    r"(tinygptv-export verify \S+)": r"\1 --min-top1 0.8",
    # The extras' packages are those of the environment that runs the tests.
    r'pip install "\.\[\w+\]"': ":",
    r'(--no-deps "tokenizers[^"]*") \.$': r'\1 "$WHEEL"',
    r"pip install \.(?= |$)": 'pip install "$WHEEL"',  # which was built from this folder
}
"""Patterns in commands, and what is run instead."""
NOT_RUN = {
    r"\bhf download\b": "downloads published weights",
    r"bunny-phi-2-siglip-lora": "tests/test_siblings.py exports adapters",
    r"verify tinygptv-stage4": "as the one before it on the page; tests/test_verify.py verifies this checkpoint",
    r"^tinygptv app\b": "a window that stays open; tests/test_app_window.py opens it",
    r"^tinygptv serve\b": "runs until it is stopped; tests/test_server.py runs it",
    r"--clipboard": "needs a desktop",
    r"^pip install pyinstaller|^pyinstaller |^dist/look/look": "tests/test_frozen.py freezes this program",
    r"npm install|\bnode ask\.mjs\b": "tests/test_node.py installs and runs it",
    r"-m (pytest|tests\.\w+)\b": "the tests themselves",
    r"pip install .*-e ": "what .ci/run does",
    r"^pip install --no-deps --target": "downloads models from the package index",
    r"^apt-get\b": "changes the system",
    r"\bbenchmarks/(?!pages|targets)\w+/\w+\.py|/data/": "measures or trains for hours",
    r"^python benchmarks/(pages|targets)\.py": "writes the repository's own tables; tests/test_docs.py compares them",
    r"--ray HEAD": "needs a cluster; tests/test_cluster.py has one",
    r"\$M/": "tests/test_demo.py and tests/test_verify.py run the demo's export and verify",
}
"""Patterns in commands that are not run, and why."""
PYTHON_NOT_RUN = {
    "docs/export.md": "what the command calls; tests/test_bundle.py calls it",
    "docs/server.md": "needs a running server; tests/test_server.py asks with OpenAI's client",
    "CONTRIBUTING.md": "an abridged module, which tests/test_parts.py runs in full",
}
PRELUDE = """
def show(piece): print(piece, end="")
async def send(piece): show(piece)
"""
"""What a page's Python leaves to the reader's program."""
RUNNER = """
import ast, asyncio, sys
code = compile(open(sys.argv[1], encoding="utf-8").read(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
waiting = eval(code, {"__name__": "__main__"})
if waiting is not None:
    asyncio.run(waiting)
"""


def pages() -> list[Path]:
    """README, then the documentation in the order of its index, then the other pages with commands."""
    links = re.findall(r"\]\(([\w-]+\.md)\)", INDEX.read_text(encoding="utf-8"))
    listed = [ROOT / "README.md", *(ROOT / "docs" / name for name in dict.fromkeys(links))]
    others = [ROOT / "CONTRIBUTING.md", *ROOT.glob("benchmarks/**/*.md")]
    return [page for page in [*listed, *sorted(others)] if "```" in page.read_text(encoding="utf-8")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```$"
    return [
        textwrap.dedent(text)
        for _, text in re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    ]


def commands(page: Path) -> list[str]:
    """The page's shell commands in order; a loop, or a line that goes on, is one command."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", "").splitlines()
    found: list[str] = []
    inside = False
    for line in lines:
        if inside:
            found[-1] += f"\n{line}"
        elif line and not line.startswith("#"):
            found.append(line)
        inside = (inside or line.startswith("for ")) and line != "done"
    return found


def why_not(command: str) -> str | None:
    """Why a command is not run; None if it is."""
    if command in blocks(GETTING_STARTED, "sh")[0].splitlines():
        return "pasted once, before all pages"
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command, re.MULTILINE)), None)


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What it prints; a failure shows that."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def paste(texts: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run commands in one shell, as a terminal would; the first that fails ends it."""
    for pattern, instead in CHANGED.items():
        texts = [re.sub(pattern, instead, text) for text in texts]
    script = "\n".join(["set -euxo pipefail", *texts])
    run(["bash", "-c", script], folder, environment)


def run_python(texts: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a page's blocks of Python as one program, with what they leave to the reader's own."""
    (folder / "page.py").write_text("\n".join([PRELUDE, *texts]), encoding="utf-8")
    run(["python", "-c", RUNNER, "page.py"], folder, environment)


def checkout(folder: Path) -> None:
    """Make ``folder`` a new copy of what the pages' commands read in the repository; its environment stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != ".venv":
                shutil.rmtree(path)
        else:
            path.unlink()
    for name in ("tinygptv", "runtime", "docs", "tests/images"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tuned"))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newcomer's folder, and home."""
    return tmp_path_factory.mktemp("newcomer é")


@pytest.fixture(scope="module")
def terminal(folder: Path, wheel: Path) -> Iterator[dict[str, str]]:
    """Variables of a new terminal, which sees no Ray of another test's; names of sockets must be short."""
    pip = {"NO_INDEX": "1", "NO_DEPS": "1", "NO_COMPILE": "1", "QUIET": "1", "DISABLE_PIP_VERSION_CHECK": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    more = {"TQDM_DISABLE": "1", "MPLBACKEND": "agg", "WHEEL": str(wheel)}
    more |= {f"PIP_{name}": value for name, value in pip.items()}
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray:
        yield plain_environment(folder, PATH=path, RAY_TMPDIR=ray, **more)


@pytest.fixture(scope="module")
def activated(terminal: dict[str, str], folder: Path) -> dict[str, str]:
    """Variables of a terminal in which the first block of Getting started was pasted."""
    paste(blocks(GETTING_STARTED, "sh")[:1], folder, terminal)
    (packages,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "of_the_tests.pth").write_text("\n".join(seen), encoding="utf-8")
    programs = os.pathsep.join([str(folder / ".venv" / "bin"), terminal["PATH"]])
    return terminal | {"VIRTUAL_ENV": str(folder / ".venv"), "PATH": programs}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_pages_run_by_copy_and_paste(
    page: Path, folder: Path, terminal: dict[str, str], activated: dict[str, str]
) -> None:
    pasted = [command for command in commands(page) if why_not(command) is None]
    python = [] if name_of(page) in PYTHON_NOT_RUN else blocks(page, "python")
    if not pasted and not python:
        pytest.skip("the table in this module says why nothing on this page is run")
    checkout(folder)
    text = "\n".join([*pasted, *python])
    for name, source in FILES.items():
        if name.partition("/")[0] in text or name == "architecture.json":
            (folder / name).parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for name in BUNDLES:
        if name in text and f"-o {name}" not in text:
            shutil.copytree(ROOT / "runtime" / "demo", folder / name)
    paste(pasted, folder, terminal if "activate" in text else activated)
    if python:
        run_python(python, folder, activated)
    if "pip uninstall" in text:
        paste(["pip install ."], folder, activated)


def test_what_is_not_run_is_still_on_a_page() -> None:
    found = [command for page in pages() for command in commands(page)]
    for pattern in NOT_RUN:
        assert any(why_not(command) == NOT_RUN[pattern] for command in found), f"no page has {pattern} any more"
    for name in PYTHON_NOT_RUN:
        assert blocks(ROOT / name, "python")
    for pattern in CHANGED:
        assert any(re.search(pattern, command) for command in found), f"no page has {pattern} any more"


def test_extras_on_pages_are_those_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    for page in pages():
        for name in re.findall(r"pip install [^\n]*\"\.\[(\w+)\]\"", page.read_text(encoding="utf-8")):
            assert name in config["options.extras_require"], f"{page.name}: {name}"


def test_activation_is_said_once() -> None:
    """Pages name commands as they are typed in an activated environment."""
    for page in pages():
        named = [
            command
            for command in commands(page)
            if ".venv/bin/" in re.sub(r"\. \.venv/bin/activate|\$PWD/\.venv/bin/", "", command)
        ]
        assert named == [] or (page == ROOT / "README.md" and len(named) == 1), f"{page.name}: {named}"
