"""What a model's boxes are about, for those that know boxes: the others' answers are text, whatever is in it."""

from __future__ import annotations

from .boxes import Region, identify_question, parse_boxes, plain_text
from .bundle.manifest import Manifest
from .errors import ArgumentError
from .vision.fit import view_of


def regions_of(manifest: Manifest, text: str, width: int, height: int) -> tuple[Region, ...]:
    """What an answer about one picture points at; nothing where the model does not know boxes.

    Args:
        manifest: The model's.
        text: The answer.
        width: Width of the upright picture, in pixels.
        height: Height of the upright picture, in pixels.
    """
    return parse_boxes(text, width, height, view_of(width, height, manifest.image)) if manifest.boxes else ()


def words_of(manifest: Manifest, text: str) -> str:
    """An answer for people to read: without its boxes, where the model knows boxes."""
    return plain_text(text) if manifest.boxes else text


def question_about(manifest: Manifest, box: tuple[float, float, float, float], width: int, height: int) -> str:
    """Ask what is in a box.

    Args:
        manifest: The model's.
        box: Left, top, right and bottom in pixels of the upright picture.
        width: Width of the upright picture, in pixels.
        height: Height of the upright picture, in pixels.

    Raises:
        ArgumentError: The model does not know boxes, or this one is not within the picture, or not within what the
            model is shown of it.
    """
    check_boxes(manifest)
    return identify_question(*box, width, height, view_of(width, height, manifest.image))


def check_boxes(manifest: Manifest) -> None:
    """Raise ArgumentError unless the model supports boxes."""
    if not manifest.boxes:
        raise ArgumentError(
            f"{manifest.name} is of the family {manifest.family}, which knows no boxes; ask in words instead"
        )
