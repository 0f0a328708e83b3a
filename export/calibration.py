"""Shows the model some pictures and texts in float32, and finds the smoothing that int8 needs.

What is seen decides only how weights and activations share their range; no picture and no text gets into the bundle.
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
"""Photos and texts that come with the exporter; its README says where they are from."""
MORE = PACKAGED / "more"
"""Further texts that come with it, for 4 bits: what compensation is not shown, it rounds worse."""
PHOTO_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
TEXT_SUFFIX = ".txt"
MAX_PHOTOS = 16
"""More would take hours at the published sizes, and change nothing that was measured."""
PROMPT_TOKENS, TEXT_TOKENS = 256, 224
"""Least length of each prompt the decoder sees, and of what it holds besides its image's tokens, as far as the context
has room."""
COMPENSATED_TOKENS = 4096
"""Of all prompts together that 4-bit weights are rounded on. A quarter of it loses a tenth more on a language model
(benchmarks/fidelity); at the published sizes 1,000 tokens take half a minute."""


@dataclass(frozen=True)
class CalibrationSet:
    """Files to calibrate with: pictures, and plain UTF-8 texts such as answers might hold."""

    photos: tuple[Path, ...]
    texts: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.photos, *self.texts)


@dataclass(frozen=True)
class Calibrated:
    """What the exporter learnt of a model."""

    smoothings: dict[Group, Smoothing]
    schemes: dict[str, Scheme]
    """How each linear layer that was seen is quantised."""
    rounded: dict[str, Tensor]
    """Weights of 4 bits, as a :class:`.compensation.Compensator` names them."""
    cache_rounding: dict[str, Tensor]
    """Of an int8 KV cache, as a :class:`.cache_rounding.CacheRounding` names it."""


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

    On a second look layers of 4 bits are rounded, at more prompts, and the steps of an int8 KV cache are found.

    Memory holds one layer's weights and the activations of all pictures, or of all prompts, at a time.

    Args:
        model: The model.
        template: Prompt format that the decoder is calibrated in.
        tokenizer: Of the model.
        calibration: What to show it.
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
        """``watching``: see :class:`.torch_ops.TorchOps`."""
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
    """Finds each group's smoothing when the first of its layers computes: all of them read the same input.

    Args:
        tensors: The weights, ``<name>.weight`` for each linear layer.
        groups: Which layers share one.
        bar: Counts the groups.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[Group], bar: tqdm) -> None:
        self.smoothings: dict[Group, Smoothing] = {}
        """What was found so far; a group that is better left alone is not in it."""
        self.schemes: dict[str, Scheme] = {}
        """How each linear layer is quantised best, of those that were seen."""
        self._tensors, self._bar = tensors, bar
        self._groups = {group.linears[0]: group for group in groups}
        bar.reset(len(groups))

    def observer(self, candidates_of: CandidatesOf) -> Callable[[str, Value], None]:
        """What watches a part whose layers may be quantised so."""

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

    The text is begun again where it is too short.
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
