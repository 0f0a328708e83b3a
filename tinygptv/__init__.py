"""Small vision-language models on Phi-2, on this machine's CPU, offline: ``from tinygptv import TinyGPTV``.

The names are those of :mod:`tinygptv.runtime`, imported when one of them is asked for: importing this package loads
nothing heavy.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("tinygptv")
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    runtime = import_module(".runtime", __name__)
    if name not in runtime.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(runtime, name)


def __dir__() -> list[str]:
    return [*globals(), "__version__", *import_module(".runtime", __name__).__all__]
