"""Every variant of the published files gives the same merged model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import golden_checkpoint, open_published, published_files
from tinygptv.export.parts.eva_clip import resize_positions
from tinygptv.runtime.errors import ExportError
from torch import Tensor
from variants import LANGUAGE, PhiWriter, Published, write_bins, write_safetensors, write_shards

ATTENTION = "self_attn"
HEADS, HEAD_DIM, HIDDEN, LAYERS = 4, 40, 160, 3
"""Of the stage 4 golden checkpoint's language model."""
GENERATOR = torch.Generator().manual_seed(4)


def merged(files: dict[str, str]) -> dict[str, Tensor]:
    return dict(open_published(files))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Stage 4 as it is; what its tensors should be is checked by the golden outputs."""
    return merged(published_files(4))


def rename(tensors: dict[str, Any], old: str, new: str) -> None:
    """Replace ``old`` by ``new`` in every key that has it."""
    keys = [key for key in tensors if old in key]
    assert keys
    for key in keys:
        tensors[key.replace(old, new)] = tensors.pop(key)


def write_bin(tensors: dict[str, Tensor], folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def write_old_bin(tensors: dict[str, Tensor], folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


# The Phi-2 folder


@pytest.mark.parametrize("write_phi", [write_safetensors, write_shards, write_bin, write_bins, write_old_bin])
def test_files_of_the_phi_folder(
    write_phi: PhiWriter, golden: Published, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    assert_same(merged(golden.write(tmp_path / "files", write_phi)), expected)


def separate(phi: dict[str, Tensor]) -> None:
    """Fused rows are (head, q/k/v, head_dim)."""
    for i in range(LAYERS):
        name = f"model.layers.{i}.{ATTENTION}"
        for kind in ("weight", "bias"):
            rows = phi.pop(f"{name}.query_key_value.{kind}").unflatten(0, (HEADS, 3, HEAD_DIM))
            for part, letter in enumerate("qkv"):
                phi[f"{name}.{letter}_proj.{kind}"] = rows[:, part].flatten(0, 1).clone()


def test_separate_matrices_are_the_fused_one(golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    separate(golden.phi)
    assert_same(merged(golden.write(tmp_path / "files")), expected)


def test_merged_matrix_has_all_of_q_then_k_then_v(golden: Published, tmp_path: Path) -> None:
    separate(golden.phi)
    for key in golden.checkpoint:
        if "lora_B" in key:
            golden.checkpoint[key] = torch.zeros_like(golden.checkpoint[key])
    found = merged(golden.write(tmp_path / "files"))
    for kind in ("weight", "bias"):
        parts = [golden.phi[f"model.layers.1.{ATTENTION}.{letter}_proj.{kind}"] for letter in "qkv"]
        assert torch.equal(found[f"model.layers.1.{ATTENTION}.qkv.{kind}"], torch.cat(parts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_float_is_read(dtype: torch.dtype, golden: Published, tmp_path: Path) -> None:
    def convert(back: torch.dtype) -> dict[str, Tensor]:
        for role in ("phi", "vision", "qformer", "checkpoint"):
            tensors = golden.tensors(role)
            tensors |= {key: t.to(dtype).to(back) for key, t in tensors.items() if t.is_floating_point()}
        return merged(golden.write(tmp_path / str(back)))

    narrow, wide = convert(dtype), convert(torch.float32)
    assert_same(narrow, wide)
    assert {tensor.dtype for tensor in narrow.values()} == {torch.float32}


def test_fp16_checkpoint_is_its_float32_copy(tmp_path: Path) -> None:
    golden = Published.golden(3)
    assert {tensor.dtype for tensor in golden.phi.values()} == {torch.float16}
    for role in ("phi", "vision", "qformer", "checkpoint"):
        tensors = golden.tensors(role)
        tensors |= {key: tensor.float() for key, tensor in tensors.items()}
    assert_same(merged(golden.write(tmp_path / "files")), merged(published_files(3)))


def test_large_values_are_finite(golden: Published, tmp_path: Path) -> None:
    """Their sum is not."""
    golden.phi["lm_head.weight"][:] = 3e38
    assert torch.equal(merged(golden.write(tmp_path / "files"))["lm_head.weight"], golden.phi["lm_head.weight"])


# Files of torch.save


def test_old_torch_files(golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    assert_same(merged(golden.write(tmp_path / "files", _use_new_zipfile_serialization=False)), expected)


def test_parameters_in_place_of_tensors(golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    golden.checkpoint_file["model"] = {
        key: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for key, tensor in golden.checkpoint.items()
    }
    found = merged(golden.write(tmp_path / "files"))
    assert_same(found, expected)
    assert not any(tensor.requires_grad for tensor in found.values())


def adam() -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    "optimizer",
    [adam(), {"llama_proj.weight": torch.tensor([float("nan")])}, [1, "two", {3: None}], None, "not saved"],
    ids=["adam", "key of the model", "list", "none", "text"],
)
def test_optimizer_is_ignored(optimizer: Any, golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    golden.checkpoint_file |= {"optimizer": optimizer, "scaler": {"scale": 65536.0, "_growth_tracker": 3}, "epoch": 9}
    assert_same(merged(golden.write(tmp_path / "files")), expected)


def test_stage_file_may_hold_nothing_but_the_model(
    golden: Published, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    golden.checkpoint_file = {"model": golden.checkpoint}
    assert_same(merged(golden.write(tmp_path / "files")), expected)


# LoRA


def plain_names(golden: Published) -> None:
    rename(golden.checkpoint, ".default.", ".")


def base_layers_in_phi(golden: Published) -> None:
    for name in ("query_key_value", "dense"):
        for kind in ("weight", "bias"):
            rename(golden.phi, f"{ATTENTION}.{name}.{kind}", f"{ATTENTION}.{name}.base_layer.{kind}")


def base_layers_in_the_stage_file(golden: Published) -> None:
    """The base weights themselves are there; those of the Phi-2 folder are not what is used."""
    for name in ("query_key_value", "dense"):
        for i in range(LAYERS):
            for kind in ("weight", "bias"):
                key = f"model.layers.{i}.{ATTENTION}.{name}.{kind}"
                stage_key = f"{LANGUAGE}{key.replace(name, f'{name}.base_layer')}"
                golden.checkpoint[stage_key] = golden.phi[key].clone()
                golden.phi[key].zero_()


def twice_the_rank(golden: Published) -> None:
    """The rank is read from the shapes: padded to 8 with zeros, and alpha 32 instead of 16, all is the same."""
    golden.checkpoint_file["config"]["model"]["lora_alpha"] = 32
    for key, tensor in golden.checkpoint.items():
        if "lora_" in key:
            golden.checkpoint[key] = torch.cat((tensor, torch.zeros_like(tensor)), dim=0 if "lora_A" in key else 1)


def no_alpha(golden: Published) -> None:
    del golden.checkpoint_file["config"]["model"]["lora_alpha"]


def no_config(golden: Published) -> None:
    golden.checkpoint_file["config"] = None


@pytest.mark.parametrize(
    "change",
    [plain_names, base_layers_in_phi, base_layers_in_the_stage_file, twice_the_rank, no_alpha, no_config],
)
def test_lora_is_the_same(
    change: Callable[[Published], None], golden: Published, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    change(golden)
    found = merged(golden.write(tmp_path / "files"))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("alpha", [16, 40, 0.5])
def test_lora_is_merged_by_its_formula(alpha: float, golden: Published, tmp_path: Path) -> None:
    golden.checkpoint_file["config"]["model"]["lora_alpha"] = alpha
    found = merged(golden.write(tmp_path / "files"))
    for i in range(LAYERS):
        name = f"model.layers.{i}.{ATTENTION}"
        whole = {}
        for matrix in ("query_key_value", "dense"):
            a, b = (
                golden.checkpoint[f"{LANGUAGE}{name}.{matrix}.lora_{part}.default.weight"].double().numpy()
                for part in "AB"
            )
            delta = alpha / a.shape[0] * np.einsum("ir,rj->ij", b, a)
            assert np.abs(delta).max() > 1e-3
            whole[matrix] = golden.phi[f"{name}.{matrix}.weight"].double().numpy() + delta
        # Row h * 3 * 40 + p * 40 + d of the fused matrix is row d of head h of part p.
        rows = [h * 3 * HEAD_DIM + p * HEAD_DIM + d for p in range(3) for h in range(HEADS) for d in range(HEAD_DIM)]
        np.testing.assert_allclose(found[f"{name}.qkv.weight"], whole["query_key_value"][rows], atol=1e-6)
        np.testing.assert_allclose(found[f"{name}.dense.weight"], whole["dense"], atol=1e-6)


# Norms


def add_norms(golden: Published) -> None:
    """The authors' norms in the Phi-2 folder, with values of its own."""
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name, size in (
            (f"{ATTENTION}.q_layernorm.weight", HEAD_DIM),
            (f"{ATTENTION}.q_layernorm.bias", HEAD_DIM),
            (f"{ATTENTION}.k_layernorm.weight", HEAD_DIM),
            (f"{ATTENTION}.k_layernorm.bias", HEAD_DIM),
            ("post_layernorm.weight", HIDDEN),
        ):
            golden.phi[f"{layer}.{name}"] = torch.randn(size, generator=GENERATOR)


