"""Every field of a configuration is obeyed, checked, or known to change no number; all others are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Refusal, open_published
from sibling_layouts import build, one_folder
from siblings import FAMILIES, Sibling, write
from tinygptv.export.documents import Config
from tinygptv.export.harmless import HARMLESS
from tinygptv.export.parts import Tower, clip, phi, siglip
from tinygptv.export.sources import open_model
from tinygptv.runtime.errors import ExportError
from transformers import CLIPVisionConfig, PhiConfig, SiglipVisionConfig
from variants import Published

PHI_2 = {"hidden_size": 160, "num_attention_heads": 4, "num_hidden_layers": 3, "partial_rotary_factor": 0.4}
Fields = dict[str, Any]


def sizes_of(fields: Fields) -> phi.Sizes:
    config = Config("config.json", fields, phi.DEFAULTS)
    sizes = phi.sizes_from(config)
    config.finish()
    return sizes


def opened(files: Fields, folder: Path) -> phi.Sizes:
    """The decoder's sizes of a sibling's files."""
    options = {name.removeprefix("--"): value for name, value in write(files, folder).items()}
    model = open_model(**options)
    return model.networks["decoder"].sizes


# Rotary embeddings


SCALED = [
    {"rope_type": "linear", "factor": 2.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear"},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
    {"rope_type": "default", "type": "su"},
    {"rope_type": "default", "factor": 2.0},
    {"factor": 2.0},
    {"mrope_section": [16, 24, 24]},
    {"full_attention": {"rope_type": "default"}},
]


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("value", [*SCALED, [1], "linear"])
def test_a_scaled_rotation_is_refused(name: str, value: Any, golden: Published, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=name):
        sizes_of(PHI_2 | {name: value})
    golden.config[name] = value
    with pytest.raises(ExportError, match=rf"phi-2/config\.json: {name}"):
        open_published(golden.write(tmp_path / "files"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_a_scaled_rotation_of_a_sibling_is_refused(family: str, name: str, tmp_path: Path, refusal: Refusal) -> None:
    sibling = Sibling.golden(family)
    sibling.text_config[name] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    message = refusal(write(one_folder(sibling), tmp_path / "files"))
    assert f"{name}: rope_type is 'yarn', which is not supported; expected absent or 'default'" in message


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"rope_type": "default"},
        {"type": "default"},
        {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
        {"rope_theta": 10000},
        {"rope_type": "default", "factor": 1.0, "attention_factor": None},
    ],
)
def test_what_scales_nothing_is_accepted(name: str, value: Any) -> None:
    assert sizes_of(PHI_2 | {"rope_theta": 10000.0, name: value}) == sizes_of(PHI_2)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rotary_settings_in_one_object_are_obeyed(name: str) -> None:
    """As transformers 5 writes them, without the old fields; what is absent is PhiConfig's."""
    fields = {key: value for key, value in PHI_2.items() if key != "partial_rotary_factor"}
    sizes = sizes_of(fields | {name: {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.2}})
    assert (sizes.rope_theta, sizes.rotary_dim) == (100.0, 8)
    assert sizes_of(fields | {name: {"rope_theta": 100.0}}).rotary_dim == 20


@pytest.mark.parametrize(("field", "own", "other"), [("rope_theta", 1e4, 100.0), ("partial_rotary_factor", 0.4, 0.2)])
def test_rotary_settings_that_contradict_each_other(field: str, own: float, other: float) -> None:
    with pytest.raises(ExportError, match=rf"rope_parameters: {field} is {other}, but {own} outside of it"):
        sizes_of(PHI_2 | {field: own, "rope_parameters": {field: other}})
    fields = {key: value for key, value in PHI_2.items() if key != field}
    with pytest.raises(ExportError, match=rf"rope_scaling: {field} is {other}, but {own} outside of it"):
        sizes_of(fields | {"rope_parameters": {field: own}, "rope_scaling": {field: other}})


# All fields of transformers' classes


