"""Small vision-language models on Phi-2, on this machine's CPU, offline: ``from tinygptv import TinyGPTV``.

The names are those of :mod:`tinygptv.runtime`, imported when one of them is asked for: importing this package loads
nothing heavy.
"""

from pkgutil import extend_path
from typing import TYPE_CHECKING

# In a checkout, Python may find this folder before the installed package that holds the modules.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from .runtime import *  # noqa: F403


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # only here: it takes longer than most of the runtime's modules together

        return version("tinygptv")
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tinygptv.runtime as runtime  # an import statement, which programs that freeze others look for

    if name not in runtime.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(runtime, name)


def __dir__() -> list[str]:
    import tinygptv.runtime as runtime

    return [*globals(), "__version__", *runtime.__all__]
