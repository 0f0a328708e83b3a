"""The photos, questions and texts for bundle and oracle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tinygptv.runtime.bundle.manifest import Manifest
from tinygptv.runtime.errors import ExportError
from tinygptv.runtime.language.prompt import encode_segments, render
from tokenizers import Tokenizer

from ..calibration import PACKAGED, PHOTO_SUFFIXES

QUESTIONS = (
    "[vqa] what is in the foreground, and what is behind it?",
    "[caption]",
    "[grounding] describe this picture in detail",
    "[refer] the largest thing in the picture",
    "Which colours do you see, and where in the picture are they?",
    "[detection] person",
    "[vqa] is this picture taken indoors or outdoors?",
    "Write two sentences about what may have happened just before.",
)
QUESTIONS_PER_PHOTO = 2
TEXTS = (
    "A kettle was boiling in the small kitchen while the rain beat against the window. Marta put two cups on the "
    "table, looked for the sugar, and found instead a letter that she had meant to answer in the spring.",
    "Light that passes from air into glass is bent because it travels more slowly there. How much depends on its "
    "colour: blue is bent more than red, and so a prism spreads white light into a band of colours.",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt, as token ids."""

    segments: tuple[tuple[int, ...], ...]
    """Token ids; two segments if a photo goes between them, otherwise one."""
    photo: int | None
    """Index of the photo."""


def find_photos(folder: Path | None) -> list[Path | Image.Image]:
    """The pictures in ``folder`` and the folders in it; without one, those that come with the exporter.

    Raises:
        ExportError: There is no such folder, or no picture in it.
    """
    photos = sorted(path for path in (folder or PACKAGED).rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if photos:
        return [*photos]
    if folder is not None:
        raise ExportError(f"--photos {folder}: no pictures in it; expected files named {', '.join(PHOTO_SUFFIXES)}")
    return [_drawn_picture()]


def _drawn_picture() -> Image.Image:
    """A colour picture with edges, smooth shades and a fine pattern, [300, 400] pixels."""
    y, x = np.mgrid[0:300, 0:400]
    disc = np.hypot(x - 130, y - 170) < 90
    red = np.where(disc, 220, x * 255 // 400)
    green = np.where(disc, 90 + y // 4, 255 - y * 255 // 300)
    blue = 128 + 100 * np.sin(x / 7) * np.sin(y / 11)
    return Image.fromarray(np.stack((red, green, blue), axis=2).astype(np.uint8))


def write_prompts(manifest: Manifest, tokenizer: Tokenizer, photos: int) -> list[Prompt]:
    """Some questions about each photo, in the bundle's templates in turn, and the texts alone."""
    prompts: list[Prompt] = []
    for number in range(QUESTIONS_PER_PHOTO * photos):
        template = manifest.templates[number % len(manifest.templates)]
        written = render(template, [(_question(manifest, number), None)])
        prompts.append(_encode(tokenizer, written, number // QUESTIONS_PER_PHOTO))
    plain = render(manifest.template(), [(TEXTS[0], None)], image_count=0)
    return [*prompts, *(_encode(tokenizer, text, None) for text in (plain, *TEXTS))]


def _question(manifest: Manifest, number: int) -> str:
    """One of the questions; without its tag if the model has no tags."""
    question = QUESTIONS[number % len(QUESTIONS)]
    return question if manifest.tasks else re.sub(r"^\[\w+\] ?", "", question) or manifest.caption_question


def _encode(tokenizer: Tokenizer, written: str, photo: int | None) -> Prompt:
    return Prompt(tuple(tuple(ids) for ids in encode_segments(tokenizer, written)), photo)
