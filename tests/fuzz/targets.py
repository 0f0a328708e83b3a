"""What is fuzzed: for each kind of input, how one is made, and what may come of it."""

from __future__ import annotations

import io
import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from tinygptv.runtime import BundleError, ImageError, TinyGPTV, boxes
from tinygptv.runtime.bundle.manifest import FILE_NAME, parse_manifest, read_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.server.openai_chat import read_chat
from tinygptv.runtime.server.refusal import RefusedError
from tinygptv.runtime.server.schema import Schemas
from tinygptv.runtime.vision.cache import ImageCache
from tinygptv.runtime.vision.image import open_image, preprocess
from tokenizers import Tokenizer

from .mutators import as_text, spoilt_bytes, spoilt_json

HERE = Path(__file__).resolve().parent
IMAGES, GOLDEN = HERE.parent / "images", HERE.parent / "golden"


class Target(ABC):
    """One kind of input. What ``check`` raises is a finding, and so is what takes too long."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is empty, and its own."""
        self.folder = folder

    @abstractmethod
    def make(self, draw: random.Random) -> bytes:
        """The next input."""

    @abstractmethod
    def check(self, data: bytes) -> bool:
        """Feed it in; whether it was taken, rather than refused."""


class Pictures(Target):
    """Files of every format that Pillow reads and people have."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._preprocessing = read_manifest(DEMO_BUNDLE).image
        self._corpus = [path.read_bytes() for path in sorted(IMAGES.glob("*.png"))]
        ramp = np.arange(24 * 20 * 4, dtype=np.uint32).reshape(24, 20, 4)
        rgba = Image.fromarray((ramp * 37 % 256).astype(np.uint8), "RGBA")
        deep = Image.fromarray((ramp[..., 0] * 131 % 65536).astype(np.uint16))
        for picture, form, more in (
            *((rgba.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
            (deep, "PNG", {}),
            (rgba.convert("P"), "PNG", {"transparency": 3}),
            *((rgba.convert("RGB"), "JPEG", {"quality": 80, "progressive": way}) for way in (False, True)),
            (rgba.convert("CMYK"), "JPEG", {}),
            *((rgba, "WEBP", {"lossless": way}) for way in (False, True)),
            (rgba.convert("P"), "GIF", {"save_all": True, "append_images": [rgba.convert("P")]}),
            *((rgba.convert("RGB"), "TIFF", {"compression": way}) for way in ("raw", "tiff_lzw", "packbits", "jpeg")),
            (rgba.convert("1"), "TIFF", {"compression": "group4"}),
            (deep, "TIFF", {}),
            (rgba.convert("RGB"), "BMP", {}),
            (rgba, "ICO", {}),
            (rgba.convert("RGB"), "PPM", {}),
        ):
            file = io.BytesIO()
            picture.save(file, form, **more)
            self._corpus.append(file.getvalue())

    def make(self, draw: random.Random) -> bytes:
        return spoilt_bytes(draw.choice(self._corpus), draw.choice(self._corpus), draw)

    def check(self, data: bytes) -> bool:
        try:
            pixel_values = preprocess(open_image(data), self._preprocessing)
        except ImageError as error:
            _check_message(error)
            return False
        side = self._preprocessing.image_size
        assert pixel_values.shape == (1, 3, side, side) and pixel_values.dtype == np.float32
        assert np.isfinite(pixel_values).all()
        return True


class CacheEntries(Target):
    """Files of remembered images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._manifest = read_manifest(DEMO_BUNDLE)
        shape = self._manifest.contract.image_tokens, self._manifest.contract.hidden_size
        self._embeds = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        ImageCache(self._manifest, folder).add("key", self._embeds)
        (self._file,) = folder.glob("*/key.*")
        self._whole = self._file.read_bytes()

    def make(self, draw: random.Random) -> bytes:
        return spoilt_bytes(self._whole, draw.randbytes(100), draw)

    def check(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        found = ImageCache(self._manifest, self.folder).find("key")
        assert found is None or (data == self._whole and np.array_equal(found, self._embeds)), "damage was used"
        return found is not None


class Manifests(Target):
    """manifest.json of a bundle, all else of which is as it was."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bundle = Path(shutil.copytree(DEMO_BUNDLE, folder / "bundle"))
        self._document = json.loads((self._bundle / FILE_NAME).read_text(encoding="utf-8"))

    def make(self, draw: random.Random) -> bytes:
        return as_text(spoilt_json(self._document, draw), draw).encode("utf-8", "surrogatepass")

    def check(self, data: bytes) -> bool:
        (self._bundle / FILE_NAME).write_bytes(data)
        try:
            manifest = read_manifest(self._bundle)
        except BundleError as error:
            _check_message(error)
            return False
        assert manifest.contract.layers <= 1024
        return True


class Files(Target):
    """A copy of a folder, one of whose files is damaged at a time."""

    def __init__(self, folder: Path, original: Path, names: Sequence[str]) -> None:
        """``names`` are those of the files."""
        super().__init__(folder)
        self._original, self._names = original, names
        self._copy = Path(shutil.copytree(original, folder / "copy"))

    def make(self, draw: random.Random) -> bytes:
        number = draw.randrange(len(self._names))
        whole = (self._original / self._names[number]).read_bytes()
        return bytes([number]) + spoilt_bytes(whole, b"", draw)

    @contextmanager
    def damaged(self, data: bytes) -> Iterator[str]:
        """The name of the file that is as ``data`` says, within."""
        name = self._names[data[0]]
        (self._copy / name).write_bytes(data[1:])
        try:
            yield name
        finally:
            shutil.copy(self._original / name, self._copy / name)


class Bundles(Files):
    """A whole bundle with one file damaged: never another answer without a word."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DEMO_BUNDLE, sorted(p.name for p in DEMO_BUNDLE.iterdir() if p.name != FILE_NAME))
        self._picture = (IMAGES / "teal_circle.png").read_bytes()
        self._answer = self._ask()

    def _ask(self) -> tuple[int, ...]:
        with TinyGPTV.load(self._copy, threads=1) as model:
            return model.ask(self._picture, "[caption]", max_new_tokens=6).token_ids

    def check(self, data: bytes) -> bool:
        try:
            with self.damaged(data) as name:
                answer = self._ask()
        except BundleError as error:
            _check_message(error)
            return False
        assert answer == self._answer, f"{name}: another answer"
        return True


class BoxTexts(Target):
    """What a model may say about places, and worse."""

    _WORDS = ("{", "}", "<", ">", "<p>", "</p>", "<delim>", "{<1><2><30><40>}", "<100>", "<-1>", "<999999999999>", " ")

    def make(self, draw: random.Random) -> bytes:
        words = (*self._WORDS, "a red circle", "é", "\n", str(draw.randrange(200)), "{<10>", "<20>}")
        return "".join(draw.choice(words) for _ in range(draw.randrange(40))).encode()

    def check(self, data: bytes) -> bool:
        text = data.decode()
        width, height = 1 + len(data) * 7 % 4000, 1 + len(data) * 13 % 3000
        regions = boxes.parse_boxes(text, width, height)
        for region in regions:
            for box in region.boxes:
                left, top, right, bottom = box
                assert 0 <= left <= right <= width and 0 <= top <= bottom <= height, box
        assert isinstance(boxes.plain_text(text), str)
        return bool(regions)


class Requests(Target):
    """Bodies of requests to the server."""

    _DOCUMENT: ClassVar[Any] = {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a circle"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    _MANIFEST = parse_manifest(DEMO_BUNDLE)
    _SCHEMAS = Schemas(Tokenizer.from_file(str(DEMO_BUNDLE / "tokenizer.json")), _MANIFEST)

    def make(self, draw: random.Random) -> bytes:
        text = as_text(spoilt_json(self._DOCUMENT, draw), draw).encode("utf-8", "surrogatepass")
        return spoilt_bytes(text, b"{}", draw) if draw.random() < 0.1 else text

    def check(self, data: bytes) -> bool:
        try:
            reply = read_chat(data, self._MANIFEST, self._SCHEMAS)
        except RefusedError as error:
            _check_message(error)
            if not 400 <= error.status < 500:
                raise
            json.dumps(error.document).encode()
            return False
        assert reply.asked.conversation.question.strip()
        return True


class Checkpoints(Files):
    """Published files, one of them damaged: an error, or the same tensors.

    safetensors files have no sums: of those, another value is another model, as it is of another number in a config.
    """

    _FILES = (
        "eva_vit_g.pth",
        "TinyGPT-V_for_Stage4.pth",
        "phi-2/model-00001-of-00002.safetensors",
        "phi-2/config.json",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, GOLDEN / "stage4", self._FILES)
        self._tensors = self._read()

    def _read(self) -> dict[str, Any]:
        from tinygptv.export.sources import open_model

        model = open_model(
            phi=self._copy / "phi-2",
            vision=self._copy / "eva_vit_g.pth",
            qformer=self._copy / "blip2_pretrained_flant5xxl.pth",
            checkpoint=self._copy / "TinyGPT-V_for_Stage4.pth",
            stage=4,
            architecture=self._copy / "architecture.json",
        )
        tensors = {name: model[name].numpy().copy() for name in model}
        for _, file in model.files:  # as the export does, before a bundle is one
            model.sha256(file, lambda count: None)
        return tensors

    def check(self, data: bytes) -> bool:
        from tinygptv.runtime import ExportError

        try:
            with self.damaged(data) as name:
                found = self._read()
        except ExportError as error:
            _check_message(error)
            return False
        assert found.keys() == self._tensors.keys() or name.endswith(".json")
        if name.endswith(".pth"):
            for key, tensor in found.items():
                assert np.array_equal(tensor, self._tensors[key]), f"{name}: {key} is another tensor"
        return True


def _check_message(error: Exception) -> None:
    assert str(error).strip() and "\n" not in str(error), f"no line for a user: {str(error)[:200]!r}"


TARGETS: dict[str, type[Target]] = {
    "box-texts": BoxTexts,
    "requests": Requests,
    "manifests": Manifests,
    "cache-entries": CacheEntries,
    "pictures": Pictures,
    "bundles": Bundles,
    "checkpoints": Checkpoints,
}
