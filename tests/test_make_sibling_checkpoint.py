from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import make_checkpoint
import numpy as np
import pytest
import safetensors.torch
import sibling_files
import torch
from conftest import export_arguments
from graph_runs import TOLERANCE, GraphRuns, deviation
from sibling_reference import Reference
from siblings import FAMILIES, SIBLINGS, Sibling, golden_numbers
from tinygptv.export.cli import main as export_main
from tokenizers import Tokenizer

Made = Callable[[str], Path]
DOCUMENTS = ("config.json", "generation_config.json", "preprocessor_config.json")
PARAMETERS = {
    "llava-phi": 3_092_371_456,
    "mipha": 3_217_417_280,
    "tinyllava": 3_217_417_280,
    "bunny": 3_182_254_624,
}
"""Of the published models, as transformers counts them."""


def make(family: str, out: Path, *options: str) -> int:
    return make_checkpoint.main(["--family", family, "--out", str(out), "--scale", "tiny", *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")

    def make_once(family: str) -> Path:
        assert make(family, folder / family) == 0
        return folder / family

    return make_once


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.torch.load_file(shard)
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_model_folder_has_golden_keys_shapes_and_dtypes(family: str, made: Made) -> None:
    found, golden = load(made(family) / "model"), load(SIBLINGS / family / "checkpoint")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in golden.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_index_says_where_each_tensor_is(family: str, made: Made) -> None:
    folder = made(family) / "model"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {path.name: safetensors.torch.load_file(path) for path in folder.glob("*.safetensors")}
    assert len(shards) == 2
    assert index["weight_map"] == {key: name for name, shard in shards.items() for key in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_and_tokenizer_are_those_of_the_golden_folder(family: str, made: Made) -> None:
    folder, golden = made(family) / "model", SIBLINGS / family / "checkpoint"
    weights = {path.name for path in folder.glob("*.safetensors")}
    assert {path.name for path in folder.iterdir()} - weights == {
        path.name for path in golden.iterdir() if path.suffix != ".safetensors"
    }
    for name in DOCUMENTS:
        if (golden / name).is_file():
            assert json.loads((folder / name).read_text()) == json.loads((golden / name).read_text())
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        assert (folder / name).read_bytes() == (golden / name).read_bytes()


@pytest.mark.parametrize("family", ["llava-phi", "mipha", "bunny"])
def test_fast_tokenizer_is_made_from_the_slow_ones_files(family: str, made: Made) -> None:
    found, golden = (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in (made(family) / "model", SIBLINGS / family / "checkpoint")
    )
    assert found.get_vocab() == golden.get_vocab()
    text = "USER: What\t\tis   in the picture?\n ASSISTANT: Two dogs, I'd say.<|endoftext|>    USER: é \U0001f600"
    assert found.encode(text).ids == golden.encode(text).ids
    assert found.decode(found.encode(text).ids) == golden.decode(golden.encode(text).ids)


def test_small_bunny_has_its_tower_beside_it(made: Made) -> None:
    folder, golden = made("bunny") / "tower", SIBLINGS / "bunny" / "siglip"
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((golden / name).read_text())
    found, wanted = load(folder), load(golden)
    used = {name: tensor.shape for name, tensor in wanted.items() if not name.startswith("text_model.")}
    assert {name: tensor.shape for name, tensor in found.items()} == used
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert not sibling_files.needs_tower_folder("bunny", "published")


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_stay_of_one_scale_through_the_network(family: str, made: Made) -> None:
    """So that half precision holds them, and what int8 costs is no other than in a trained model."""
    folder = made(family)
    reference = Reference(Sibling.read(family, folder / "model", folder / "tower" if family == "bunny" else None))
    expected = golden_numbers(family)
    found = reference.run(expected)
    assert all(0.3 < array.std() < 3 for array in found.values()), {name: a.std() for name, a in found.items()}
    assert np.abs(found["image_features"][0] - found["image_features"][0, :1]).max() > 0.3, "all patches look the same"
    other = reference.image_embeds(reference.image_features(-expected["pixel_values"]))
    assert np.abs(other - found["image_embeds"]).max() > 0.3, "all pictures look the same"


@pytest.mark.parametrize("family", FAMILIES)
def test_made_folder_is_exported(family: str, made: Made, tmp_path: Path) -> None:
    folder, expected = made(family), golden_numbers(family)
    files = {f"--{name}": str(folder / name) for name in ("model", "tower") if (folder / name).is_dir()}
    assert export_main(export_arguments(files, tmp_path / "bundle", "--precision", "fp32")) == 0
    wanted = Reference(Sibling.read(family, folder / "model", folder / "tower" if family == "bunny" else None))
    found = GraphRuns(tmp_path / "bundle").run(expected)
    assert {name: deviation(found[name], array) < TOLERANCE for name, array in wanted.run(expected).items()} == (
        dict.fromkeys(found, True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_published_sizes_are_those_of_the_published_model(family: str) -> None:
    """Without writing any."""
    tensors = list(sibling_files.sibling_tensors(family, "published"))
    assert sum(math.prod(tensor.shape) for tensor in tensors) == PARAMETERS[family]
    assert sibling_files.sibling_bytes(family, "published") == 2 * PARAMETERS[family]


def test_published_bunny_has_the_published_set_of_keys() -> None:
    """877 tensors, and an index file of 88,677 bytes, as transformers writes it."""
    names = [tensor.name for tensor in sibling_files.sibling_tensors("bunny", "published")]
    assert len(names) == 877
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index = {"metadata": {"total_size": 2 * PARAMETERS["bunny"]}, "weight_map": weight_map}
    assert len(json.dumps(index, indent=2, sort_keys=True)) + 1 == 88_677


def test_published_towers_are_the_published_ones() -> None:
    shapes = {
        family: {tensor.name: tensor.shape for tensor in sibling_files.sibling_tensors(family, "published")}
        for family in FAMILIES
    }
    clip = "model.vision_tower.vision_model."
    assert shapes["llava-phi"][f"{clip}embeddings.position_embedding.weight"] == (577, 1024)
    assert f"{clip}encoder.layers.23.mlp.fc2.weight" in shapes["llava-phi"]
    assert shapes["llava-phi"]["model.layers.31.self_attn.query_key_value.weight"] == (7680, 2560)
    siglip = "vision_tower._vision_tower.vision_model."
    assert shapes["tinyllava"][f"{siglip}embeddings.position_embedding.weight"] == (729, 1152)
    assert shapes["tinyllava"][f"{siglip}encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["tinyllava"]["connector._connector.0.weight"] == (2560, 1152)
    assert "language_model.model.layers.31.self_attn.q_proj.weight" in shapes["tinyllava"]
    assert "lm_head.bias" not in shapes["bunny"]


@pytest.mark.parametrize("family", FAMILIES)
def test_published_documents_have_the_golden_fields_and_the_published_sizes(family: str) -> None:
    sizes = sibling_files.FAMILIES[family].sizes("published")
    config = sibling_files.sibling_document(family, "config.json", sizes)
    golden = json.loads((SIBLINGS / family / "checkpoint" / "config.json").read_text())
    text, golden_text = (document.get("text_config", document) for document in (config, golden))
    absent = {"num_attention_heads", "num_key_value_heads"} if family == "tinyllava" else set()
    assert config.keys() == golden.keys() - (absent if text is config else set())
    assert text.keys() == golden_text.keys() - absent, "differences only: both are PhiConfig's and LlamaConfig's 32"
    assert (text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]) == (2560, 10240, 32)
    assert text["vocab_size"] == (50295 if family == "bunny" else 51200)
    assert text["eos_token_id"] == text["bos_token_id"] == 50256
    if family != "bunny":
        vision = config["vision_config"]
        tower = vision.get("vision_tower", vision)
        assert tower.keys() == golden["vision_config"].get("vision_tower", golden["vision_config"]).keys()
        clip = family == "llava-phi"
        assert (tower["hidden_size"], tower["image_size"]) == ((1024, 336) if clip else (1152, 384))
        assert (tower["num_hidden_layers"], tower["num_attention_heads"]) == (24 if clip else 27, 16)


def test_published_processors_have_the_towers_size() -> None:
    sizes = sibling_files.FAMILIES["llava-phi"].sizes("published")
    processor = sibling_files.sibling_document("llava-phi", "preprocessor_config.json", sizes)
    assert (processor["size"], processor["crop_size"]) == (336, 336)
    sizes = sibling_files.FAMILIES["mipha"].sizes("published")
    processor = sibling_files.sibling_document("mipha", "preprocessor_config.json", sizes)
    assert processor["size"] == {"height": 384, "width": 384}


def test_published_tokenizer_has_a_fast_one_made_for_it() -> None:
    tokenizer = sibling_files.fast_tokenizer(sibling_files.FAMILIES["llava-phi"].sizes("published").tokenizer)
    for prompt in json.loads((SIBLINGS / "llava-phi" / "prompts.json").read_text())["prompts"]:
        texts = prompt["prompt"].split("<image>")
        assert [tokenizer.encode(text).ids for text in texts] == prompt["segment_ids"]


def test_other_seeds_give_other_values(made: Made, tmp_path: Path) -> None:
    assert make("tinyllava", tmp_path / "seed1", "--seed", "1") == 0
    found, other = load(made("tinyllava") / "model"), load(tmp_path / "seed1" / "model")
    assert not any(torch.equal(found[name], other[name]) for name in found)


def test_finished_folder_is_reused_by_its_own_family_alone(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made("mipha")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make("mipha", folder) == 0
    assert "reusing" in capsys.readouterr().err
    assert make("llava-phi", folder) == 1
    assert "'family': 'mipha'" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_tensor = make_checkpoint.draw_tensor

    def interrupted(seed: int, file: str, tensor: make_checkpoint.Tensor) -> torch.Tensor:
        if tensor.name == "model.final_layernorm.weight":
            assert any(tmp_path.rglob("model-00001-of-00002.safetensors"))
            raise KeyboardInterrupt
        return draw_tensor(seed, file, tensor)

    monkeypatch.setattr(make_checkpoint, "draw_tensor", interrupted)
    assert make("llava-phi", tmp_path / "made") == 130
    assert list(tmp_path.iterdir()) == []


def test_stage_is_tinygptvs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        make("bunny", tmp_path / "made", "--stage", "4")
    assert stopped.value.code == 2
    assert "--stage" in capsys.readouterr().err
