"""Reads the published files, recognises the model, and accounts for every key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict, Unpack

from tinygptv.runtime.errors import ExportError

from .families import STAGES
from .model import Model
from .siblings import open_sibling
from .tinygpt_v import open_tinygpt_v

File = str | os.PathLike[str]


class SourceFiles(TypedDict, total=False):
    """The published files of one model, of any family."""

    model: File | None
    """Folder of LLaVA-Phi, Mipha, TinyLLaVA or Bunny."""
    tower: File | None
    """Folder of the vision tower, where ``model`` needs one."""
    phi: File | None
    """Folder of Phi-2: for TinyGPT-V, or if ``model`` contains adapters only."""
    vision: File | None
    """``eva_vit_g.pth``."""
    qformer: File | None
    """``blip2_pretrained_flant5xxl.pth``."""
    checkpoint: File | None
    """``TinyGPT-V_for_StageN.pth``."""
    stage: int | None
    """Stage of ``checkpoint``, 1 to 4."""
    architecture: File | None
    """JSON with what TinyGPT-V's files don't tell, for other than the published sizes."""


TINYGPT_V_FILES = ("phi", "vision", "qformer", "checkpoint", "stage")
SIBLING_FILES = ("model", "tower", "phi")


def open_model(**sources: Unpack[SourceFiles]) -> Model:
    """Open the published files of one model.

    Raises:
        ExportError: :func:`problem_with` the sources, or a file cannot be read, or a key is missing, unknown or
            misshapen.
    """
    if problem := problem_with(**sources):
        raise ExportError(problem)
    paths = {name: Path(value) for name, value in sources.items() if isinstance(value, str | os.PathLike)}
    if "model" in paths:
        return open_sibling(paths["model"], paths.get("tower"), paths.get("phi"))
    stage = sources["stage"]
    assert isinstance(stage, int)
    phi, vision, qformer, checkpoint = (paths[name] for name in ("phi", "vision", "qformer", "checkpoint"))
    return open_tinygpt_v(phi, vision, qformer, checkpoint, stage, paths.get("architecture"))


def problem_with(**sources: Unpack[SourceFiles]) -> str | None:
    """What is missing from the files or given without need; None if nothing is."""
    given = {name for name, value in sources.items() if value is not None}
    if unknown := given - set(SourceFiles.__annotations__):
        raise TypeError(f"unknown source files: {', '.join(sorted(unknown))}")
    if "model" in given:
        return _problem(given - set(SIBLING_FILES), "not needed with --model; leave it out")
    if "tower" in given:
        return "--tower needs --model"
    if missing := set(TINYGPT_V_FILES) - given:
        return _problem(missing, "missing; TinyGPT-V needs all of its files and --stage, the other families --model")
    if sources["stage"] not in STAGES:
        return f"stage is {sources['stage']!r}; expected one of {', '.join(map(str, STAGES))}"
    return None


def _problem(names: set[str], what: str) -> str | None:
    return f"{', '.join(f'--{name}' for name in sorted(names))}: {what}" if names else None
