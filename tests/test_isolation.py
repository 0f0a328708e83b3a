"""What is installed on a laptop: the runtime alone, without the exporter and without anything heavy."""

from __future__ import annotations

import ast
import json
import os
import shutil
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
HEAVY = ("torch", "onnx", "transformers", "safetensors", "tqdm")
THIRD_PARTY = {"numpy", "onnxruntime", "PIL", "tokenizers"}
ALLOWED = {
    # Leaves.
    "errors": set(),
    "architecture": set(),
    "memory": set(),
    "machine": set(),
    "external_data": set(),
    "manifest": {"architecture", "errors"},
    "integrity": {"errors", "manifest"},
    "boxes": {"errors"},
    "cancel": {"errors"},
    # Stages, from the image and the question to the answer: each knows leaves, and what it is itself made of.
    "session": {"errors", "manifest"},
    "image": {"errors", "manifest"},
    "image_cache": {"errors", "manifest"},
    "vision": {"cancel"},
    "prompt": {"errors", "manifest"},
    "embeds": {"architecture", "errors"},
    "kv_cache": {"architecture", "errors"},
    "decoder": {"architecture", "cancel", "errors", "kv_cache", "session"},
    "generate": {"cancel", "decoder", "errors"},
    "sampling": {"errors", "generate"},
    "batch": {"decoder", "kv_cache"},
    "detokenize": {"errors"},
    "answer": {"cancel", "detokenize", "errors"},
    "astream": {"answer", "cancel", "errors"},
    "prefix_cache": {"answer", "kv_cache"},
    "drawing": {"boxes", "errors", "image"},
    # What a bundle is tuned to, and its graphs opened: tuned or not, all or one at a time.
    "tuned": {"integrity", "machine", "manifest", "session"},
    "tuning": {"errors", "external_data", "integrity", "manifest", "session", "tuned"},
    "graphs": {"cancel", "decoder", "errors", "integrity", "manifest", "memory", "session", "tuned", "vision"},
    # The module that composes them into answers, conversations of those, and what users call.
    "engine": {
        *("answer", "cancel", "detokenize", "embeds", "errors", "generate", "graphs", "image", "image_cache"),
        *("manifest", "prefix_cache", "prompt", "sampling"),
    },
    "chat": {"answer", "astream", "cancel", "engine", "prefix_cache", "sampling"},
    "model": {
        *("answer", "astream", "batch", "cancel", "chat", "decoder", "embeds", "engine", "errors", "generate"),
        *("graphs", "image", "image_cache", "manifest", "sampling", "session", "tuned", "tuning", "vision"),
    },
    "doctor": {"errors", "integrity", "machine", "manifest", "session", "tuned"},
    "cli": {"answer", "doctor", "engine", "errors", "manifest", "memory", "model", "tuning"},
    "__init__": {"answer", "astream", "cancel", "chat", "errors", "image", "model", "sampling"},
}
"""Which modules of the runtime each one may import: stages do not know each other, only ``engine`` knows them all."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too; those of its own package begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots, module = "." * node.level, node.module or ""
            # "from . import x" names modules; "from .x import y" and "from x import y" name what is in one.
            yield from [dots + module] if module else [dots + alias.name for alias in node.names]


def runtime_modules() -> list[Path]:
    return sorted(RUNTIME.rglob("*.py"))


@pytest.mark.parametrize("path", runtime_modules(), ids=lambda path: path.stem)
def test_stages_know_only_what_they_may(path: Path) -> None:
    own = {name for name in imports(path) if name.startswith(".")}
    assert path.stem in ALLOWED, f"{path.name} is new: say in ALLOWED what it may import"
    assert own <= {f".{name}" for name in ALLOWED[path.stem]}


@pytest.mark.parametrize("path", runtime_modules(), ids=lambda path: path.stem)
def test_the_runtime_imports_nothing_else(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path) if not name.startswith(".")} - sys.stdlib_module_names
    assert foreign <= THIRD_PARTY  # neither tinygptv.export nor anything it needs


def test_the_graph_above_is_the_present_one() -> None:
    """Nothing in it is gone, and it has no circles."""
    assert set(ALLOWED) == {path.stem for path in runtime_modules()}
    for path in runtime_modules():
        assert {f".{name}" for name in ALLOWED[path.stem]} == {n for n in imports(path) if n.startswith(".")}
    rest = {name: set(uses) for name, uses in ALLOWED.items()}
    while ready := {name for name, uses in rest.items() if not uses}:
        rest = {name: uses - ready for name, uses in rest.items() if name not in ready}
    assert rest == {}


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: no build/ of earlier versions gets into it, or is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "golden")
    source = shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        f"tinygptv/{part}/{path.relative_to(ROOT / part).as_posix()}"
        for part in ("runtime", "export")
        for path in (ROOT / part).rglob("*.py")
    }
    assert len(wanted) > 30
    for data in ("runtime/demo", "export/calibration"):
        wanted |= {f"tinygptv/{data}/{path.name}" for path in (ROOT / data).iterdir()}
    wanted |= {"tinygptv/runtime/py.typed", "tinygptv/export/py.typed"}
    assert {name for name in held if ".dist-info/" not in name} == wanted  # no tests, no benchmarks
    assert any(name.endswith("/LICENSE") for name in held)
    assert "tinygptv/__init__.py" not in held  # a namespace package


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
    assert "pip install 'tinygptv[export]'" in message
