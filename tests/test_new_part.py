"""A part is one file: all else follows from it, from the graph to the bundle that the runtime answers with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
import toy_tower
from conftest import computed, published_files
from networks import int8, random_input, random_tensors, run_vision, together, write
from tinygptv.export import bundle as bundle_module
from tinygptv.export.bundle import export_bundle
from tinygptv.export.documents import Config, read_json
from tinygptv.export.graph import TAPS
from tinygptv.export.ops import LEAST
from tinygptv.export.parts import mlp, phi
from tinygptv.export.smoothing import Group, Smoothed, Smoothing, groups_of
from tinygptv.export.sources.families import LLAVA_PHI
from tinygptv.export.sources.ledger import KeyLedger, Ledgers
from tinygptv.export.sources.model import Description, Model, Network
from tinygptv.export.sources.opening import open_folder
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, ImagePreprocessing, read_manifest
from tinygptv.runtime.errors import ExportError
from tinygptv.runtime.vision.image import open_image, preprocess
from torch import Tensor
from variants import Published

TOLERANCE = 1e-4
SIZES = toy_tower.Sizes()
TOWER = Network(toy_tower, SIZES)
NETWORKS = together(TOWER, Network(mlp, mlp.Sizes(SIZES.tokens, SIZES.hidden_size, 32, 2, numbered=True)))
GROUPS = [
    Group(("toy.0.qkv",), norm="toy.0.rms", norm_has_bias=False),
    Group(("toy.0.out",), values="toy.0.qkv", heads=2),
    # The output of a norm that is added up as well is divided by the graph, for its linear layer alone.
    Group(("toy.0.mlp.up",)),
    Group(("toy.0.mlp.down",), least=LEAST["quick"]),
    Group(("toy.1.qkv",), norm="toy.1.rms", norm_has_bias=False),
    Group(("toy.1.out",), values="toy.1.qkv", heads=2),
    Group(("toy.1.mlp.up",)),
    Group(("toy.1.mlp.down",), least=LEAST["quick"]),
]


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


def test_the_graph_and_its_twin(tmp_path: Path) -> None:
    tensors, x = random_tensors(NETWORKS), random_input(TOWER, batch=2)
    twin = computed(NETWORKS, tensors, VISION_ENCODER, x)
    assert twin.shape == (2, SIZES.tokens, SIZES.hidden_size)
    graph = write(tmp_path, NETWORKS, VISION_ENCODER, tensors)
    assert deviation(run_vision(tmp_path, graph, x), twin) < TOLERANCE
    model = onnx.load(tmp_path / graph.file, load_external_data=False)
    (noted,) = (entry.value for entry in model.metadata_props if entry.key == TAPS)
    assert list(json.loads(noted)) == ["layer 0", "layer 1", "image_features"]


def test_it_is_quantised_but_for_what_is_exact(tmp_path: Path) -> None:
    tensors, x = random_tensors(NETWORKS), random_input(TOWER)
    twin = computed(NETWORKS, tensors, VISION_ENCODER, x)
    scheme_of = int8(VISION_ENCODER, 16, toy_tower.EXACT)
    graph = write(tmp_path, NETWORKS, VISION_ENCODER, tensors, scheme_of)
    found = run_vision(tmp_path, graph, x)
    assert 1e-4 < float((found - twin).norm() / twin.norm()) < 0.15
    (quantised,) = graph.quantization
    assert quantised.layers == SIZES.num_hidden_layers * 6 - len(toy_tower.EXACT)


def test_its_groups() -> None:
    assert list(groups_of(toy_tower, SIZES)) == GROUPS


def test_smoothing_keeps_its_function(tmp_path: Path) -> None:
    """Its q, k and v get the bias that moving v needs."""
    plain, x = random_tensors(NETWORKS), random_input(TOWER)
    generator = torch.Generator().manual_seed(4)
    smoothings = {}
    for group in GROUPS:
        shift, factor = torch.randn(2, plain[f"{group.linears[0]}.weight"].shape[1], generator=generator)
        shift = shift if group.values else torch.zeros_like(shift)
        given_back = tuple(plain[f"{linear}.weight"] @ shift for linear in group.linears)
        smoothings[group] = Smoothing(shift, factor.exp(), given_back)
    tensors = Smoothed(plain, smoothings)
    assert {name for name in tensors if name not in plain and name.endswith("bias")} == {
        "toy.0.qkv.bias",
        "toy.1.qkv.bias",
    }
    graph = write(tmp_path, NETWORKS, VISION_ENCODER, tensors)
    assert deviation(run_vision(tmp_path, graph, x), computed(NETWORKS, plain, VISION_ENCODER, x)) < 1e-3


# A model with it


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """What a published file of the model holds: the tower, a projector, and a golden checkpoint's Phi-2."""
    golden = Published.golden(3)
    hidden = golden.config["hidden_size"]
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    tower = {f"tower.{name}": tensor for name, tensor in random_tensors({VISION_ENCODER: TOWER}).items()}
    projector = {
        "projector.0.weight": some(hidden, SIZES.hidden_size),
        "projector.0.bias": some(hidden),
        "projector.2.weight": some(hidden, hidden),
        "projector.2.bias": some(hidden),
    }
    return {**tower, **projector, **golden.phi, "tower.toy.head.weight": torch.ones(3)}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[dict[str, Tensor]], Model]:
    """The model of such a file; what a reader of its family would do."""
    tokenizer = Path(published_files(3)["--phi"])
    folder = tmp_path / "published"
    folder.mkdir()

    def model(weights: dict[str, Tensor]) -> Model:
        safetensors.torch.save_file(
            {key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors"
        )
        file = tokenizer / "config.json"
        language = phi.sizes_from(Config(str(file), read_json(file)))
        projector = mlp.Sizes(SIZES.tokens, SIZES.hidden_size, language.hidden_size, 2, numbered=True)
        half = (0.5, 0.5, 0.5)
        description = Description(
            family=replace(LLAVA_PHI, name="toy"),
            networks={VISION_ENCODER: TOWER, PROJECTOR: Network(mlp, projector), DECODER: Network(phi, language)},
            image=ImagePreprocessing(SIZES.image_size, half, half, resample="bicubic", fit="squash"),
            tokenizer=tokenizer,
            default_template="llava",
        )
        reader = open_folder(folder, "--model")
        ledger = KeyLedger(reader, "the download is incomplete", (), home="")
        return Model(description, Ledgers([ledger]), [reader], [("model", file) for file in reader.files])

    return model


def test_its_keys_are_accounted_for(weights: dict[str, Tensor], opened: Callable[[dict[str, Tensor]], Model]) -> None:
    model = opened(weights)
    assert {name: model[name].shape for name in model if name.startswith("toy.")} == toy_tower.tensors(SIZES)
    for name, tensor in random_tensors({VISION_ENCODER: TOWER}).items():
        assert torch.equal(model[name], tensor)
    missing = weights.pop("tower.toy.1.rms.weight")
    with pytest.raises(ExportError, match=r"missing tower\.toy\.1\.rms\.weight;"):
        opened(weights)
    with pytest.raises(ExportError, match=r"unknown tower\.toy\.2\.rms\.weight;"):
        opened(weights | {"tower.toy.1.rms.weight": missing, "tower.toy.2.rms.weight": missing.clone()})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_runtime_answers_with_it(
    precision: str,
    weights: dict[str, Tensor],
    opened: Callable[[dict[str, Tensor]], Model],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = opened(weights)

    def open_model(**sources: Any) -> Model:
        return model

    monkeypatch.setattr(bundle_module, "open_model", open_model)
    folder = export_bundle(output=tmp_path / "bundle", precision=precision, model="toy").path
    manifest = read_manifest(folder)
    assert (manifest.family, list(manifest.parts)) == ("toy", ["toy_tower", "mlp", "phi"])
    pixels = preprocess(open_image(photo), manifest.image)
    features = computed(model.networks, model, VISION_ENCODER, torch.from_numpy(pixels))
    wanted = computed(model.networks, model, PROJECTOR, features)
    with TinyGPTV.load(folder) as bundle:
        encoded = bundle.encode_image(photo)
        found = torch.tensor(encoded.embeds).reshape(wanted.shape)
        error = float((found - wanted).norm() / wanted.norm())
        assert error < 1e-5 if precision == "fp32" else 1e-4 < error < 0.05
        answer = bundle.ask(encoded, "what?", max_new_tokens=8)
    assert answer.prompt_tokens > SIZES.tokens and len(answer.token_ids) > 0
