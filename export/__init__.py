"""Converts published files to a bundle for :mod:`tinygptv.runtime`. Runs on a workstation, once."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Exported, export_bundle
    from .verify.verification import Verification, verify_bundle

__all__ = ["Exported", "Verification", "export_bundle", "verify_bundle"]


def __getattr__(name: str) -> object:
    """Import torch only when it is needed: the command must start without torch, to report that it is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".verify.verification" if "verif" in name.lower() else ".bundle", __name__)
    return getattr(module, name)
