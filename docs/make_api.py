"""Writes docs/api.md from the docstrings of the runtime's public names: `python docs/make_api.py`."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = HERE.parent / "runtime"
EXTRA_MODULES = ("boxes", "captioning", "pointing", "drawing")
"""Public, but not among the names of ``tinygptv`` itself."""
ON_A_CLUSTER = ("cluster.dataset", "caption_dataset")
"""What ``tinygptv.runtime.cluster`` hands on."""
HEADER = """# API
Written by `docs/make_api.py` from the docstrings; all arrays are numpy's, shapes in brackets.
"""


def public_names() -> Iterator[tuple[str, str]]:
    """(module, name) of everything public, in the order of the modules' own definitions."""
    package = ast.parse((RUNTIME / "__init__.py").read_text(encoding="utf-8"))
    for node in package.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)
    for module in EXTRA_MODULES:
        for node in ast.parse((RUNTIME / f"{module}.py").read_text(encoding="utf-8")).body:
            name = getattr(node, "name", "_")
            if not name.startswith("_"):
                yield module, name
    yield ON_A_CLUSTER


def describe(module: str, name: str) -> str:
    """One class, function or constant as Markdown."""
    where = f"tinygptv.runtime.{module}" if module in EXTRA_MODULES else "tinygptv"
    if (module, name) == ON_A_CLUSTER:
        where = "tinygptv.runtime.cluster"
    body = ast.parse((RUNTIME / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    for number, node in enumerate(body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return "\n".join([f"## {name}", f"`class {where}.{name}`", "", *class_lines(node)])
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return "\n".join([f"## {name}", *function_lines(node, f"{where}.")])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            following = body[number + 1] if number + 1 < len(body) else None
            return "\n".join([f"## {name}", f"`{ast.unparse(node)}`", "", *text_of(following), ""])
    raise LookupError(f"{module}.{name} is neither class, function nor constant of its module")


def class_lines(node: ast.ClassDef) -> Iterator[str]:
    """A class's docstring, its fields and its public methods with theirs."""
    yield from docstring(node)
    yield from field_lines(node.body)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            yield from field_lines(part.body)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
            yield f"### {node.name}.{part.name}"
            yield from function_lines(part, "")


def field_lines(body: list[ast.stmt]) -> Iterator[str]:
    """The fields of a dataclass, with their defaults; of another class, what it sets on itself under a public name."""
    for number, part in enumerate(body):
        if not isinstance(part, ast.AnnAssign):
            continue
        field = ast.unparse(part)
        if isinstance(part.target, ast.Attribute):
            field = f"{part.target.attr}: {ast.unparse(part.annotation)}"
        if not field.startswith("_"):
            following = body[number + 1] if number + 1 < len(body) else None
            yield from [f"- `{field}`  ", *(f"  {line}" for line in text_of(following)), ""]


def function_lines(node: ast.FunctionDef, prefix: str) -> Iterator[str]:
    """A signature and its docstring; a property is shown as the attribute that it looks like."""
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        returns = f": {ast.unparse(node.returns)}" if node.returns else ""
        yield f"`{prefix}{node.name}{returns}`"
    else:
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"`{prefix}{node.name}({ast.unparse(node.args)}){returns}`"
    yield ""
    yield from docstring(node)


def docstring(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """Google's sections as lists; everything else as it stands."""
    text = ast.get_docstring(node)
    if text is None:
        return
    section = ""
    for line in plain(text).splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Example:"):
            section = line
            yield from [f"**{line.removesuffix(':')}**", ""]
        elif section in ("Args:", "Raises:") and line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(": ")
            yield f"- `{name}`: {rest}"
        elif section == "Example:":
            yield line
        else:
            yield line.strip()
    yield ""


def plain(text: str) -> str:
    """Sphinx's markup as Markdown's."""
    return re.sub(r":\w+:`[.~]?", "`", text.replace("``", "`"))


def text_of(node: ast.stmt | None) -> list[str]:
    """The string that follows a definition, as its documentation."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return plain(inspect.cleandoc(node.value.value)).splitlines()
    return []


def reference() -> str:
    """All of docs/api.md."""
    return "\n".join([HEADER, *(describe(*public) for public in public_names())]).rstrip() + "\n"


if __name__ == "__main__":
    (HERE / "api.md").write_text(reference(), encoding="utf-8")
    sys.exit(0)
