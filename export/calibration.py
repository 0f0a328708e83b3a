"""Runs the model on some pictures and texts in float32, and finds the smoothing that int8 needs.

The data only determine how weights and activations share their range; no picture or text is stored in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tinygptv.runtime.bundle.manifest import (
    DECODER,
    GRAPHS,
    PROJECTOR,
    VISION_ENCODER,
    ImagePreprocessing,
    PromptTemplate,
)
from tinygptv.runtime.errors import ExportError, ImageError, reason_of
from tinygptv.runtime.language.prompt import encode_segments, render
from tinygptv.runtime.vision.image import open_image, preprocess
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from .cache_rounding import CacheRounding
from .compensation import Compensator
from .precision import CandidatesOf, Scheme
from .smoothing import Group, Smoothed, Smoothing, find_smoothing, groups_of
from .sources.model import Model
from .torch_ops import TorchOps, Value

PACKAGED = Path(__file__).parent / "calibration"
"""Photos and texts that are included in the exporter; the README there names their sources."""
MORE = PACKAGED / "more"
"""Additional texts for 4 bits: compensation needs more data than smoothing."""
PHOTO_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
TEXT_SUFFIX = ".txt"
MAX_PHOTOS = 16
"""Maximum number of photos: more would take hours at the published sizes, without a measured benefit."""
PROMPT_TOKENS, TEXT_TOKENS = 256, 224
"""Minimum length of each decoder prompt, and of its part besides the image's tokens, as far as the context
has room."""
COMPENSATED_TOKENS = 4096
"""Tokens of all prompts together for rounding 4-bit weights. A quarter of it loses a tenth more on a language model
(benchmarks/fidelity); at the published sizes 1,000 tokens take half a minute."""


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration files: pictures, and plain UTF-8 texts in the style of answers."""

    photos: tuple[Path, ...]
    texts: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.photos, *self.texts)


@dataclass(frozen=True)
class Calibrated:
    """The result of calibration."""

    smoothings: dict[Group, Smoothing]
    schemes: dict[str, Scheme]
    """The quantisation of each calibrated linear layer."""
    rounded: dict[str, Tensor]
    """Rounded 4-bit weights, with the names of :class:`.compensation.Compensator`."""
    cache_rounding: dict[str, Tensor]
    """Quantisation of an int8 KV cache, with the names of :class:`.cache_rounding.CacheRounding`."""


def find_calibration_set(folder: Path, precision: str = "int8") -> CalibrationSet:
    """Pictures (.jpeg, .jpg, .png, .webp) and texts (.txt) of a folder; for ``int4`` more texts of the packaged one.

    Raises:
        ExportError: There is no such folder, it has no picture or no text, or more pictures than can be used.
    """
    if not folder.is_dir():
        raise ExportError(f"--calibration {folder}: no such folder; expected one with pictures and .txt files, or none")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    photos = tuple(path for path in files if path.suffix.lower() in PHOTO_SUFFIXES)
    texts = tuple(path for path in files if path.suffix.lower() == TEXT_SUFFIX)
    for found, expected in ((photos, f"pictures ({', '.join(PHOTO_SUFFIXES)})"), (texts, f"texts ({TEXT_SUFFIX})")):
        if not found:
            raise ExportError(f"--calibration {folder}: no {expected} in it; expected both pictures and texts")
    if len(photos) > MAX_PHOTOS:
        raise ExportError(f"--calibration {folder}: {len(photos)} pictures; expected at most {MAX_PHOTOS}")
    more = tuple(sorted(MORE.iterdir())) if folder == PACKAGED and precision == "int4" else ()
    return CalibrationSet(photos, texts + more)