NORMS = ("q_layernorm", "k_layernorm", "post_layernorm", "input_layernorm")


def norms(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The language layers' norms, under their names in the Phi-2 folder."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{prefix}model.layers.") and any(norm in key for norm in NORMS)
    }


def test_trained_norms_win_and_biases_stay(golden: Published, tmp_path: Path) -> None:
    add_norms(golden)
    found = norms(merged(golden.write(tmp_path / "files")))
    trained = norms(golden.checkpoint, LANGUAGE)
    assert len(trained) == 4 * LAYERS
    assert_same(found, {name: {**norms(golden.phi), **trained}[name] for name in found})
    assert len(found) == 7 * LAYERS, "three norms with biases, one without"


def test_norms_of_the_folder_count_where_none_were_trained(golden: Published, tmp_path: Path) -> None:
    add_norms(golden)
    for name in norms(golden.checkpoint, LANGUAGE):
        del golden.checkpoint[LANGUAGE + name]
    found = norms(merged(golden.write(tmp_path / "files")))
    assert_same(found, {name: norms(golden.phi)[name] for name in found})


TRAINED = (f"{ATTENTION}.q_layernorm.weight", f"{ATTENTION}.k_layernorm.weight", "post_layernorm.weight")


@pytest.mark.parametrize("name", TRAINED)
def test_a_norm_that_no_file_has_is_named(name: str, golden: Published, tmp_path: Path) -> None:
    """A network without it is another one than a network whose norm has weights of 1."""
    for i in range(LAYERS):
        del golden.checkpoint[f"{LANGUAGE}model.layers.{i}.{name}"]
    stored = re.escape(f"{LANGUAGE}model.layers.0.{name}")
    with pytest.raises(ExportError, match=rf"TinyGPT-V_for_Stage4\.pth: missing {stored}.* and 1 more"):
        merged(golden.write(tmp_path / "files"))


