"""Published files that do not belong together: one line that names what contradicts, and no bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Refusal, published_files
from variants import Published


@pytest.mark.parametrize(("stage", "given"), [(3, "4"), (4, "3"), (4, "1")])
def test_stage_file_of_another_stage(stage: int, given: str, refusal: Refusal) -> None:
    files = {**published_files(stage), "--stage": given}
    message = refusal(files)
    assert files["--checkpoint"] in message
    assert "query_tokens" in message
    assert "stage" in message


@pytest.mark.parametrize("stage", [3, 4])
def test_all_files_but_one_are_of_the_other_stage(stage: int, refusal: Refusal) -> None:
    other = published_files(7 - stage)
    for name in ("--phi", "--vision", "--checkpoint"):
        message = refusal({**published_files(stage), name: other[name]})
        assert any(path in message for path in (*published_files(stage).values(), other[name]))


def test_image_size_of_another_stage(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    del files["--architecture"]
    message = refusal(files)
    assert files["--checkpoint"] in message
    assert "56" in message
    assert "448" in message


@pytest.mark.parametrize("image_size", [42, None])
def test_image_size_that_the_architecture_contradicts(
    image_size: int | None, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    del golden.architecture["image_size"]
    if image_size:
        golden.architecture["image_size"] = image_size
    files = golden.write(tmp_path / "files")
    message = refusal(files)
    assert files["--checkpoint"] in message
    assert "56" in message
    assert str(image_size or 448) in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": 3}, "surprise"),
        ({"image_size": "56"}, "image_size"),
        ({"image_size": 56.0}, "image_size"),
        ({"vision_layers": 0}, "vision_layers"),
        ({"vision_heads": True}, "vision_heads"),
        ({"qformer_heads": None}, "qformer_heads"),
    ],
)
def test_architecture_that_cannot_be(
    change: dict[str, Any], named: str, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    golden.architecture |= change
    files = golden.write(tmp_path / "files")
    message = refusal(files)
    assert files["--architecture"] in message
    assert named in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_heads": 5}, "5 heads"),
        ({"qformer_heads": 7}, "7 heads"),
        ({"patch_size": 16}, "16"),
        ({"vision_layers": 2}, "blocks.3.norm1.weight"),
        ({"vision_layers": 4}, "blocks.3.norm1.bias"),
    ],
)
def test_architecture_that_does_not_fit(
    change: dict[str, Any], named: str, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    golden.architecture |= change
    message = refusal(golden.write(tmp_path / "files"))
    assert named in message
    assert "--architecture" in message


def test_image_size_that_patches_do_not_fill(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.architecture["image_size"] = golden.checkpoint_file["config"]["model"]["image_size"] = 50
    message = refusal(golden.write(tmp_path / "files"))
    assert "image size 50" in message
    assert "--architecture" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": 200}, "model.embed_tokens.weight"),
        ({"hidden_size": "160"}, "hidden_size"),
        ({"intermediate_size": 321}, "mlp.fc1.weight"),
        ({"num_hidden_layers": 4}, "model.layers.3."),
        ({"num_hidden_layers": 2}, "model.layers.2."),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "3 heads"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"vocab_size": 321}, "model.embed_tokens.weight"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"layer_norm_eps": True}, "layer_norm_eps"),
        ({"partial_rotary_factor": float("inf")}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.13}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_config_that_is_not_phi_2s(
    change: dict[str, Any], named: str, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    golden.config |= change
    files = golden.write(tmp_path / "files")
    message = refusal(files)
    assert files["--phi"] in message
    assert named in message


def test_config_is_missing(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    config = Path(files["--phi"]) / "config.json"
    config.unlink()
    assert f"{config}: no such file" in refusal(files)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_tokenizer_is_missing(name: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    (Path(files["--phi"]) / name).unlink()
    message = refusal(files)
    assert files["--phi"] in message
    assert name in message


def test_tokenizer_of_a_larger_model(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    files = golden.write(tmp_path / "files")
    vocab = Path(files["--phi"]) / "vocab.json"
    vocab.write_text(json.dumps({**json.loads(vocab.read_text()), "surprise": 320}))
    message = refusal(files)
    assert files["--phi"] in message
    assert "320" in message
