"""Published files with keys, shapes or values that are not the model's: one line that names them, and no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refusal, open_published
from tinygptv.runtime.errors import ExportError
from variants import LANGUAGE, ROLES, Published

NAMES = {
    "phi": "phi-2",
    "vision": "eva_vit_g.pth",
    "qformer": "blip2_pretrained_flant5xxl.pth",
    "checkpoint": "TinyGPT-V_for_Stage4.pth",
}
LORA = f"{LANGUAGE}model.layers.1.self_attn.query_key_value.lora_"
LAYER = "Qformer.bert.encoder.layer."


def option(role: str) -> str:
    return f"--{role}"


@pytest.mark.parametrize("role", ROLES)
def test_every_key_is_needed_by_its_name(role: str, tmp_path: Path) -> None:
    """Stage 3 is the smaller golden checkpoint; through the class, for there are some 150 keys."""
    golden = Published.golden(3)
    files = golden.write(tmp_path / "whole")
    unused = ("Qformer.cls.", "t5_proj", "norm.", "head.", "blocks.2.", "Qformer.bert.embeddings.position_ids")
    text_half = ("word_embeddings", "position_embeddings", ".intermediate.", ".output.dense.", ".output.LayerNorm.")
    used = [
        key
        for key in golden.tensors(role)
        if not key.startswith(unused) and ("attention" in key or not any(part in key for part in text_half))
    ]
    assert len(used) >= 20
    for key in used:
        tensors = golden.tensors(role)
        tensors[f"{key}_"] = tensors.pop(key)
        files[option(role)] = golden.write_one(role, tmp_path / "renamed")
        with pytest.raises(ExportError) as caught:
            open_published(files)
        assert key in str(caught.value)
        assert files[option(role)] in str(caught.value)
        tensors[key] = tensors.pop(f"{key}_")


@pytest.mark.parametrize(
    ("role", "keys"),
    [
        ("phi", ["lm_head.bias"]),
        ("phi", ["model.layers.2.self_attn.query_key_value.weight"]),
        ("phi", ["model.embed_tokens.weight"]),
        ("vision", ["pos_embed"]),
        ("vision", ["patch_embed.proj.weight"]),
        ("vision", ["blocks.0.mlp.fc1.weight"]),
        ("vision", ["blocks.2.attn.v_bias"]),
        ("qformer", ["ln_vision.weight"]),
        ("checkpoint", ["llama_proj.weight"]),
        ("checkpoint", ["llama_proj2.bias"]),
        ("checkpoint", ["query_tokens"]),
        ("checkpoint", [f"{LAYER}0.intermediate_query.dense.weight"]),
        ("checkpoint", [f"{LAYER}3.attention.self.key.weight"]),
        ("checkpoint", [f"{LORA}A.default.weight"]),
        ("checkpoint", [f"{LORA}B.default.weight"]),
        ("checkpoint", [f"{LORA}A.default.weight", f"{LORA}B.default.weight"]),
    ],
)
def test_missing_key(role: str, keys: list[str], golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    for key in keys:
        del golden.tensors(role)[key]
    message = refusal(golden.write(tmp_path / "files"))
    assert NAMES[role] in message
    for key in keys:
        named = key.replace(".default.", ".")
        assert any(f"{before}{named}" in message for before in ("missing ", ", ", "no key ")), "as the file has it"
    assert "shape" not in message, "nothing else is wrong"


def test_missing_matrix_and_its_lora_pair_are_told_together(
    golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    for key in list(golden.checkpoint):
        if "lora_" in key:
            del golden.checkpoint[key]
    message = refusal(golden.write(tmp_path / "files"))
    assert "layers.0.self_attn.query_key_value.lora_A.weight" in message
    assert "and 10 more" in message


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "key", ["surprise.weight", f"{LAYER}x.surprise", f"{LAYER}999999999.surprise", "blocks.7.norm1.weight"]
)
def test_unknown_key(role: str, key: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden = golden if role != "qformer" else Published.golden(3)
    golden.tensors(role)[key] = torch.ones(2)
    message = refusal(golden.write(tmp_path / "files"))
    assert key in message
    assert NAMES[role].replace("4", str(golden.stage)) in message


@pytest.mark.parametrize("role", ["phi", "checkpoint"])
def test_key_under_two_namings(role: str, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    if role == "phi":
        other = "model.layers.0.self_attn.dense.base_layer.weight"
        golden.phi[other] = golden.phi["model.layers.0.self_attn.dense.weight"].clone()
    else:
        other = f"{LORA}A.weight"
        golden.checkpoint[other] = golden.checkpoint[f"{LORA}A.default.weight"]
    message = refusal(golden.write(tmp_path / "files"))
    assert other.replace("base_layer.", "").rpartition(".")[0].split(".lora_A")[0] in message
    assert "two names" in message


def test_fused_and_separate_matrices_at_once(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.phi["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(160, 160)
    assert "unknown model.layers.0.self_attn.q_proj.weight" in refusal(golden.write(tmp_path / "files"))


def test_key_that_is_no_text(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.vision[7] = torch.ones(2)  # type: ignore[index]
    message = refusal(golden.write(tmp_path / "files"))
    assert NAMES["vision"] in message
    assert "7" in message


@pytest.mark.parametrize("value", [None, 3, "text", [torch.ones(2)]])
def test_key_that_is_no_tensor(value: Any, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.checkpoint["llama_proj.bias"] = value
    message = refusal(golden.write(tmp_path / "files"))
    assert NAMES["checkpoint"] in message
    assert "llama_proj.bias" in message


# Shapes and values


@pytest.mark.parametrize(
    ("role", "key", "shape"),
    [
        ("phi", "model.embed_tokens.weight", (319, 160)),
        ("phi", "model.layers.1.self_attn.query_key_value.weight", (160, 480)),
        ("phi", "model.layers.2.mlp.fc2.bias", (161,)),
        ("phi", "lm_head.bias", (320, 1)),
        ("vision", "patch_embed.proj.weight", (96, 3, 14)),
        ("vision", "patch_embed.proj.weight", (96, 3, 14, 13)),
        ("vision", "pos_embed", (1, 6, 96)),
        ("vision", "pos_embed", (1, 1, 96)),
        ("vision", "pos_embed", (1, 0, 96)),
        ("vision", "pos_embed", (5, 96)),
        ("vision", "cls_token", (1, 96)),
        ("vision", "blocks.1.attn.qkv.weight", (96, 288)),
        ("vision", "blocks.0.mlp.fc1.weight", (418,)),
        ("qformer", "ln_vision.bias", (95,)),
        ("checkpoint", "query_tokens", (8, 48)),
        ("checkpoint", "llama_proj.weight", (48, 96)),
        ("checkpoint", "llama_proj2.weight", (160, 97)),
        ("checkpoint", f"{LAYER}2.crossattention.self.key.weight", (48, 48)),
        ("checkpoint", f"{LORA}A.default.weight", (4, 161)),
        ("checkpoint", f"{LORA}A.default.weight", (3, 160)),
        ("checkpoint", f"{LORA}A.default.weight", ()),
        ("checkpoint", f"{LORA}A.default.weight", (0, 160)),
        ("checkpoint", f"{LORA}B.default.weight", (480, 5)),
        ("checkpoint", f"{LORA}B.default.weight", (479, 4)),
        ("checkpoint", f"{LANGUAGE}model.layers.0.self_attn.q_layernorm.weight", (160,)),
    ],
)
def test_wrong_shape(
    role: str, key: str, shape: tuple[int, ...], golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    golden.tensors(role)[key] = torch.zeros(shape)
    message = refusal(golden.write(tmp_path / "files"))
    assert NAMES[role] in message
    if key.startswith(LORA):
        assert LORA in message  # where A and B contradict each other, either may be the wrong one
    else:
        assert key in message


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("phi", "model.embed_tokens.weight"),
        ("vision", "blocks.0.attn.qkv.weight"),
        ("qformer", "ln_vision.weight"),
        ("checkpoint", "query_tokens"),
    ],
)
@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.float16)])
def test_value_that_is_not_finite(
    role: str, key: str, value: float, dtype: torch.dtype, golden: Published, tmp_path: Path, refusal: Refusal
) -> None:
    golden.tensors(role)[key] = golden.tensors(role)[key].to(dtype)
    golden.tensors(role)[key].view(-1)[-1] = value
    message = refusal(golden.write(tmp_path / "files"), begun=True)
    assert NAMES[role] in message
    assert key in message


def test_infinities_that_cancel(golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.phi["model.embed_tokens.weight"][0, :2] = torch.tensor([float("inf"), float("-inf")])
    assert "model.embed_tokens.weight" in refusal(golden.write(tmp_path / "files"), begun=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_tensor_that_holds_no_weights(dtype: torch.dtype, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.vision["patch_embed.proj.weight"] = golden.vision["patch_embed.proj.weight"].to(dtype)
    message = refusal(golden.write(tmp_path / "files"), begun=True)
    assert NAMES["vision"] in message
    assert "patch_embed.proj.weight" in message
    assert str(dtype).removeprefix("torch.") in message


@pytest.mark.parametrize("alpha", [0, -16, "16", None, True, float("nan"), float("inf")])
def test_lora_alpha_that_is_no_scale(alpha: Any, golden: Published, tmp_path: Path, refusal: Refusal) -> None:
    golden.checkpoint_file["config"]["model"]["lora_alpha"] = alpha
    message = refusal(golden.write(tmp_path / "files"))
    assert NAMES["checkpoint"] in message
    assert "lora_alpha" in message
