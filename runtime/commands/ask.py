"""``tinygptv ask``: one question about one or more images."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..answer import AnswerStream
from ..boxes import Region
from ..bundle.manifest import parse_manifest
from ..cancel import Cancellation
from ..drawing import draw_regions
from ..errors import ArgumentError, reason_of
from ..pointing import check_boxes, question_about
from ..system.files import check_writable, write_atomically
from ..vision.image import ImageSource, open_image
from .options import (
    EXIT_ERROR,
    add_answer_options,
    add_model_options,
    add_sampling_options,
    answer_options,
    bundle_of,
    examples,
    load,
)
from .pictures import add_clipboard, read_sources
from .report import document, statistics
from .terminal import complain, interruptible, status

if TYPE_CHECKING:
    from .options import Commands

EXAMPLES = examples(
    'tinygptv ask photo.jpg "What is in this picture?" --bundle ~/models/tinygptv',
    'tinygptv ask photo.jpg "[caption]" --json',
    'tinygptv ask before.jpg after.jpg "What is different?"',
    'tinygptv ask photo.jpg "[detection] dog" --draw dogs.png',
    "tinygptv ask photo.jpg --box 10,20,200,240",
    'curl -s https://example.org/photo.jpg | tinygptv ask - "What is this?"',
)
TASKS = {
    "[caption]": "describe the picture in a sentence; no more words needed",
    "[vqa]": "answer a question in few words",
    "[grounding]": "describe the picture, with a box around each thing named",
    "[detection]": "find all things of a kind: [detection] dog",
    "[refer]": "where is it: [refer] the dog on the left",
    "[identify]": "what is in a box; --box writes the question",
}
"""Task tags that a question may begin with, from the models' training."""
_TASKS = "\n".join(
    [
        "a QUESTION may begin with a task tag, for models that know tags (TinyGPT-V; bundle info shows a model's own):",
        *(f"  {tag:<12} {what}" for tag, what in TASKS.items()),
    ]
)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "ask",
        help="ask one question about one image, or several",
        description="Ask one question about an image, or several; the answer is printed as it is written.",
        usage="tinygptv ask [options] IMAGE [IMAGE ...] QUESTION",
        epilog=f"{_TASKS}\n\n{EXAMPLES}",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="IMAGE ... QUESTION",
        help="pictures (PNG, JPEG, WebP, GIF ...; - is stdin), then what to ask; may begin with a task tag, see below",
    )
    add_clipboard(parser)
    parser.add_argument(
        "--box",
        type=_box,
        metavar="X1,Y1,X2,Y2",
        help="ask what is in this box (in pixels) instead of a QUESTION, if the model knows boxes",
    )
    parser.add_argument(
        "--draw",
        type=_picture_file,
        metavar="FILE",
        help="draw the answer's boxes on the picture, if the model knows boxes; if the answer has none, nothing is "
        "written (exit status 1)",
    )
    add_answer_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--stats", action="store_true", help="print times, speed and memory on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Ask the question, and print the answer."""
    names, question = _words(options)
    if options.draw:
        _check_place(options.draw, names)
    sources = read_sources(names, options.clipboard)
    if (options.box or options.draw) and len(sources) != 1:
        options.parser.error(f"--box and --draw are about one image; found {len(sources)}")
    if options.box or options.draw:
        picture = open_image(sources[0])
        sources = [picture]
    bundle = bundle_of(options.bundle)
    if options.box or options.draw:
        manifest = parse_manifest(bundle)
        check_boxes(manifest)
        if options.box:
            question = question_about(manifest, options.box, *picture.size)
    started = time.perf_counter()
    model = load(options, bundle, background=True)
    load_seconds = time.perf_counter() - started
    cancellation = Cancellation()

    def begin() -> tuple[AnswerStream, str]:
        stream = model.stream(sources, question, options=answer_options(options), cancellation=cancellation)
        return stream, next(stream, "")

    with model:
        with status("looking at the image ..."):
            stream, first = interruptible(begin, cancellation.cancel)
        with stream:
            if not options.json:
                for piece in chain([first], stream):
                    print(piece, end="", flush=True)
                print()
            answer = stream.answer
        # Before the model is closed: its memory is what the figures are about.
        if options.json:
            found = document(answer)
            found["timings"] = {**dataclasses.asdict(answer.timings), "load": load_seconds}
            print(json.dumps(found), flush=True)  # ASCII: whole in any encoding
        if options.stats:
            print(statistics(answer, load_seconds), file=sys.stderr)
    if options.draw:
        if not answer.regions:
            complain(f"the answer has no boxes; {options.draw} was not written")
            return EXIT_ERROR
        _draw(options.draw, sources[0], answer.regions)
    return 0


def _words(options: argparse.Namespace) -> tuple[list[str], str]:
    """The images' names and the question."""
    words: list[str] = options.words
    if options.box:
        if len(words) + options.clipboard != 1:
            options.parser.error("--box asks by itself: expected one IMAGE and no QUESTION")
        return words, ""  # made from the box, once the picture's size is there
    if len(words) + options.clipboard < 2:
        options.parser.error(f"expected an IMAGE and a QUESTION; found {' '.join(words) or 'neither'}")
    if os.path.isfile(words[-1]):
        options.parser.error(f"expected a QUESTION behind the images; {words[-1]} is a file")
    return words[:-1], words[-1]


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(edge) for edge in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a box; expected X1,Y1,X2,Y2 in pixels") from error
    return left, top, right, bottom


def _picture_file(text: str) -> Path:
    path = Path(text)
    try:
        # Some formats cannot be written, or not in colour: tried out on one pixel.
        Image.new("RGB", (1, 1)).save(io.BytesIO(), _format_of(path))
    except (KeyError, OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end like a picture file; expected .png, .jpg, .webp or the like"
        ) from error
    return path


def _format_of(path: Path) -> str:
    return Image.registered_extensions()[path.suffix.lower()]


def _check_place(path: Path, names: Sequence[str]) -> None:
    """Check before the model runs that the picture can be written."""
    if not path.parent.is_dir():
        raise ArgumentError(f"{path.parent} is not a folder; expected one to write {path.name} to")
    if path.exists() and not path.is_file():  # a folder, or a device that a file would take the place of
        raise ArgumentError(f"{path} is not a regular file; expected a picture to write, or a new file")
    if path.exists() and any(Path(name).exists() and path.samefile(name) for name in names):
        raise ArgumentError(f"{path} is the picture that is asked about; expected another file to draw on")
    try:
        check_writable(Path(os.path.realpath(path)).parent)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {reason_of(error)}; choose another place") from error


def _draw(path: Path, source: ImageSource, regions: Sequence[Region]) -> None:
    drawn = draw_regions(source, regions)
    write_atomically(path, lambda file: drawn.save(file, _format_of(path)))