@torch.inference_mode()
def calibrate(
    model: Model,
    template: PromptTemplate,
    tokenizer: Tokenizer,
    calibration: CalibrationSet,
    candidates_of: Mapping[str, CandidatesOf],
    folder: Path,
    bar: tqdm,
    int8_cache: bool = False,
) -> Calibrated:
    """Find the smoothing of every group of linear layers, and the fastest scheme that is close enough.

    In a second pass, 4-bit layers are rounded, on more prompts, and the scales of an int8 KV cache are found.

    Memory holds one layer's weights and the activations of all pictures, or of all prompts, at a time.

    Args:
        model: The model.
        template: Prompt format that the decoder is calibrated in.
        tokenizer: Tokenizer of the model.
        calibration: The calibration files.
        candidates_of: How each graph's linear layers may be quantised, by graph name.
        folder: Where rounded weights wait until the graphs are written.
        bar: Counts the groups.
        int8_cache: Whether the KV cache will be int8.

    Raises:
        ExportError: A file of the set cannot be read.
    """
    pixel_values = torch.cat([_pixel_values(path, model.description.image) for path in calibration.photos])
    texts = " ".join(_read_text(path) for path in calibration.texts)
    networks = model.networks
    groups = [group for name in GRAPHS for group in groups_of(networks[name].part, networks[name].sizes)]
    finder = Finder(model, groups, bar)

    def computed(graph: str, x: Tensor, *watching: Any) -> Tensor:
        """Run a part and return its output; for ``watching``, see :class:`.torch_ops.TorchOps`."""
        network = networks[graph]
        return network.part.run(TorchOps(model, *watching), network.sizes, Value(x)).data

    features = computed(VISION_ENCODER, pixel_values, finder.observer(candidates_of[VISION_ENCODER]))
    images = computed(PROJECTOR, features, finder.observer(candidates_of[PROJECTOR]))
    before, after = encode_segments(tokenizer, render(template, [(model.description.family.caption_question, None)]))
    length = min(max(PROMPT_TOKENS, images.shape[1] + TEXT_TOKENS), networks[DECODER].sizes.max_position_embeddings)
    prompts = partial(
        _prompts,
        model["model.embed_tokens.weight"],
        (before, after),
        tokenizer.encode(texts, add_special_tokens=False).ids,
        length,
    )
    computed(DECODER, prompts(images), finder.observer(candidates_of[DECODER]))
    smoothed = Smoothed(model, finder.smoothings)
    compensator = Compensator(smoothed, finder.smoothings, finder.schemes, groups, folder, bar)
    of_values = {group.values: smoothing for group, smoothing in finder.smoothings.items() if group.values}
    cache = CacheRounding(of_values, bar)
    if int8_cache:
        bar.reset(bar.total + networks[DECODER].sizes.num_hidden_layers)
    if compensator.awaited or int8_cache:
        count = max(len(images), COMPENSATED_TOKENS // length if compensator.awaited else 0)
        again = torch.arange(count) % len(images)
        computed(DECODER, prompts(images[again]), compensator.observe, *([cache.observe] if int8_cache else ()))
    return Calibrated(finder.smoothings, finder.schemes, compensator.rounded, cache.found)


class Finder:
    """Finds each group's smoothing when its first layer runs: all layers of a group read the same input.

    Args:
        tensors: The weights, ``<name>.weight`` for each linear layer.
        groups: The groups of layers that share a smoothing.
        bar: Counts the groups.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[Group], bar: tqdm) -> None:
        self.smoothings: dict[Group, Smoothing] = {}
        """The smoothings found so far, without the groups that are better left unchanged."""
        self.schemes: dict[str, Scheme] = {}
        """The best quantisation of each linear layer so far."""
        self._tensors, self._bar = tensors, bar
        self._groups = {group.linears[0]: group for group in groups}
        bar.reset(len(groups))

    def observer(self, candidates_of: CandidatesOf) -> Callable[[str, Value], None]:
        """The observer for a part whose layers have these candidates."""

        def observe(name: str, x: Value) -> None:
            group = self._groups.get(name)
            if group is None:
                return
            if schemes := candidates_of(name):
                self._find(group, schemes, x.data.flatten(0, -2))
            self._bar.update()

        return observe

    def _find(self, group: Group, schemes: tuple[Scheme, ...], x: Tensor) -> None:
        weights = [self._tensors[f"{linear}.weight"] for linear in group.linears]
        for scheme in schemes:
            smoothing = find_smoothing(group, x, weights, scheme)
            if smoothing.error <= scheme.close_enough * len(weights):
                break
        self.schemes |= dict.fromkeys(group.linears, scheme)
        if not smoothing.nothing:
            self.smoothings[group] = smoothing


def _prompts(
    table: Tensor, question: tuple[list[int], list[int]], text: list[int], length: int, images: Tensor
) -> Tensor:
    """A prompt for each image, [images, length, hidden]: the question about it, answered by a piece of the text.

    The text is repeated if it is too short.
    """
    before, after = question
    room = length - len(before) - images.shape[1] - len(after)
    if room < 1 or not text:
        raise ExportError(f"a context of {length} tokens is too short for calibration; pass --calibration none")
    rows = []
    for i, image in enumerate(images):
        answer = [text[j % len(text)] for j in range(i * room, (i + 1) * room)]
        rows.append(torch.cat((table[before], image, table[after], table[answer])))
    return torch.stack(rows)


def _pixel_values(path: Path, image: ImagePreprocessing) -> Tensor:
    try:
        picture: Image.Image = open_image(path)
    except ImageError as error:
        raise ExportError(f"--calibration: {error}") from error
    return torch.from_numpy(preprocess(picture, image))


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--calibration: {path} cannot be read ({reason_of(error)}); expected UTF-8 text") from error
    if not text:
        raise ExportError(f"--calibration: {path} is empty; expected some text")
    return text
