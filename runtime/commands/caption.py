"""``tinygptv caption``: every picture of a folder, going on where it was interrupted."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..answer import Answer
from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import parse_manifest
from ..cancel import Cancellation
from ..errors import ArgumentError, ImageError
from ..model import DEFAULT_BATCH_SIZE, TinyGPTV
from ..options import AnswerOptions
from ..system.files import sha256_of, write_atomically
from ..vision.encoded import EncodedImage
from .captions import Caption, Captions, open_captions
from .folder import Picture, Unreadable, pictures_in, sidecars
from .options import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    add_answer_options,
    add_model_options,
    bundle_of,
    examples,
    loader,
    positive,
)
from .terminal import complain, interruptible, pace, progress_bar, remark, status

if TYPE_CHECKING:
    from tqdm import tqdm

    from .options import Commands

EXAMPLES = examples(
    "tinygptv caption ~/Pictures -o captions.jsonl --bundle ~/models/tinygptv",
    "tinygptv caption ~/Pictures -o captions.jsonl --sidecar",
    'tinygptv caption scans -o kinds.jsonl --question "[vqa] what kind of document is this?"',
)


def add(commands: Commands) -> None:
    """Put the command among the others."""
    parser = commands.add_parser(
        "caption",
        help="caption every picture in a folder, or ask one question about each",
        description="Caption every picture in a folder and the folders below it. Pictures that have this model's "
        "caption in OUTPUT are skipped unless they have changed, so the same command continues after an interruption. "
        "A picture that cannot be read is reported on stderr (exit status 1 at the end), and tried again next time.",
        epilog=EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="hidden files and folders in it are skipped")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="JSON Lines, each written when it is complete: file, size, mtime, model, question, text, finish_reason; "
        "if a file has several lines, the last one counts",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="what to ask (default: the model's own question for a caption)",
    )
    parser.add_argument(
        "--sidecar",
        action="store_true",
        help="also write photo.txt beside photo.jpg (photo.jpg.txt and photo.png.txt if both pictures exist)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace text files that another program wrote, or that were edited"
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
    done, is_stopped = _Run(), False
    try:
        found = _look(folder)
        done.pictures = len(found)
        bundle = bundle_of(options.bundle)
        manifest = parse_manifest(bundle)
        if options.question is None:
            options.question = manifest.caption_question
        model = _identity(bundle)
        with open_captions(output) as captions:
            captioner = _Captioner(options, captions, model, found, done)
            if todo := captioner.skip():
                with status("loading the model ..."):
                    loaded = loader(options)(bundle)
                with loaded:
                    captioner.caption(loaded, todo)
    except _OutputError:
        is_stopped = True
    except KeyboardInterrupt:
        done.interrupted = True
    if options.json:
        print(json.dumps({"folder": str(folder), "output": str(output), **vars(done)}), flush=True)
    summary = f"{done.captioned} captioned, {done.skipped} done before, {len(done.failed)} failed"
    if done.captioned:
        summary += f"; {pace(done.captioned / done.seconds)}"
    if done.interrupted or is_stopped:
        remark(f"{'stopped' if is_stopped else 'interrupted'} ({summary}); the same command goes on from here")
        return EXIT_ERROR if is_stopped else EXIT_INTERRUPTED
    remark(f"{done.pictures} pictures: {summary}")
    return EXIT_ERROR if done.failed else 0


def _look(folder: Path) -> list[Picture | Unreadable]:
    """All pictures.

    Raises:
        ArgumentError: There are none.
    """
    with status("looking for pictures ..."):
        found = list(pictures_in(folder))
    if not found:
        raise ArgumentError(f"{folder} has no pictures; expected files such as .jpg, .png or .webp in it, or below it")
    return found


def _identity(bundle: Path) -> str:
    """A model's identity in its captions: :attr:`.captions.Caption.model`.

    Raises:
        BundleError: The folder is no bundle.
    """
    parse_manifest(bundle)
    return sha256_of(bundle / MANIFEST)[:12]


class _OutputError(Exception):
    """A caption cannot be kept, and so neither could further ones; it has been reported."""


class _Captioner:
    """Captions the pictures that need it, and keeps account."""

    def __init__(
        self,
        options: argparse.Namespace,
        captions: Captions,
        model: str,
        found: Sequence[Picture | Unreadable],
        done: _Run,
    ) -> None:
        """
        Args:
            options: The command's.
            captions: Those so far.
            model: The model's identity.
            found: The pictures.
            done: The account.

        Raises:
            ArgumentError: A sidecar would be written over the captions.
        """
        self._options = options
        self._folder: Path = options.folder
        self._captions = captions
        self._model = model
        self._found = found
        self._done = done
        self._sidecars = sidecars(picture.file for picture in found)
        if options.sidecar:
            for picture in found:
                if captions.is_at(sidecar := self._sidecar_of(picture.file)):
                    raise ArgumentError(
                        f"OUTPUT is {sidecar}, where the caption of {picture.file} would go; choose another OUTPUT"
                    )

    def skip(self) -> list[Picture]:
        """What has no caption yet; what has one gets its sidecar, if that is wanted."""
        todo = []
        for picture in self._found:
            if isinstance(picture, Unreadable):
                self._fail(picture.file, picture.error)
            elif caption := self._captions.find(picture, self._options.question, self._model):
                self._done.skipped += 1
                if self._options.sidecar:
                    self._write_sidecar(caption)
            else:
                todo.append(picture)
        return todo

    def caption(self, model: TinyGPTV, todo: Sequence[Picture]) -> None:
        """Caption pictures in batches; each caption is in the file as soon as it is complete.

        Raises:
            _OutputError: One of them cannot be.
        """
        seen: list[Picture] = []
        started = time.perf_counter()
        try:
            options = AnswerOptions(self._options.max_new_tokens, self._options.template)
            with progress_bar("captioning", len(todo), "img") as bar:
                asked = self._look_at(model, todo, seen, bar)
                with closing(model.ask_each(asked, batch_size=self._options.batch_size, options=options)) as answers:
                    for number, answer in answers:
                        self._keep(seen[number], answer)
                        bar.update()
        finally:
            self._done.seconds = time.perf_counter() - started

    def _look_at(
        self, model: TinyGPTV, todo: Sequence[Picture], seen: list[Picture], bar: tqdm
    ) -> Iterator[tuple[EncodedImage, str]]:
        """What to ask; ``seen`` are the pictures that could be read, in the same order."""
        for picture in todo:
            cancellation = Cancellation()
            see = partial(model.encode_image, self._folder / picture.file, cancellation=cancellation)
            try:
                image = interruptible(see, cancellation.cancel)
            except ImageError as error:  # one bad picture must not cost the others their answers
                self._fail(picture.file, str(error))
                bar.update()
            else:
                seen.append(picture)
                yield image, self._options.question

    def _keep(self, picture: Picture, answer: Answer) -> None:
        caption = Caption(
            picture.file,
            picture.size,
            picture.mtime,
            self._model,
            self._options.question,
            answer.text.strip(),
            answer.finish_reason,
        )
        try:
            self._captions.add(caption)
        except OSError as error:
            self._fail(picture.file, f"{self._captions.path} cannot be written: {error.strerror}")
            raise _OutputError from error
        self._done.captioned += 1
        if self._options.sidecar:
            self._write_sidecar(caption)

    def _sidecar_of(self, file: str) -> Path:
        return self._folder / self._sidecars[file]

    def _write_sidecar(self, caption: Caption) -> None:
        path, text = self._sidecar_of(caption.file), caption.text + "\n"
        try:
            there = path.read_bytes().decode(errors="replace").rstrip("\r\n") if path.exists() else None
            if there is not None and not self._options.overwrite and not self._captions.wrote(caption.file, there):
                self._done.sidecars_kept += 1
                complain(f"{path} is not this command's and was kept; --overwrite replaces it")
            elif there != caption.text:
                write_atomically(path, lambda file: file.write(text.encode()))
        except OSError as error:
            self._fail(caption.file, f"{path} cannot be written: {error.strerror}")

    def _fail(self, file: str, error: str) -> None:
        complain(error)
        self._done.failed.append({"file": file, "error": error})
