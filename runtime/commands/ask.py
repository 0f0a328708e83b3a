"""``tinygptv ask``: one question, about an image or several."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..boxes import Region, identify_question
from ..cancel import Cancellation
from ..drawing import draw_regions
from ..errors import ArgumentError
from ..image import ImageSource, open_image
from .files import write_whole
from .options import EXIT_ERROR, add_answer_options, add_model_options, add_sampling_options, load, sampling_of
from .pictures import add_clipboard, read_sources
from .report import document, regions_of, statistics
from .terminal import complain, interruptible, status

if TYPE_CHECKING:
    from .options import Commands

EXAMPLES = """\
examples:
  tinygptv ask photo.jpg "What is in this picture?" --bundle ~/models/tinygptv
  tinygptv ask photo.jpg "[caption]" --json
  tinygptv ask before.jpg after.jpg "What is different?"
  tinygptv ask photo.jpg "[detection] dog" --draw dogs.png
  tinygptv ask photo.jpg --box 10,20,200,240
  curl -s https://example.org/photo.jpg | tinygptv ask - "What is this?"
"""


def add(commands: Commands) -> None:
    """Put the command among the others."""
    parser = commands.add_parser(
        "ask",
        help="ask one question about one image, or several",
        description="Ask one question about an image, or several; the answer is printed as it is written.",
        usage="tinygptv ask [options] IMAGE [IMAGE ...] QUESTION",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE ... QUESTION",
        help="pictures to look at (PNG, JPEG, WebP, GIF ...; - is stdin), then what to ask; "
        "may begin with a task tag: [vqa] [caption] [refer] [detection]",
    )
    add_clipboard(parser)
    parser.add_argument(
        "--box", type=_box, metavar="X1,Y1,X2,Y2", help="ask what is in this box, in pixels, instead of a QUESTION"
    )
    parser.add_argument(
        "--draw",
        type=_picture_file,
        metavar="FILE",
        help="draw the boxes of the answer on the picture; if there are none, nothing is written (exit status 1)",
    )
    add_answer_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--stats", action="store_true", help="print times, speed and memory on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    names, question = _words(options)
    sources = read_sources(names, options.clipboard)
    if (options.box or options.draw) and len(sources) != 1:
        options.parser.error(f"--box and --draw are about one image; found {len(sources)}")
    if options.draw:
        _check_place(options.draw, names)
    if options.box or options.draw:
        sources = [open_image(sources[0])]
    if options.box:
        question = identify_question(*options.box, *sources[0].size)
    started = time.perf_counter()
    model = load(options)
    load_seconds = time.perf_counter() - started
    cancellation = Cancellation()
    with model:
        stream = model.stream
        with status("looking at the image ..."):
            stream, first = interruptible(
                lambda: begin(
                    model.stream(
                        sources,
                        question,
                        max_new_tokens=options.max_new_tokens,
                        template=options.template,
                        sampling=sampling_of(options),
                        stop=options.stop,
                        cancellation=cancellation,
                    )
                ),
                cancellation.cancel,
            )
