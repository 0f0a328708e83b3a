"""The commands that write: what is there before, and which states an interruption may leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from tinygptv.runtime.bundle.checksums import damaged_files
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.tuning.find import FOLDER, INDEX, Tuned, is_intact, read_index

from .tracing import Done, run

HERE = Path(__file__).resolve().parent
RED, TEAL = (HERE.parent / "images" / name for name in ("red_triangle.png", "teal_circle.png"))
GOLDEN = HERE.parent / "golden" / "stage4"
TINYGPTV = [sys.executable, "-m", "tinygptv.runtime.cli"]
EXPORT = [sys.executable, "-m", "tinygptv.export"]
SOURCES = [
    *("--phi", str(GOLDEN / "phi-2"), "--vision", str(GOLDEN / "eva_vit_g.pth")),
    *("--qformer", str(GOLDEN / "blip2_pretrained_flant5xxl.pth")),
    *("--checkpoint", str(GOLDEN / "TinyGPT-V_for_Stage4.pth"), "--stage", "4"),
    *("--architecture", str(GOLDEN / "architecture.json")),
]


def environment(folder: Path) -> dict[str, str]:
    """For commands whose home is within ``folder``; so many threads and lines of progress bars each time."""
    spoken = ("TINYGPTV_", "ORT_", "XDG_", "PYTHON", "LC_", "LANG", "TQDM_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(spoken)}
    fixed = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    fixed["MPLCONFIGDIR"] = str(folder.parent / "matplotlib")  # it would write its list of fonts to the home folder
    return kept | fixed | {"HOME": str(folder / "home"), "TQDM_MININTERVAL": "1e9", "ORT_DISABLE_TELEMETRY": "1"}


class WritePath(ABC):
    """One command that writes into its folder. It is given a new folder with :meth:`prepare` for each call that fails.

    After an error the folder is as before or as after an undisturbed run, to the bit, and one line names a file and
    the reason. After a kill, and where the very removal of a file failed, all that is not hidden is; and the next run
    ends as an undisturbed one.
    """

    goes_on: ClassVar[bool] = False
    """Whether the command does its work, with the same output, even if nothing can be written."""

    def prepare(self, folder: Path) -> None:
        """What is there before; the folder is new."""
        return

    @abstractmethod
    def command(self, folder: Path, again: bool = False) -> list[str]:
        """The command with its arguments; ``again`` if it was interrupted before."""

    def typed(self, folder: Path) -> str:
        """What it reads from stdin."""
        return ""

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """Whether a state in between is right, hidden files aside: after a kill, and where :attr:`resumes`."""
        return False

    resumes: ClassVar[bool] = False
    """Whether :meth:`is_kept` holds after errors too: what was complete stays, and the same command goes on."""

    def is_as_good(self, folder: Path, finished: Path) -> bool:
        """Whether the command may end with this, in place of what an undisturbed run makes."""
        return False

    def content(self, path: Path) -> bytes:
        """Of a file, without what is different each time."""
        return path.read_bytes()

    def objection(self, folder: Path, done: Done) -> str | None:
        """What else is wrong after an error."""
        return None

    def _run(self, command: list[str], folder: Path) -> None:
        done = run(command, environment(folder), folder)
        assert done.status == 0, done.err


class ExportNew(WritePath):
    """A bundle where there was none."""

    def command(self, folder: Path, again: bool = False) -> list[str]:
        more = ["--overwrite"] if again else []
        return [*EXPORT, *SOURCES, "-o", str(folder / "stage4"), "--precision", "fp32", "--calibration", "none", *more]


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

    def command(self, folder: Path, again: bool = False) -> list[str]:
        more = ["--overwrite"] if again else []
        return [*EXPORT, *SOURCES, "-o", str(folder / "stage4"), "--precision", "int4", *more]


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


class Tune(WritePath):
    """Packed weights in the bundle's own files."""

    more: ClassVar[list[str]] = []

    def prepare(self, folder: Path) -> None:
        shutil.copytree(DEMO_BUNDLE, folder / "bundle")

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return [*TINYGPTV, "tune", str(folder / "bundle"), *self.more]

    def is_kept(self, folder: Path, finished: Path) -> bool:
        """The bundle is undamaged, and what is said to be tuned is."""
        bundle = folder / "bundle"
        manifest = read_manifest(bundle)
        for home in (bundle, *(folder / "home/.cache/tinygptv/tuned").glob("*")):
            if (home / FOLDER / INDEX).exists():
                tuned = read_index(home, bundle, manifest)
                if not isinstance(tuned, Tuned) or not is_intact(tuned, manifest):
                    return False
        return not damaged_files(bundle, manifest.files)


class TuneCache(Tune):
    """Packed weights in the user's cache."""

    more: ClassVar[list[str]] = ["--cache"]


class TuneStale(Tune):
    """In place of packed weights that another version made. They are given up first: there is room for one copy."""

    resumes = True

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._run(super().command(folder), folder)
        index = folder / "bundle" / FOLDER / INDEX
        document = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps(document | {"version": 0}), encoding="utf-8")

    def is_kept(self, folder: Path, finished: Path) -> bool:
        index = folder / "bundle" / FOLDER / INDEX
        if index.exists() and json.loads(index.read_text(encoding="utf-8"))["version"] == 0:
            return not damaged_files(folder / "bundle", read_manifest(folder / "bundle").files)
        return super().is_kept(folder, finished)


class Undo(Tune):
    """Packed weights are taken away again, file by file: there need not be room for all of them."""

    resumes = True
    more: ClassVar[list[str]] = ["--undo"]

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._run([*TINYGPTV, "tune", str(folder / "bundle")], folder)


class UndoCache(Undo):
    """The copy in the cache is taken away."""

    def prepare(self, folder: Path) -> None:
        Tune.prepare(self, folder)
        self._run([*TINYGPTV, "tune", str(folder / "bundle"), "--cache"], folder)


class AskTuning(Tune):
    """A question that tunes the bundle first, and is answered anyway."""

    goes_on = True

    def command(self, folder: Path, again: bool = False) -> list[str]:
        bundle = ["--bundle", str(folder / "bundle"), "--threads", "1"]
        return [*TINYGPTV, "ask", str(RED), "[caption]", "--tune", *bundle]

    def is_as_good(self, folder: Path, finished: Path) -> bool:
        """Tuned in the cache, as the bundle's folder could not be written; the same files, and no other."""
        parts = {f"{FOLDER}/{path.name}" for path in (finished / "bundle" / FOLDER).iterdir()}
        parts |= {graph.data for graph in read_manifest(folder / "bundle").graphs.values()}
        (cached,) = list((folder / "home/.cache/tinygptv/tuned").glob("*")) or [folder]
        is_there = _files(cached) == parts and _files(folder / "bundle") == _files(DEMO_BUNDLE)
        return is_there and self.is_kept(folder, finished)

    def objection(self, folder: Path, done: Done) -> str | None:
        is_tuned = any(folder.rglob(f"{FOLDER}/{INDEX}"))
        return None if is_tuned or "loaded without tuning" in done.err else "nothing is said of the tuning that failed"


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


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


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
