"""What is installed on a laptop: the runtime alone, without the exporter and without anything heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import QUESTION, plain_environment
from tinygptv.runtime import TinyGPTV

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "runtime"
HEAVY = (
    *("torch", "onnx", "transformers", "safetensors", "huggingface_hub"),
    *("filelock", "google", "pillow_heif", "pyarrow", "tqdm"),
)
"""What no answer needs: the exporter's packages, tokenizers' network, and those for tuning, locks and progress bars."""
THIRD_PARTY = {"filelock", "google", "numpy", "onnxruntime", "PIL", "pillow_heif", "pyarrow", "tokenizers", "tqdm"}
"""Imported somewhere; ``google`` is protobuf's, and two come with an extra."""
EXTRAS = {
    "app": {"PySide6", "psutil"},
    "cluster": {"fsspec", "ray"},
    "commands": {"ray"},
    "mcp": {"anyio", "mcp", "mcp_types", "pydantic"},
    "server": {"h11", "llguidance", "prometheus_client", "starlette", "uvicorn"},
}
"""What a folder of the runtime needs besides."""
RANKS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("cancel", "folder", "system"),
    ("bundle",),
    # Stages, which do not know each other.
    ("boxes", "language", "tuning", "vision"),
    ("answer", "drawing", "memory_needs", "options", "pointing"),
    ("astream", "open_sessions"),
    # What puts them together.
    ("engine",),
    ("chat", "many"),
    ("loading",),
    ("model",),
    ("captioning",),
    ("__init__", "diagnosis"),
    # What people touch; of these, only ``commands`` starts the others.
    ("app", "cluster", "mcp", "server"),
    ("commands",),
    ("cli",),
)
"""Folders and modules of the runtime: each may import its own folder's modules, and those of the ranks above it."""
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def foreign_imports(path: Path) -> Iterator[str]:
    """Every package but the runtime that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def runtime_modules() -> list[Path]:
    return sorted(RUNTIME.rglob("*.py"))


def name_of(path: Path) -> str:
    """A module's name: ``model``, ``server.app``, and ``server`` for what makes it a package."""
    inner = path.relative_to(RUNTIME).with_suffix("").parts
    return ".".join(inner[:-1] if len(inner) > 1 and inner[-1] == "__init__" else inner)


def own_imports(path: Path) -> set[str]:
    """The modules of the runtime that one of them imports, by their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            if not base.is_dir():
                found.add(name_of(base.with_suffix(".py")))
                continue
            for alias in node.names:  # of a folder: its modules, or what its __init__ has
                module = base / f"{alias.name}.py"
                found.add(name_of(module if module.is_file() else base / "__init__.py"))
    return found


@pytest.mark.parametrize("path", runtime_modules(), ids=name_of)
def test_imports_flow_one_way(path: Path) -> None:
    folder = name_of(path).partition(".")[0]
    assert folder in RANK, f"{folder} is new: say in RANKS where it stands"
    imported = {name.partition(".")[0] for name in own_imports(path)} - {folder}
    assert not {name for name in imported if RANK[name] >= RANK[folder]}


def test_no_module_needs_itself() -> None:
    rest = {name_of(path): own_imports(path) for path in runtime_modules()}
    while ready := {name for name, uses in rest.items() if not uses & rest.keys()}:
        rest = {name: uses for name, uses in rest.items() if name not in ready}
    assert rest == {}


@pytest.mark.parametrize("path", runtime_modules(), ids=name_of)
def test_the_runtime_imports_nothing_else(path: Path) -> None:
    foreign = set(foreign_imports(path)) - sys.stdlib_module_names
    # Neither tinygptv.export nor anything it needs.
    assert foreign <= THIRD_PARTY | EXTRAS.get(path.parent.name, set())


def test_an_answer_needs_nothing_of_the_exporter(
    golden_bundle: Callable[[int, str], Path], photo: Path, tmp_path: Path
) -> None:
    """In an environment where all of it is installed."""
    script = """
import json, sys
from tinygptv.runtime import TinyGPTV
with TinyGPTV.load(sys.argv[1]) as model:
    text = model.ask(sys.argv[2], sys.argv[3], max_new_tokens=12).text
print(json.dumps([text, sorted({name.split(".")[0] for name in sys.modules}), list(sys.modules)]))
"""
    text, packages, modules = run_script(script, str(golden_bundle(3, "fp32")), str(photo), QUESTION, home=tmp_path)
    assert text
    assert {"onnxruntime", "tokenizers", "numpy", "PIL"} <= set(packages)
    assert not set(HEAVY) & set(packages)
    assert not [name for name in modules if name.startswith("tinygptv.export")]


def test_importing_does_nothing(tmp_path: Path) -> None:
    """What numpy, Pillow and tokenizers do while they are imported is theirs, so they come first."""
    script = """
