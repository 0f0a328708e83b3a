"""Bundles that are exported, and what ``verify`` writes of them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from tinygptv.runtime.bundle.checksums import damaged_files
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE

from .write_path import HERE, WritePath

GOLDEN = HERE.parent / "golden" / "stage4"
EXPORT = [sys.executable, "-m", "tinygptv.export"]
SOURCES = [
    *("--phi", str(GOLDEN / "phi-2"), "--vision", str(GOLDEN / "eva_vit_g.pth")),
    *("--qformer", str(GOLDEN / "blip2_pretrained_flant5xxl.pth")),
    *("--checkpoint", str(GOLDEN / "TinyGPT-V_for_Stage4.pth"), "--stage", "4"),
    *("--architecture", str(GOLDEN / "architecture.json")),
]


class ExportNew(WritePath):
    """A bundle where there was none."""

    options: ClassVar[list[str]] = ["--precision", "fp32", "--calibration", "none"]

    def command(self, folder: Path, again: bool = False) -> list[str]:
        more = ["--overwrite"] if again else []
        return [*EXPORT, *SOURCES, "-o", str(folder / "stage4"), *self.options, *more]


class ExportOver(ExportNew):
    """A bundle in place of another."""

    def prepare(self, folder: Path) -> None:
        shutil.copytree(DEMO_BUNDLE, folder / "stage4")

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return super().command(folder, again=True)

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """Between two renames, the old one is beside its place: the next export puts it back."""
        retired = folder / ".stage4.replaced"
        if (folder / "stage4").exists() or not retired.is_dir():
            return False
        return not damaged_files(retired, read_manifest(retired).files)


class ExportInt4(ExportNew):
    """A bundle whose calibration keeps rounded weights in files of its own."""

    options: ClassVar[list[str]] = ["--precision", "int4"]


class Verify(WritePath):
    """Both files that ``verify`` writes, over earlier ones."""

    resumes = True

    def prepare(self, folder: Path) -> None:
        self._run(ExportNew().command(folder), folder)
        self._run(self.command(folder), folder)  # the first plot of a home lists its fonts
        for name in ("found.json", "found.png"):
            (folder / name).write_text("from before", encoding="utf-8")

    def command(self, folder: Path, again: bool = False) -> list[str]:
        written = ["--json", str(folder / "found.json"), "--plot", str(folder / "found.png")]
        return [*EXPORT, "verify", str(folder / "stage4"), *SOURCES, *written]

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """Each of the two is the old or the new one."""
        return all(
            self.content(folder / name) in (b"from before", self.content(finished / name))
            for name in ("found.json", "found.png")
        )

    def content(self, path: Path) -> bytes:
        whole = path.read_bytes()
        return re.sub(rb'"(seconds|peak_\w+)": [\d.]+', b"", whole) if path.name == "found.json" else whole
