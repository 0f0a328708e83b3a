"""Every command that writes, by name."""

from __future__ import annotations

from .answering import Cache, CacheOver, Caption, CaptionOn, Draw, DrawOver, Save, SaveAgain, Sidecars
from .exporting import ExportInt4, ExportNew, ExportOver, Verify
from .tuning import AskTuning, Tune, TuneCache, TuneStale, Undo, UndoCache
from .write_path import WritePath

PATHS: dict[str, WritePath] = {
    "export-int4": ExportInt4(),
    "verify": Verify(),
    "export": ExportNew(),
    "export-over": ExportOver(),
    "tune": Tune(),
    "tune-cache": TuneCache(),
    "tune-stale": TuneStale(),
    "ask-tuning": AskTuning(),
    "undo": Undo(),
    "undo-cache": UndoCache(),
    "caption": Caption(),
    "sidecars": Sidecars(),
    "caption-on": CaptionOn(),
    "draw": Draw(),
    "draw-over": DrawOver(),
    "save": Save(),
    "save-again": SaveAgain(),
    "cache": Cache(),
    "cache-over": CacheOver(),
}
"""Those that take longest come first: several run at once."""
