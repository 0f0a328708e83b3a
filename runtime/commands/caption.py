"""``tinygptv caption``: every picture of a folder, going on where it was interrupted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..answer import Answer, EncodedImage
from ..cancel import Cancellation
from ..errors import ArgumentError, ImageError
from ..model import DEFAULT_BATCH_SIZE, TinyGPTV
from .captions import Caption, Captions
from .files import write_whole
from .folder import Picture, Unreadable, pictures_in
from .options import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    add_answer_options,
    add_model_options,
    examples,
    load,
    positive,
)
from .terminal import Progress, complain, interruptible, pace, remark, status

if TYPE_CHECKING:
    from .options import Commands

QUESTION = "[caption]"
EXAMPLES = examples(
    "tinygptv caption ~/Pictures -o captions.jsonl --bundle ~/models/tinygptv",
    "tinygptv caption ~/Pictures -o captions.jsonl --sidecar",
    'tinygptv caption scans -o kinds.jsonl --question "[vqa] what kind of document is this?"',
)


def add(commands: Commands) -> None:
    """Put the command among the others."""
    parser = commands.add_parser(
        "caption",
        help="caption every picture in a folder, or ask the same of each",
        description="Caption every picture in a folder and those below it. Pictures that OUTPUT has a caption of are "
        "skipped unless they have changed, so that the same command goes on where it was interrupted. A picture that "
        "cannot be read is one line on stderr (exit status 1 in the end), and tried again the next time.",
        epilog=EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="hidden files and folders in it are skipped")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="JSON Lines, as they become whole: file, size, mtime, question, text, finish_reason; of two lines on a "
        "file the last counts",
    )
    parser.add_argument("--question", default=QUESTION, metavar="TEXT", help=f"what to ask (default: {QUESTION})")
    parser.add_argument("--sidecar", action="store_true", help="write photo.txt beside photo.jpg too")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace sidecars that something else wrote, or that were edited"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help=f"pictures that are captioned at once (default: {DEFAULT_BATCH_SIZE})",
    )
    add_answer_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object")
    parser.set_defaults(run=run, parser=parser)


@dataclass
class _Run:
    """What has been done so far."""

    pictures: int = 0
    captioned: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    sidecars_kept: int = 0
    seconds: float = 0.0
    """Captioning, without loading the model."""
    interrupted: bool = False


def run(options: argparse.Namespace) -> int:
    """Caption what has no caption yet."""
    folder: Path = options.folder
    output: Path = options.output
    if options.overwrite and not options.sidecar:
        options.parser.error("--overwrite is about --sidecar, which was not given")
    for place in (folder, output.parent):
        if not place.is_dir():
            raise ArgumentError(
                f"{place} is not a folder; expected FOLDER with pictures, and OUTPUT in one that exists"
            )
    captioner = _Captioner(options, Captions(output))
    done = captioner.done
    try:
        if todo := captioner.look():
            captioner.caption(todo)
    except KeyboardInterrupt:
        done.interrupted = True
    if options.json:
        print(json.dumps({"folder": str(folder), "output": str(output), **vars(done)}), flush=True)
    summary = f"{done.captioned} captioned, {done.skipped} done before, {len(done.failed)} failed"
    if done.captioned:
        summary += f"; {pace(done.captioned / done.seconds)}"
    if done.interrupted:
        remark(f"interrupted ({summary}); the same command goes on from here")
        return EXIT_INTERRUPTED
    remark(f"{done.pictures} pictures: {summary}")
    return EXIT_ERROR if done.failed else 0


class _Captioner:
    """Looks for pictures, captions those that need it, and keeps account."""

    def __init__(self, options: argparse.Namespace, captions: Captions) -> None:
        self._options = options
        self._folder: Path = options.folder
        self._captions = captions
        self.done = _Run()

    def look(self) -> list[Picture]:
        """What has no caption yet; what has one gets its sidecar, if that is wanted and not there.

        Raises:
            ArgumentError: There are no pictures at all.
        """
        todo = []
        with status("looking for pictures ..."):
            found = list(pictures_in(self._folder))
        self.done.pictures = len(found)
        if not found:
            raise ArgumentError(
                f"{self._folder} has no pictures; expected files such as .jpg, .png or .webp in it, or below it"
            )
        for picture in found:
            if isinstance(picture, Unreadable):
                self._fail(picture.file, picture.error)
            elif caption := self._captions.find(picture, self._options.question):
                self.done.skipped += 1
                if self._options.sidecar and (self._options.overwrite or not self._sidecar_of(picture.file).exists()):
                    self._write_sidecar(caption)
            else:
                todo.append(picture)
        return todo

    def caption(self, todo: Sequence[Picture]) -> None:
        """Caption pictures, several in step; each caption is in the file as soon as it is whole."""
        seen: list[Picture] = []
        with load(self._options) as model, self._captions.appending() as file:
            progress = Progress("captioning", len(todo))
            try:
                progress.show()
                for number, answer in model.ask_each(
                    self._look_at(model, todo, seen, progress),
                    max_new_tokens=self._options.max_new_tokens,
                    template=self._options.template,
                    batch_size=self._options.batch_size,
                ):
                    self._keep(seen[number], answer, file, progress)
            finally:
                progress.clear()
                self.done.seconds = progress.seconds

    def _look_at(
        self, model: TinyGPTV, todo: Sequence[Picture], seen: list[Picture], progress: Progress
    ) -> Iterator[tuple[EncodedImage, str]]:
        """What to ask; ``seen`` are the pictures that could be read, in the same order."""
        for picture in todo:
            cancellation = Cancellation()
            see = partial(model.encode_image, self._folder / picture.file, cancellation=cancellation)
            try:
                image = interruptible(see, cancellation.cancel)
            except ImageError as error:  # one bad picture must not cost the others their answers
                progress.clear()
                self._fail(picture.file, str(error))
                progress.advance()
            else:
                seen.append(picture)
                yield image, self._options.question

    def _keep(self, picture: Picture, answer: Answer, file: BinaryIO, progress: Progress) -> None:
        caption = Caption(
            picture.file,
            picture.size,
            picture.mtime,
            self._options.question,
            answer.text.strip(),
            answer.finish_reason,
        )
        self._captions.add(file, caption)
        self.done.captioned += 1
        progress.clear()
        if self._options.sidecar:
            self._write_sidecar(caption)
        progress.advance()

    def _sidecar_of(self, file: str) -> Path:
        return (self._folder / file).with_suffix(".txt")

    def _write_sidecar(self, caption: Caption) -> None:
        path, text = self._sidecar_of(caption.file), caption.text + "\n"
        try:
            there = path.read_bytes().decode(errors="replace").rstrip("\r\n") if path.exists() else None
            if there is not None and not self._options.overwrite and not self._captions.wrote(caption.file, there):
                self.done.sidecars_kept += 1
                complain(f"{path} is not this command's and was kept; --overwrite replaces it")
            elif there != caption.text:
                write_whole(path, lambda file: file.write(text.encode()))
        except OSError as error:
            self._fail(caption.file, f"{path} cannot be written: {error.strerror}")

    def _fail(self, file: str, error: str) -> None:
        complain(error)
        self.done.failed.append({"file": file, "error": error})
