"""Tab completion in a chat: commands, the model's task tags, and paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

_SPECIAL = re.compile(r"([\s'\"\\()\[\]&;|<>$`!*?])")
_WITH_PATH = ("/image", "/save")


def install(commands: Sequence[str], tasks: Sequence[str]) -> None:
    """Enable completion in ``input()``, if Python has readline.

    Args:
        commands: Commands such as ``/image``.
        tasks: Task tags of the model.
    """
    if sys.platform == "win32":
        return  # Python has no readline there; the console has arrow keys and history of its own
    try:
        import readline
    except ImportError:  # Python was built without it
        return
    readline.set_completer_delims(" ")
    readline.set_completer(_Completer(readline.get_line_buffer, readline.get_endidx, commands, tasks))
    is_libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


class _Completer:
    """The completer for readline, which asks for one candidate at a time, for the last word of the line."""

    def __init__(
        self, line: Callable[[], str], end: Callable[[], int], commands: Sequence[str], tasks: Sequence[str]
    ) -> None:
        self._line, self._end = line, end
        self._commands, self._tasks = commands, tasks
        self._found: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        if state == 0:
            typed = self._line()[: self._end()]
            before = len(typed) - len(text)  # what readline takes for other words stays as it is
            found = completions(typed, self._commands, self._tasks)
            self._found = [line[before:] for line in found if line.startswith(typed[:before])]
        return self._found[state] if state < len(self._found) else None


def completions(typed: str, commands: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The possible completions of a line.

    Args:
        typed: The line up to the cursor.
        commands: Commands such as ``/image``.
        tasks: Task tags of the model.
    """
    name, blank, rest = typed.partition(" ")
    if blank and name in _WITH_PATH:
        start = rest.rfind(" ", 0, len(rest) - len(_last_path(rest))) + 1
        return [f"{name} {rest[:start]}{path}" for path in _paths(rest[start:])]
    if blank:
        return []
    words = [f"{word} " for word in (*commands, *tasks) if word.startswith(typed)] if typed else []
    return words or (_paths(typed) if typed.startswith(("/", "~", ".")) else [])


def _last_path(rest: str) -> str:
    """The last of several paths, including blanks escaped with a backslash."""
    last: str = re.findall(r"(?:\\.|[^\\ ])*$", rest)[0]
    return last


def _paths(typed: str) -> list[str]:
    """Files and folders whose paths begin with the typed text; blanks and the like are escaped with backslashes."""
    plain = typed if sys.platform == "win32" else re.sub(r"\\(.)", r"\1", typed)
    folder, name = os.path.split(plain)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            path = os.path.join(folder, entry.name)
            escaped = path if sys.platform == "win32" else _SPECIAL.sub(r"\\\1", path)
            found.append(escaped + (os.sep if entry.is_dir() else ""))
    return found