@pytest.mark.parametrize("name", [*TRAINED, f"{ATTENTION}.q_layernorm.bias"])
def test_norms_of_all_layers_are_from_one_file(name: str, golden: Published, tmp_path: Path) -> None:
    """Those of the Phi-2 folder do not stand in for trained ones."""
    add_norms(golden)
    if name.endswith("bias"):
        golden.checkpoint.update({f"{LANGUAGE}model.layers.{i}.{name}": torch.ones(HEAD_DIM) for i in range(LAYERS)})
    del golden.checkpoint[f"{LANGUAGE}model.layers.1.{name}"]
    stored = re.escape(f"{LANGUAGE}model.layers.1.{name}")
    with pytest.raises(ExportError, match=rf"TinyGPT-V_for_Stage4\.pth: missing {stored};"):
        merged(golden.write(tmp_path / "files"))


def test_biases_of_q_and_k_norms_that_no_layer_has_are_zero(golden: Published, expected: dict[str, Tensor]) -> None:
    names = [f"model.layers.{i}.{ATTENTION}.{part}_layernorm.bias" for i in range(LAYERS) for part in "qk"]
    for name in names:
        assert name not in golden.phi and LANGUAGE + name not in golden.checkpoint
        assert torch.equal(expected[name], torch.zeros(HEAD_DIM))


# Q-Former and vision encoder


