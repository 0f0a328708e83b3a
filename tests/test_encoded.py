"""EncodedImage: a value that can be compared, hashed and shared, and that nobody can change."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION
from PIL import Image

from tinygptv import EncodedImage, TinyGPTV

EMBEDS = np.arange(12, dtype=np.float32).reshape(3, 4)


def image(embeds: np.ndarray = EMBEDS, width: int = 6, height: int = 4, seconds: float = 0.0) -> EncodedImage:
    return EncodedImage(embeds, width, height, seconds, seconds, seconds, view=(0, 0, width, height))


def test_equal_by_what_is_in_it_and_not_by_the_time_it_took() -> None:
    assert image() == image(EMBEDS.copy(), seconds=3.0)
    assert hash(image()) == hash(image(EMBEDS.copy(), seconds=3.0))
    others = [image(EMBEDS + 1), image(width=7), image(height=7), image(EMBEDS.reshape(4, 3))]
    assert all(other != image() for other in others)
    assert len({image(), image(seconds=1.0), *others}) == 5
    assert image() != EMBEDS.tobytes()
    assert image().key == image(width=7).key != image(EMBEDS + 1).key


def test_nobody_can_change_it() -> None:
    own = EMBEDS.copy()
    encoded = image(own)
    key = encoded.key
    with pytest.raises(ValueError, match="read-only"):
        encoded.embeds[0, 0] = 5
    own[0, 0] = 5  # the caller's array is the caller's
    assert encoded == image() and encoded.key == key == image().key
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoded.width = 3  # type: ignore[misc]
    for again in (copy.deepcopy(encoded), pickle.loads(pickle.dumps(encoded))):
        assert again == encoded and not again.embeds.flags.writeable
    assert dataclasses.replace(encoded, width=9).width == 9


def test_an_array_that_cannot_be_written_is_not_copied() -> None:
    own = EMBEDS.copy()
    own.setflags(write=False)
    assert image(own).embeds is own


def test_the_same_picture_is_the_same_image(speaking_model: TinyGPTV, photo: Path) -> None:
    first, second = speaking_model.encode_image(photo), speaking_model.encode_image(photo.read_bytes())
    assert first == second and first is not second
    assert first.embeds is second.embeds, "kept in memory once"
    assert not first.embeds.flags.writeable
    red = speaking_model.encode_image(Image.new("RGB", (60, 40), "red"))
    assert len({first, second, red}) == 2


def test_images_kept_on_the_disk_cannot_be_changed_either(tmp_path: Path, photo: Path) -> None:
    for _ in range(2):
        with TinyGPTV.load(image_cache=tmp_path) as model:
            found = [model.encode_image(photo) for _ in range(2)]
        assert not found[0].embeds.flags.writeable
        assert found[0].embeds is found[1].embeds


def test_a_stream_says_what_it_is_about(speaking_model: TinyGPTV, photo: Path) -> None:
    encoded = speaking_model.encode_image(photo)
    stream = speaking_model.stream([photo, encoded], QUESTION, max_new_tokens=1)
    assert stream.images == (encoded, encoded)
    assert (stream.images[0].width, stream.images[0].height) == (60, 40)
    assert speaking_model.stream(None, QUESTION, max_new_tokens=1).images == ()