import json, logging, os, signal, sys, threading, warnings
environment = dict(os.environ)
import numpy, PIL.Image, tokenizers
def state():
    tasks = "/proc/self/task"
    return {
        "threads": threading.active_count(),
        "native threads": len(os.listdir(tasks)) if os.path.isdir(tasks) else 0,
        "open files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "log handlers": [repr(h) for name in (None, *logging.root.manager.loggerDict)
                         for h in logging.getLogger(name).handlers],
        "log level": logging.root.level,
        "warning filters": [repr(filter) for filter in warnings.filters],
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "numpy errors": numpy.geterr(),
        "encodings": [sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors],
        "folder": os.getcwd(),
        "path": sys.path,
    }
before = state()
import tinygptv.runtime
import tinygptv.runtime.cli
after = state()
print(json.dumps([before, after, environment, dict(os.environ), list(sys.modules)]))
"""
    # Not this process's own variables, which importing the package may have changed here already.
    bare = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    before, after, environment, environment_after, modules = run_script(script, home=tmp_path, environment=bare)
    assert after == before
    assert environment_after == environment
    assert "tinygptv.runtime.model" in modules
    assert not [name for name in modules if name.split(".")[0] in ("onnxruntime", *HEAVY)]


def run_script(script: str, *arguments: str, home: Path, environment: dict[str, str] | None = None) -> list:
    """What a script in a process of its own prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        cwd=home,
        env=plain_environment(home) if environment is None else environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        f"tinygptv/{part}/{path.relative_to(ROOT / part).as_posix()}"
        for part in ("runtime", "export")
        for path in (ROOT / part).rglob("*.py")
    }
    assert len(wanted) > 30
    for data in ("runtime/demo", "runtime/server/web", "runtime/app/artwork", "export/calibration"):
        files = (path for path in (ROOT / data).rglob("*") if path.is_file())
        wanted |= {f"tinygptv/{data}/{path.relative_to(ROOT / data).as_posix()}" for path in files}
    wanted |= {
        "tinygptv/__init__.py",
        "tinygptv/py.typed",
        "tinygptv/runtime/py.typed",
        "tinygptv/export/py.typed",
        "tinygptv/export/costs.json",
    }
    assert {
        name for name in held if ".dist-info/" not in name and ".data/data/share/" not in name
    } == wanted  # no tests, no benchmarks
    assert any(name.endswith("/LICENSE") for name in held)


def test_a_clean_environment_answers(
    wheel: Path, golden_bundle: Callable[[int, str], Path], speaking_model: TinyGPTV, photo: Path, tmp_path: Path
) -> None:
    """Base install of the wheel in an environment that has nothing else; pip takes the dependencies from its index."""
    home, folder = tmp_path / "home", tmp_path / "environment"
    home.mkdir()
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")

    def run(program: str, *arguments: str, timeout: float = 60) -> str:
        done = subprocess.run(
            [programs / program, *arguments],
            capture_output=True,
            cwd=home,
            env=plain_environment(home),
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    run("python", "-m", "pip", "install", "--quiet", str(wheel), timeout=300)
    looked_for = "import importlib.util as u, sys; print([bool(u.find_spec(name)) for name in sys.argv[1:]])"
    assert run("python", "-c", looked_for, "numpy", "torch", "onnx", "transformers").split() == [
        *("[True,", "False,", "False,", "False]"),
    ]
    where = run("python", "-c", "import tinygptv.runtime; print(tinygptv.runtime.__file__)")
    assert Path(where.strip()).is_relative_to(folder)  # not the checkout
    document = json.loads(
        run(
            *("tinygptv", "ask", str(photo), QUESTION, "--bundle", str(golden_bundle(3, "fp32"))),
            *("--max-new-tokens", "12", "--json"),
        )
    )
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=12)
    assert (document["text"], document["token_ids"]) == (answer.text, list(answer.token_ids))
    # The exporter is installed too, but what it needs is not.
    exporter = subprocess.run(
        [programs / "tinygptv-export", "--help"],
        capture_output=True,
        cwd=home,
        env=plain_environment(home),
        timeout=60,
        check=False,
    )
    assert exporter.returncode == 1
    message = exporter.stderr.decode()
    assert message.count("\n") == 1
    assert f'run: pip install "{wheel}[export]"' in message