def test_qformer_of_the_stage_file_wins(golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    for key in list(golden.qformer):
        if key.startswith(("Qformer", "query_tokens")):
            golden.qformer[key] = torch.full((2,), float("nan"))
    assert_same(merged(golden.write(tmp_path / "files")), expected)
    for key in list(golden.qformer):
        if key.startswith(("Qformer", "query_tokens")):
            del golden.qformer[key]
    assert_same(merged(golden.write(tmp_path / "without")), expected)
    names = [name for name in expected if name.startswith(("Qformer", "query_tokens"))]
    assert len(names) == 87
    assert_same({name: expected[name] for name in names}, {name: golden.checkpoint[name] for name in names})


def test_qformer_of_stage_3_is_blip_2s() -> None:
    found = merged(published_files(3))
    golden = Published.golden(3)
    names = [name for name in found if name.startswith(("Qformer", "query_tokens", "ln_vision"))]
    assert len(names) == 47
    assert_same({name: found[name] for name in names}, {name: golden.qformer[name].float() for name in names})


def test_text_half_may_be_in_the_stage_file(golden: Published, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    text_half = {key: t for key, t in golden.qformer.items() if key.startswith("Qformer") and key not in expected}
    assert text_half
    golden.checkpoint.update(text_half)
    assert_same(merged(golden.write(tmp_path / "files")), expected)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("checkpoint", "t5_proj.weight"),
        ("checkpoint", "visual.norm.weight"),
        ("phi", "t5_model.shared.weight"),
        ("phi", "Qformer.cls.predictions.bias"),
        ("qformer", "visual.norm.weight"),
        ("qformer", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_what_one_file_may_hold_without_use_is_unknown_in_another(
    golden: Published, tmp_path: Path, part: str, key: str
) -> None:
    getattr(golden, part)[key] = torch.zeros(4)
    with pytest.raises(ExportError, match=rf"unknown .*{re.escape(key)}"):
        merged(golden.write(tmp_path / "files"))


def test_bias_of_the_key_is_zero(golden: Published, expected: dict[str, Tensor]) -> None:
    q, v = (golden.vision[f"blocks.1.attn.{part}_bias"] for part in "qv")
    assert torch.equal(expected["visual.blocks.1.attn.qkv.bias"], torch.cat((q, torch.zeros(96), v)))


def test_only_the_block_after_the_last_may_be_spare(
    golden: Published, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    block = {key: tensor for key, tensor in golden.vision.items() if key.startswith("blocks.0.")}
    golden.vision |= {key.replace("blocks.0.", "blocks.3."): tensor for key, tensor in block.items()}
    assert_same(merged(golden.write(tmp_path / "one")), expected)
    golden.vision |= {key.replace("blocks.0.", "blocks.4."): tensor for key, tensor in block.items()}
    with pytest.raises(ExportError, match=r"eva_vit_g.pth: unknown blocks\.4\."):
        merged(golden.write(tmp_path / "two"))


def cubic(old: int, new: int) -> np.ndarray:
    """Keys' cubic convolution (1981) with a = -0.75, pixel centres at halves, edges repeated; [new, old]."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(tap, 0), old - 1)] += kernel(place - tap)
    return matrix


@pytest.mark.parametrize(("old", "new"), [(2, 4), (3, 3), (16, 32), (4, 7), (7, 4), (1, 3)])
def test_positions_are_resized_by_bicubic_interpolation(old: int, new: int) -> None:
    table = torch.randn(1, 1 + old * old, 5, generator=GENERATOR)
    found = resize_positions(table, 1 + new * new)
    assert torch.equal(found[:, 0], table[:, 0])
    grid = table[0, 1:].numpy().astype(np.float64).reshape(old, old, 5)
    expected = np.einsum("yi,xj,ijc->yxc", cubic(old, new), cubic(old, new), grid).reshape(new * new, 5)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=1e-5)
    if old == new:
        assert torch.equal(found, table)


def test_positions_of_a_checkpoint(expected: dict[str, Tensor], golden: Published) -> None:
    assert golden.vision["pos_embed"].shape == (1, 1 + 2 * 2, 96)
    assert torch.equal(expected["visual.pos_embed"], resize_positions(golden.vision["pos_embed"], 1 + 4 * 4))
    assert torch.equal(merged(published_files(3))["visual.pos_embed"], Published.golden(3).vision["pos_embed"])


# Reading


def test_progress_adds_up_to_what_was_promised() -> None:
    checkpoint = golden_checkpoint(4)
    told: list[int] = []
    checkpoint.on_read(told.append)
    for name, tensor in checkpoint.items():
        assert tensor.shape == checkpoint.shape(name)
    assert sum(told) == checkpoint.stored_bytes > 1_000_000