def something_else(value: Any) -> Any:
    """Another value than a class's default, and not one that asks for nothing."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return 2 * value or 2
    return "something" if isinstance(value, str) else {"0": [1]}


def obeyed_or_refused(read: Callable[[Fields], Any], fields: Fields, name: str, value: Any) -> bool:
    """Whether a field with another value changes the sizes, or stops the export by its name."""
    try:
        return bool(read(fields | {name: value}) != read(fields))
    except ExportError as error:
        return name in str(error)


PHI_FIELDS = PhiConfig(hidden_size=1280, num_hidden_layers=2).to_dict() | {"num_key_value_heads": None}


def test_all_that_phi_config_writes_is_accepted() -> None:
    assert sizes_of(PHI_FIELDS) == sizes_of({"hidden_size": 1280, "num_hidden_layers": 2})


@pytest.mark.parametrize("name", sorted({*PHI_FIELDS, "head_dim"} - HARMLESS | {"hidden_size", "vocab_size"}))
def test_each_field_of_phi_config_is_obeyed_or_refused(name: str) -> None:
    assert obeyed_or_refused(sizes_of, PHI_FIELDS, name, something_else(PHI_FIELDS.get(name, 30)))


TOWERS: list[tuple[Tower, Fields]] = [
    (clip, CLIPVisionConfig().to_dict()),
    (siglip, SiglipVisionConfig().to_dict()),
]


@pytest.mark.parametrize(
    ("tower", "fields", "name"),
    [(tower, fields, name) for tower, fields in TOWERS for name in sorted({*fields} - HARMLESS | {"hidden_size"})],
)
def test_each_field_of_a_tower_is_obeyed_or_refused(tower: Tower, fields: Fields, name: str) -> None:
    def sizes(fields: Fields) -> Any:
        config = Config("config.json", fields, tower.DEFAULTS)
        found = tower.sizes_from(config, -2, True)
        config.finish()
        return found

    assert obeyed_or_refused(sizes, fields, name, something_else(fields[name]))


# Unknown fields


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_field_that_asks_for_nothing_is_passed_over(value: Any) -> None:
    assert sizes_of(PHI_2 | {"surprise": value}) == sizes_of(PHI_2)


@pytest.mark.parametrize("value", [True, 512, 0.5, "yes", [1], {"bits": 4}])
def test_an_unknown_field_is_named(value: Any) -> None:
    with pytest.raises(ExportError) as caught:
        sizes_of(PHI_2 | {"surprise": value})
    assert str(caught.value) == (
        f"config.json: unknown surprise ({value!r}); this may mean a different network from the one the exporter "
        "knows: if it does not, take it out of the file"
    )


def test_many_unknown_fields_are_counted() -> None:
    with pytest.raises(ExportError, match=r"unknown a0 \(1\), a1 \(1\), a2 \(1\) and 4 more;"):
        sizes_of(PHI_2 | {f"a{i}": 1 for i in range(7)})


PLACES = [
    ("llava-phi", "fused bf16", "model/config.json", ()),
    ("llava-phi", "fused bf16", "model/config.json", ("vision_config",)),
    ("llava-phi", "fused bf16", "model/config.json", ("vision_config", "vision_tower")),
    ("llava-phi", "fused bf16", "model/config.json", ("vision_config", "mm_projector")),
    ("llava-phi", "fused bf16", "model/preprocessor_config.json", ()),
    ("mipha", "separate bf16", "model/config.json", ()),
    ("mipha", "separate bf16", "model/config.json", ("vision_config", "vision_tower")),
    ("tinyllava", "one folder", "model/config.json", ()),
    ("tinyllava", "one folder", "model/config.json", ("text_config",)),
    ("tinyllava", "one folder", "model/config.json", ("vision_config",)),
    ("tinyllava", "recipe", "model/language_model/config.json", ()),
    ("tinyllava", "recipe", "model/vision_tower/config.json", ()),
    ("tinyllava", "LoRA recipe", "model/adapter_config.json", ()),
    ("tinyllava", "legacy", "model/config.json", ()),
    ("tinyllava", "legacy", "tower/config.json", ("vision_config",)),
    ("bunny", "merged", "model/config.json", ()),
    ("bunny", "merged", "tower/config.json", ("vision_config",)),
    ("bunny", "LoRA", "model/config.json", ()),
    ("bunny", "LoRA", "model/adapter_config.json", ()),
    ("bunny", "LoRA", "tower/config.json", ("vision_config",)),
    ("bunny", "LoRA", "tower/preprocessor_config.json", ()),
]


@pytest.mark.parametrize(("family", "layout", "path", "keys"), PLACES)
def test_an_unknown_field_is_found_wherever_it_is(
    family: str, layout: str, path: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    files = build(family, layout)
    document = files[path] = files[path] if isinstance(files[path], dict) else json.loads(files[path])
    for key in keys:
        document = document[key]
    document["surprise"] = 512
    with pytest.raises(ExportError, match=rf"{path}.*: unknown surprise \(512\);"):
        opened(files, tmp_path)


def test_an_unknown_field_of_phi_2(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.config |= {"sliding_window": 512, "quantization_config": {"load_in_4bit": True}}
    message = refusal(golden.write(tmp_path / "files"))
    assert "phi-2/config.json: unknown sliding_window (512), quantization_config ({'load_in_4bit': True});" in message


@pytest.mark.parametrize(
    ("family", "layout", "path", "field", "value"),
    [
        ("bunny", "merged", "model/config.json", "mm_vision_select_layer", -1),
        ("bunny", "merged", "model/config.json", "mm_vision_select_feature", "cls_patch"),
        ("bunny", "merged", "model/config.json", "use_mm_proj", False),
        ("tinyllava", "legacy", "model/config.json", "mm_use_im_start_end", True),
        ("tinyllava", "legacy", "model/config.json", "use_s2", True),
        ("tinyllava", "legacy", "model/config.json", "mm_patch_merge_type", "spatial_unpad"),
        ("llava-phi", "one file", "model/config.json", "pruned_heads", {"0": [1]}),
        ("llava-phi", "one file", "model/config.json", "head_dim", 20),
        ("bunny", "LoRA", "model/adapter_config.json", "init_lora_weights", "pissa"),
        ("bunny", "LoRA", "model/adapter_config.json", "layer_replication", [[0, 2]]),
        ("bunny", "LoRA", "model/adapter_config.json", "exclude_modules", ["fc1"]),
        ("bunny", "LoRA", "model/adapter_config.json", "trainable_token_indices", [5]),
    ],
)
def test_a_field_that_asks_for_another_network(
    family: str, layout: str, path: str, field: str, value: Any, tmp_path: Path
) -> None:
    files = build(family, layout)
    files[path][field] = value
    with pytest.raises(ExportError, match=rf"{path}.*{field}"):
        opened(files, tmp_path)


@pytest.mark.parametrize(("field", "value"), [("vit_model", "clip_L"), ("has_qformer", False)])
def test_a_stage_file_of_another_network(field: str, value: Any, golden: Published, tmp_path: Path) -> None:
    golden.checkpoint_file["config"]["model"][field] = value
    with pytest.raises(ExportError, match=rf"Stage4\.pth: config\.model: {field} is {value!r}"):
        open_published(golden.write(tmp_path / "files"))


# A part that is described twice


@pytest.mark.parametrize(("part", "name"), [("language_model", "text_config"), ("vision_tower", "vision_config")])
def test_a_part_whose_two_configurations_contradict_each_other(part: str, name: str, tmp_path: Path) -> None:
    files = build("tinyllava", "recipe")
    files[f"model/{part}/config.json"]["layer_norm_eps"] = 1e-3
    with pytest.raises(ExportError, match=rf"{part}/config\.json: layer_norm_eps is 0\.001, but .* {name}; expected"):
        opened(files, tmp_path)


@pytest.mark.parametrize("heads", [4, 2])
def test_the_second_description_in_old_files_of_a_tower(heads: int, tmp_path: Path) -> None:
    """CLIP's first files have one more, which transformers lets win."""
    files = build("bunny", "LoRA")
    config = files["tower/config.json"]
    config["vision_config_dict"] = config["vision_config"] | {"num_attention_heads": heads}
    if heads == 4:
        assert opened(files, tmp_path).hidden_size == 160
        return
    with pytest.raises(ExportError, match=r"num_attention_heads is 4, but 2 in .*vision_config_dict; expected"):
        opened(files, tmp_path)
