"""From the four published TinyGPT-V files to a bundle for :mod:`tinygptv.runtime`. Runs on a workstation, once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Exported, export_bundle

__all__ = ["Exported", "export_bundle"]


def __getattr__(name: str) -> object:
    """Import torch only when something of it is needed: the command must start, and say so, where it is absent."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import bundle

    return getattr(bundle, name)
