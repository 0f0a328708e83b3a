"""``tinygptv caption``: captions every picture of some folders; an interrupted run is continued."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import Manifest, read_manifest
from ..cancel import Cancellation
from ..captioning import Captioned, caption_each
from ..errors import ArgumentError, reason_of
from ..folder import Picture, Unreadable, pictures_in, sidecar_ending, sidecars
from ..model import DEFAULT_BATCH_SIZE, TinyGPTV
from ..options import AnswerOptions
from ..system.files import sha256_of, write_atomically
from . import caption_ray
from .caption_record import Caption
from .captions import STDOUT, Captions, OutputError, open_captions
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
from .terminal import complain, interruptible, number_of, progress_bar, remark, status, tally

if TYPE_CHECKING:
    from .options import Commands

EXAMPLES = examples(
    "tinygptv caption ~/Pictures -o captions.jsonl --bundle ~/models/tinygptv",
    "tinygptv caption ~/Pictures /media/card -o captions.csv --sidecar",
    'tinygptv caption scans -o kinds.parquet --question "[vqa] what kind of document is this?"',
    "tinygptv caption scans -o - | grep -i invoice",
    "tinygptv caption s3://archive/photos -o s3://archive/captions --ray head:6379",
)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "caption",
        help="caption every picture in folders, or ask one question about each",
        description="Caption every picture in folders and the folders below them. Pictures that have this model's "
        "caption in OUTPUT are skipped unless they have changed, so the same command continues after an interruption. "
        "A picture that cannot be read is reported on stderr (exit status 1 at the end), and tried again next time.",
        epilog=EXAMPLES,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="hidden files and folders in it are skipped")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUTPUT",
        help="JSON Lines, CSV or Parquet by its ending (.jsonl, .csv, .parquet), or - for JSON Lines on stdout; a "
        "caption is kept as soon as it is complete; if a file has several, the last one counts",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="what to ask (default: the model's own question for a caption)",
    )
    parser.add_argument(
        "--sidecar",
        action="store_true",
        help="also write photo.txt beside photo.jpg (photo.jpg.txt and photo.png.txt if both pictures exist); "
        "answers to a --question go to files of their own, named after the question",
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
    caption_ray.add_options(parser)
    parser.set_defaults(run=run, parser=parser)


@dataclass
class _Run:
    """The progress of a run."""

    pictures: int = 0
    captioned: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    sidecars_kept: int = 0
    seconds: float = 0.0
    """Time spent captioning, without loading the model."""
    interrupted: bool = False


def run(options: argparse.Namespace) -> int:
    """Caption all pictures that have no caption yet."""
    caption_ray.check(options)
    if options.ray is not None:
        return caption_ray.run(options)
    options.folders = folders = [Path(folder) for folder in options.folders]
    output = Path(options.output)
    if options.json and output == STDOUT:
        options.parser.error("--json and -o - would both print on stdout; choose one")
    if options.overwrite and not options.sidecar:
        options.parser.error("--overwrite is about --sidecar, which was not given")
    for place in (*folders, output.parent):
        if not place.is_dir():
            raise ArgumentError(
                f"{place} is not a folder; expected FOLDER with pictures, and OUTPUT in one that exists"
            )
    done, is_stopped = _Run(), False
    try:
        found = _look(folders)
        done.pictures = len(found)
        bundle = bundle_of(options.bundle)
        manifest = read_manifest(bundle)
        identity = sha256_of(bundle / MANIFEST)[:12]
        with open_captions(output) as captions:
            captioner = _Captioner(options, captions, manifest, identity, found, done)
            if todo := captioner.skip():
                with status("loading the model ..."):
                    loaded = loader(options)(bundle)
                with loaded:
                    captioner.caption(loaded, todo)
    except OutputError as error:
        complain(error)
        is_stopped = True
    except KeyboardInterrupt:
        done.interrupted = True
    if options.json:
        places = {"folders": [str(folder) for folder in folders], "output": str(output)}
        print(json.dumps({**places, **vars(done)}), flush=True)
    summary = tally(done.captioned, done.skipped, len(done.failed), done.seconds)
    if done.interrupted or is_stopped:
        advice = "" if output == STDOUT else "; run the same command again to continue"
        remark(f"{'stopped' if is_stopped else 'interrupted'} ({summary}){advice}")
        return EXIT_ERROR if is_stopped else EXIT_INTERRUPTED
    remark(f"{number_of(done.pictures)}: {summary}")
    return EXIT_ERROR if done.failed else 0


def _look(folders: Sequence[Path]) -> list[Picture | Unreadable]:
    """All pictures in the folders.

    Raises:
        ArgumentError: There are no pictures.
    """
    with status("looking for pictures ..."):
        found = list(pictures_in(folders))
    if not found:
        named = " and ".join(map(str, folders))
        raise ArgumentError(
            f"{named} {'have' if len(folders) > 1 else 'has'} no pictures; expected files such as .jpg, .png or .webp "
            "in it, or below it"
        )
    return found


class _Captioner:
    """Captions the pictures that need it, and counts the results."""

    def __init__(
        self,
        options: argparse.Namespace,
        captions: Captions,
        manifest: Manifest,
        identity: str,
        found: Sequence[Picture | Unreadable],
        done: _Run,
    ) -> None:
        """
        Args:
            options: The command's options.
            captions: The existing captions.
            manifest: The model's manifest.
            identity: The model's identity, as in :attr:`.Caption.bundle`.
            found: All pictures of the folders.
            done: The progress, updated in place.

        Raises:
            ArgumentError: A sidecar file would overwrite the captions.
        """
        self._options = options
        self._captions = captions
        self._model, self._bundle = manifest.name, identity
        self._question: str = manifest.caption_question if options.question is None else options.question
        self._folders = {str(folder) for folder in options.folders}
        self._found = found
        self._done = done
        ending = sidecar_ending(self._question, manifest.caption_question)
        self._sidecars = {
            folder: sidecars((picture.file for picture in found if picture.folder == folder), ending)
            for folder in self._folders
        }
        if options.sidecar:
            for picture in found:
                if captions.is_at(sidecar := self._sidecar_of(picture)):
                    raise ArgumentError(
                        f"OUTPUT is {sidecar}, where the caption of {picture.file} would go; choose another OUTPUT"
                    )

    def skip(self) -> list[Picture]:
        """The pictures without a caption; for the others, sidecar files are written if requested."""
        todo = []
        for picture in self._found:
            if isinstance(picture, Unreadable):
                self._fail(picture, picture.error)
            elif caption := self._captions.find(picture, self._question, self._bundle, self._folders):
                self._done.skipped += 1
                if self._options.sidecar:
                    self._write_sidecar(picture, caption)
            else:
                todo.append(picture)
        return todo

    def caption(self, model: TinyGPTV, todo: Sequence[Picture]) -> None:
        """Caption pictures in batches; each caption is saved as soon as it is complete.

        Raises:
            OutputError: A caption cannot be saved.
        """
        started = time.perf_counter()
        options = AnswerOptions(self._options.max_new_tokens, self._options.template)
        cancellation = Cancellation()
        try:
            records = caption_each(
                model,
                (picture.path for picture in todo),
                self._question,
                batch_size=self._options.batch_size,
                options=options,
                cancellation=cancellation,
            )
            with progress_bar("captioning", len(todo), "img") as bar, closing(records):
                while found := interruptible(partial(next, records, None), cancellation.cancel):
                    number, record = found
                    self._keep(todo[number], record)
                    bar.update()
        finally:
            self._done.seconds = time.perf_counter() - started

    def _keep(self, picture: Picture, found: Captioned) -> None:
        if found.text is None or found.finish_reason is None:
            self._fail(picture, found.error or "")
            return
        caption = Caption(
            file=picture.file,
            folder=picture.folder,
            size=picture.size,
            mtime=picture.mtime,
            model=self._model,
            bundle=self._bundle,
            question=self._question,
            text=found.text,
            finish_reason=found.finish_reason,
            regions=found.regions,
        )
        try:
            self._captions.add(caption)
        except BrokenPipeError:
            raise
        except ArgumentError as error:
            self._fail(picture, str(error))
            return
        except OSError as error:
            message = f"{self._captions.path} cannot be written: {reason_of(error)}"
            self._done.failed.append({"folder": picture.folder, "file": picture.file, "error": message})
            raise OutputError(message) from error
        self._done.captioned += 1
        if self._options.sidecar:
            self._write_sidecar(picture, caption)

    def _sidecar_of(self, picture: Picture | Unreadable) -> Path:
        return Path(picture.folder, self._sidecars[picture.folder][picture.file])

    def _write_sidecar(self, picture: Picture, caption: Caption) -> None:
        path, text = self._sidecar_of(picture), caption.text + "\n"
        try:
            there = path.read_bytes().decode(errors="replace").rstrip("\r\n") if path.exists() else None
            if there is not None and not self._options.overwrite and not self._captions.wrote(caption.file, there):
                self._done.sidecars_kept += 1
                complain(f"{path} was not written by this command, so it was kept; --overwrite replaces it")
            elif there != caption.text:
                write_atomically(path, lambda file: file.write(text.encode()))
        except OSError as error:
            self._fail(picture, f"{path} cannot be written: {reason_of(error)}")

    def _fail(self, picture: Picture | Unreadable, error: str) -> None:
        complain(error)
        self._done.failed.append({"folder": picture.folder, "file": picture.file, "error": error})
