"""What comes of questions: captions, pictures of boxes, saved chats, embeddings that are kept."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from .tracing import Done
from .write_path import RED, TEAL, TINYGPTV, WritePath


class Caption(WritePath):
    """A new file of captions."""

    resumes = True
    more: ClassVar[list[str]] = []

    def prepare(self, folder: Path) -> None:
        for name, source in (("a.png", RED), ("b/c.png", TEAL), ("d.png", RED), ("d.jpg", TEAL)):
            (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / "pictures" / name)

    def command(self, folder: Path, again: bool = False) -> list[str]:
        places = [str(folder / "pictures"), "-o", str(folder / "captions.jsonl")]
        return [*TINYGPTV, "caption", *places, "--threads", "1", "--batch-size", "2", *self.more]

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """The first lines, of which the last may be cut; texts beside pictures only of those that have a line."""
        there = folder / "captions.jsonl"
        found, whole = there.read_bytes() if there.exists() else b"", (finished / "captions.jsonl").read_bytes()
        whole = whole.replace(*(json.dumps(str(place / "pictures")).encode() for place in (finished, folder)))
        if not whole.startswith(found):
            return False
        texts = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.txt") if _is_visible(path)}
        return all((finished / path).read_bytes() == text for path, text in texts.items())

    def objection(self, folder: Path, done: Done) -> str | None:
        lines = (folder / "captions.jsonl").read_bytes().count(b"\n") if (folder / "captions.jsonl").exists() else 0
        told = re.search(r"(\d+) captioned, (\d+) done before", done.err)
        if told and sum(map(int, told.groups())) != lines:
            return f"{lines} lines are there"
        return None


class Sidecars(Caption):
    """Captions beside their pictures too."""

    more: ClassVar[list[str]] = ["--sidecar"]


class CaptionOn(Sidecars):
    """Going on from two captions and a half; a text of an earlier caption is replaced."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._run(Sidecars().command(folder), folder)
        captions = folder / "captions.jsonl"
        first, second, third, _ = captions.read_bytes().splitlines(keepends=True)
        captions.write_bytes(first + second + third[:40])
        for name in ("d.png.txt", "d.jpg.txt"):
            (folder / "pictures" / name).unlink()


class Draw(WritePath):
    """A picture of boxes where there was none."""

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return [*TINYGPTV, "ask", str(RED), "[detection] triangle", "--draw", str(folder / "drawn.png"), "--threads=1"]


class DrawOver(Draw):
    """A picture of boxes in place of another."""

    def prepare(self, folder: Path) -> None:
        shutil.copy(TEAL, folder / "drawn.png")


class Save(WritePath):
    """``/save`` of a chat. Nothing is asked: the turns are none of the file's business."""

    name: ClassVar[str] = "chat.json"

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return [*TINYGPTV, "chat", str(RED), "--threads", "1"]

    def typed(self, folder: Path) -> str:
        return f"what shape is in the image?\n/save {folder / self.name}\n"


class SaveAgain(Save):
    """``/save`` to the file that the same chat has saved before."""

    name: ClassVar[str] = "chat.txt"
    resumes = True

    def typed(self, folder: Path) -> str:
        save = f"/save {folder / self.name}\n"
        return f"what shape is in the image?\n{save}what colour is it?\n{save}"

    def command(self, folder: Path, again: bool = False) -> list[str]:
        if again:
            (folder / self.name).unlink(missing_ok=True)  # another chat's file is not replaced
        return super().command(folder)

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """The first turn, or both."""
        whole = (finished / self.name).read_bytes()
        first = whole[: whole.index(b"\n\n") + 2]
        return not (folder / self.name).exists() or (folder / self.name).read_bytes() in (first, whole)


class Cache(WritePath):
    """Embeddings of an image that are kept, or not; the answer is the same."""

    goes_on = True
    SCRIPT = """
import sys
from tinygptv.runtime import TinyGPTV, TinyGPTVError
try:
    with TinyGPTV.load(threads=1, image_cache=sys.argv[1]) as model:
        print(model.ask(sys.argv[2], "[caption]").text)
except TinyGPTVError as error:
    sys.exit(f"tinygptv: {error}")
"""

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return [sys.executable, "-c", self.SCRIPT, str(folder / "images"), str(RED)]

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """The folders are made one after the other."""
        return not any(path.is_file() and _is_visible(path) for path in folder.rglob("*"))


class CacheOver(Cache):
    """Damaged embeddings are replaced."""

    def prepare(self, folder: Path) -> None:
        self._run(self.command(folder), folder)
        (entry,) = folder.glob("images/*/*")
        entry.write_bytes(entry.read_bytes()[:-1])


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")
