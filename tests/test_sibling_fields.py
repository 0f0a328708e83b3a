"""What config.json says is what is exported: siblings with other fields than the golden ones, against the reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import export_arguments
from graph_runs import TOLERANCE, GraphRuns, deviation
from numpy.typing import NDArray
from sibling_layouts import one_folder
from sibling_reference import Reference, pixel_values
from siblings import SIBLINGS, Files, Sibling, golden_numbers, write
from tinygptv.export.cli import main as export_main
from tinygptv.runtime import TinyGPTV

ARRAYS = ("image_features", "image_embeds", "prefill_logits", "step_logits")
Change = Callable[[Sibling], object]


def exported(files: Files, folder: Path) -> Path:
    options = write(files, folder)
    assert export_main(export_arguments(options, folder / "bundle", "--precision", "fp32")) == 0
    return folder / "bundle"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Half precision, of the scale that keeps an input's in a matrix product."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).half()


def select_layer(layer: int) -> Change:
    def change(sibling: Sibling) -> None:
        if sibling.family == "tinyllava":
            sibling.config["vision_feature_layer"] = layer
        else:
            sibling.tower_config["mm_vision_select_layer"] = layer

    return change


def all_tokens(sibling: Sibling) -> None:
    if sibling.family == "tinyllava":
        sibling.config["vision_feature_select_strategy"] = "cls_patch"
    else:
        sibling.tower_config["mm_vision_select_feature"] = "cls_patch"


def tower_field(**fields: Any) -> Change:
    return lambda sibling: sibling.tower_config.update(fields)


def text_field(**fields: Any) -> Change:
    return lambda sibling: sibling.text_config.update(fields)


def small_activations(sibling: Sibling) -> None:
    """So small that the epsilon of the tower's norms counts."""
    for key in sibling.tower:
        if ".embeddings." in key:
            sibling.tower[key] = sibling.tower[key] * 0.003


def projector(kind: str) -> Change:
    def change(sibling: Sibling) -> None:
        config = sibling.config
        if sibling.family == "tinyllava":
            config["connector_type"] = kind
        elif sibling.family == "bunny":
            config["mm_projector_type"] = kind
        else:
            config["vision_config"]["mm_projector"]["mm_projector_type"] = kind
        names = [""] if kind == "linear" else [f"{2 * i}." for i in range(int(kind[3]))]
        sibling.projector = {}
        for i, name in enumerate(names):
            sibling.projector |= {f"{name}weight": random(160, 160 if i else 64), f"{name}bias": random(160)}

    return change


