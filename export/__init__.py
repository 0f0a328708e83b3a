"""From the four published TinyGPT-V files to a bundle for :mod:`tinygptv.runtime`. Runs on a workstation, once."""

from .bundle import Exported, export_bundle

__all__ = ["Exported", "export_bundle"]
