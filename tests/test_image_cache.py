"""Images that were seen before: known by their pixels, in memory and in a folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tinygptv.runtime import ArgumentError, TinyGPTV
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.vision import cache as image_cache
from tinygptv.runtime.vision.cache import ImageCache
from tinygptv.runtime.vision.encoder import Vision


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each run of the vision encoder."""
    runs: list[int] = []
    run = Vision.image_features

    def counting(vision: Vision, pixel_values: np.ndarray, *arguments: object) -> np.ndarray:
        runs.append(len(runs))
        return run(vision, pixel_values, *arguments)

    monkeypatch.setattr(Vision, "image_features", counting)
    return runs


@pytest.fixture
def fresh(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_a_seen_image_is_not_encoded_again_however_it_comes(fresh: TinyGPTV, photo: Path, encoded: list[int]) -> None:
    first = fresh.encode_image(photo)
    picture = Image.open(photo)
    for source in (photo, str(photo), photo.read_bytes(), picture, png(picture.convert("RGB"))):
        again = fresh.encode_image(source)
        assert np.array_equal(again.embeds, first.embeds)
        assert (again.width, again.height, again.key) == (first.width, first.height, first.key)
    assert fresh.ask(photo, QUESTION, max_new_tokens=2).timings.projector < first.project_seconds
    assert len(encoded) == 1
    fresh.encode_image(picture.transpose(Image.Transpose.ROTATE_180))
    assert len(encoded) == 2


def test_the_size_is_the_picture_s_own(fresh: TinyGPTV, encoded: list[int]) -> None:
    """The encoder sees the same of two white pictures; boxes are in pixels of each."""
    sizes = [fresh.encode_image(Image.new("RGB", size, "white")) for size in ((30, 20), (200, 100))]
    assert [(image.width, image.height) for image in sizes] == [(30, 20), (200, 100)]
    assert len(encoded) == 1


def test_the_image_seen_longest_ago_is_forgotten(
    fresh: TinyGPTV, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = fresh.manifest.contract
    monkeypatch.setattr(image_cache, "MEMORY_BYTES", 2 * 4 * contract.image_tokens * contract.hidden_size)
    red, green, blue = (Image.new("RGB", (8, 8), name) for name in ("red", "green", "blue"))
    for picture in (red, green, red, blue):  # green is the oldest then
        fresh.encode_image(picture)
    assert len(encoded) == 3
    fresh.encode_image(red)
    assert len(encoded) == 3
    fresh.encode_image(green)
    assert len(encoded) == 4


@pytest.mark.parametrize(("tokens", "kept"), [(32, 195), (576, 10), (729, 8), (10_000, 1)])
def test_images_in_memory_take_so_much_and_no_more(tokens: int, kept: int, fresh: TinyGPTV) -> None:
    """At Phi-2's width; one image is kept in any case."""
    images, embeds = ImageCache(fresh.manifest, None), np.zeros((tokens, 2560), np.float32)
    for number in range(kept + 2):
        images.add(str(number), embeds)
    assert [number for number in range(kept + 2) if images.find(str(number)) is not None] == list(range(2, kept + 2))


def test_a_folder_remembers_beyond_the_process(
    golden_bundle: Callable[[int, str], Path], photo: Path, tmp_path: Path, encoded: list[int]
) -> None:
    folder = tmp_path / "seen before é"
    embeds = []
    for _ in range(2):
        with TinyGPTV.load(golden_bundle(3, "fp32"), image_cache=folder) as model:
            embeds.append(model.encode_image(photo).embeds)
    assert np.array_equal(*embeds)
    assert len(encoded) == 1
    with TinyGPTV.load(golden_bundle(3, "int8"), image_cache=folder) as model:  # another encoder
        assert not np.array_equal(model.encode_image(photo).embeds, embeds[0])
    assert len(encoded) == 2
    assert len(list(folder.glob("*/*.embeds"))) == 2
    assert all(file.suffix == ".embeds" for file in folder.glob("*/*"))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", bytes(5152), b"no array" * 9999])
def test_a_damaged_file_is_written_anew(
    golden_bundle: Callable[[int, str], Path], photo: Path, tmp_path: Path, encoded: list[int], damage: bytes
) -> None:
    for _ in range(3):
        with TinyGPTV.load(golden_bundle(3, "fp32"), image_cache=tmp_path) as model:
            model.encode_image(photo)
        (file,) = tmp_path.glob("*/*.embeds")
        whole = file.read_bytes()
        if len(encoded) == 1:
            file.write_bytes(damage)
    assert len(encoded) == 2
    assert file.read_bytes() == whole


@given(data=st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_is_used(data: st.DataObject, golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> None:
    """Bytes changed, zeroed, cut off, added; another image's file under this one's name."""
    manifest = read_manifest(golden_bundle(3, "fp32"))
    shape = manifest.contract.image_tokens, manifest.contract.hidden_size
    embeds = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    cache = ImageCache(manifest, tmp_path)
    cache.add("a", embeds)
    (file,) = tmp_path.glob("*/a.embeds")
    whole = file.read_bytes()
    assert np.array_equal(ImageCache(manifest, tmp_path).find("a"), embeds)
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                whole[:place],
                whole + bytes(place + 1),
                whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :],
                whole[:32] + bytes(len(whole) - 32),
                bytes(len(whole)),
                whole[:place] + bytes(len(whole) - place) if any(whole[place:]) else b"",
            ]
        )
    )
    file.write_bytes(damaged)
    assert ImageCache(manifest, tmp_path).find("a") is None
    file.with_name("b.embeds").write_bytes(whole)
    assert ImageCache(manifest, tmp_path).find("b") is None


def test_a_folder_that_cannot_be_made(golden_bundle: Callable[[int, str], Path], photo: Path) -> None:
    with pytest.raises(ArgumentError, match=r"image_cache .* cannot be made"):
        TinyGPTV.load(golden_bundle(3, "fp32"), image_cache=photo / "below a file")


def test_without_a_folder_nothing_is_written(
    golden_bundle: Callable[[int, str], Path], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        model.encode_image(photo)
    assert not list(tmp_path.iterdir())