def published_number_of_heads(sibling: Sibling) -> None:
    """32, which differences from PhiConfig do not mention: in a model that is wide enough for so many."""
    hidden, mlp, rows = 1280, 64, 320
    text = sibling.text_config
    text |= {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": 1}
    del text["num_attention_heads"], text["num_key_value_heads"]
    sibling.config["hidden_size"] = hidden
    layer = "model.layers.0"
    shapes = {f"{layer}.self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "dense")}
    shapes |= {f"{layer}.mlp.fc1": (mlp, hidden), f"{layer}.mlp.fc2": (hidden, mlp), "lm_head": (rows, hidden)}
    sibling.phi = {"model.embed_tokens.weight": random(rows, hidden) * 30}
    for seed, (name, shape) in enumerate(shapes.items()):
        sibling.phi |= {f"{name}.weight": random(*shape, seed=seed), f"{name}.bias": random(shape[0], seed=seed)}
    for norm in (f"{layer}.input_layernorm", "model.final_layernorm"):
        sibling.phi |= {f"{norm}.weight": 1 + random(hidden), f"{norm}.bias": random(hidden)}
    sibling.projector = {"0.weight": random(hidden, 64), "0.bias": random(hidden)}
    sibling.projector |= {"2.weight": random(hidden, hidden), "2.bias": random(hidden)}


CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("last block", "llava-phi", select_layer(-1)),
    ("last block", "mipha", select_layer(-1)),
    ("last block", "tinyllava", select_layer(-1)),
    ("first block", "llava-phi", select_layer(-3)),
    ("first block", "tinyllava", select_layer(-3)),
    ("all tokens", "llava-phi", all_tokens),
    ("all tokens", "tinyllava", all_tokens),
    ("exact GELU", "llava-phi", tower_field(hidden_act="gelu")),
    ("tanh GELU", "llava-phi", tower_field(hidden_act="gelu_pytorch_tanh")),
    ("exact GELU", "tinyllava", tower_field(hidden_act="gelu")),
    ("quick GELU", "mipha", tower_field(hidden_act="quick_gelu")),
    ("two heads in the tower", "llava-phi", tower_field(num_attention_heads=2)),
    ("two heads in the tower", "mipha", tower_field(num_attention_heads=2)),
    ("two heads in the tower", "tinyllava", tower_field(num_attention_heads=2)),
    ("two heads in the tower", "bunny", tower_field(num_attention_heads=2)),
    ("epsilon of the tower", "llava-phi", tower_field(layer_norm_eps=1e-2)),
    ("epsilon of the tower", "mipha", tower_field(layer_norm_eps=1e-2)),
    ("small activations", "llava-phi", small_activations),
    ("small activations", "mipha", small_activations),
    ("small activations", "tinyllava", small_activations),
    ("small activations", "bunny", small_activations),
    ("one layer", "llava-phi", projector("mlp1x_gelu")),
    ("three layers", "mipha", projector("mlp3x_gelu")),
    ("linear", "tinyllava", projector("linear")),
    ("linear", "bunny", projector("linear")),
    ("two heads", "llava-phi", text_field(num_attention_heads=2, num_key_value_heads=2)),
    ("published number of heads", "tinyllava", published_number_of_heads),
    ("PhiConfig's rotary dimensions", "llava-phi", lambda sibling: sibling.text_config.pop("partial_rotary_factor")),
    ("rotary dimensions", "mipha", text_field(partial_rotary_factor=0.2)),
    ("rotary base", "bunny", text_field(rope_theta=100.0)),
    ("epsilon of the language model", "tinyllava", text_field(layer_norm_eps=1e-2)),
)


@pytest.mark.parametrize(
    ("family", "change"), [pytest.param(family, change, id=f"{name}-{family}") for name, family, change in CHANGES]
)
def test_field_is_obeyed(family: str, change: Change, tmp_path: Path) -> None:
    sibling, expected = Sibling.golden(family), golden_numbers(family)
    change(sibling)
    wanted = Reference(sibling).run(expected)
    assert max(deviation(wanted[name], expected[name]) for name in ARRAYS) > 2 * TOLERANCE, "it changes nothing"
    found = GraphRuns(exported(one_folder(sibling), tmp_path)).run(expected)
    assert {name: deviation(found[name], wanted[name]) < TOLERANCE for name in ARRAYS} == dict.fromkeys(ARRAYS, True)


def test_small_activations_tell_epsilons_apart() -> None:
    sibling, expected = Sibling.golden("mipha"), golden_numbers("mipha")
    small_activations(sibling)
    wanted = Reference(sibling).image_features(expected["pixel_values"])
    sibling.tower_config["layer_norm_eps"] = 1e-5
    found = Reference(sibling).image_features(expected["pixel_values"])
    assert deviation(found, wanted) > 10 * TOLERANCE


def without_aspect(sibling: Sibling) -> None:
    del sibling.config["image_aspect_ratio"]


def aspect(value: str) -> Change:
    return lambda sibling: sibling.config.update(image_aspect_ratio=value)


@pytest.mark.parametrize(
    ("family", "change", "fit"),
    [
        ("llava-phi", aspect("square"), "crop"),
        ("llava-phi", without_aspect, "crop"),
        ("mipha", aspect("square"), "squash"),
        ("mipha", without_aspect, "squash"),
        ("tinyllava", aspect("pad"), "pad"),
        ("tinyllava", without_aspect, "squash"),
        ("bunny", aspect("square"), "squash"),
    ],
)
def test_pictures_are_prepared_as_the_config_says(family: str, change: Change, fit: str, tmp_path: Path) -> None:
    sibling, expected, picture = Sibling.golden(family), golden_numbers(family), SIBLINGS / family / "picture.png"
    change(sibling)
    reference = Reference(sibling)
    pixels = pixel_values(picture, sibling.tower_config["image_size"], fit, reference.is_clip)
    if "pixel_values_demo" in expected:
        assert np.array_equal(pixels, expected["pixel_values_demo"])
    wanted = reference.image_embeds(reference.image_features(pixels))
    with TinyGPTV.load(exported(one_folder(sibling), tmp_path)) as model:
        assert deviation(model.encode_image(picture).embeds, wanted[0]) < TOLERANCE


def test_mean_and_std_of_the_processor_are_obeyed(tmp_path: Path) -> None:
    sibling, picture = Sibling.golden("llava-phi"), SIBLINGS / "llava-phi" / "picture.png"
    files = one_folder(sibling)
    document = json.loads(files["model/preprocessor_config.json"]) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    files["model/preprocessor_config.json"] = document
    reference = Reference(sibling)
    pixels: NDArray[np.float32] = pixel_values(picture, 56, "pad", clip=False)
    wanted = reference.image_embeds(reference.image_features(pixels))
    with TinyGPTV.load(exported(files, tmp_path)) as model:
        assert deviation(model.encode_image(picture).embeds, wanted[0]) < TOLERANCE


def test_layer_of_bunny_counts_from_the_depth_of_its_tower(tmp_path: Path) -> None:
    """Whether all blocks are stored or not; with one more in the tower's config, one more is run."""
    sibling, expected = Sibling.golden("bunny"), golden_numbers("bunny")
    sibling.tower_config["num_hidden_layers"] = 5
    for key, tensor in list(sibling.siglip["tower/model.safetensors"].items()):
        if ".encoder.layers.3." in key and key.startswith("vision_model."):
            sibling.tower[key] = tensor.half()
    wanted = Reference(sibling).image_features(expected["pixel_values"])
    assert deviation(wanted, expected["image_features"]) > 10 * TOLERANCE
    found = GraphRuns(exported(one_folder(sibling), tmp_path)).image_features(expected["pixel_values"])
    assert deviation(found, wanted) < TOLERANCE
