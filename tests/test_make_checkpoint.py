from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_checkpoint
import published_phi
import published_tensors
import pytest
import random_tensors
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "stage4"
EVA, BLIP2, STAGE4 = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "TinyGPT-V_for_Stage4.pth"


def make(out: Path, *options: str) -> int:
    return make_checkpoint.main(["--out", str(out), "--scale", "tiny", *options])


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def load_phi(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "phi-2" / "model.safetensors.index.json").read_text())
    tensors: dict[str, Any] = {}
    for name in sorted(set(index["weight_map"].values())):
        shard = safetensors.torch.load_file(folder / "phi-2" / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == set(shard)
        tensors.update(shard)
    assert sum(tensor.nbytes for tensor in tensors.values()) == index["metadata"]["total_size"]
    return tensors


def shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def stage4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "stage4"
    assert make(out) == 0
    return out


@pytest.fixture(scope="module")
def stage3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "stage3"
    assert make(out, "--stage", "3") == 0
    return out


def test_phi_folder_has_golden_keys_and_shapes(stage4: Path) -> None:
    tensors = load_phi(stage4)
    assert shapes(tensors) == shapes(load_phi(GOLDEN))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    made = json.loads((stage4 / "phi-2" / "config.json").read_text())
    golden = json.loads((GOLDEN / "phi-2" / "config.json").read_text())
    differing = {key for key, value in made.items() if golden.get(key) != value}
    assert differing == {"resid_pdrop", "torch_dtype"}
    assert (stage4 / "phi-2" / "vocab.json").read_bytes() == (GOLDEN / "phi-2" / "vocab.json").read_bytes()
    assert (stage4 / "phi-2" / "merges.txt").read_bytes() == (GOLDEN / "phi-2" / "merges.txt").read_bytes()


def test_eva_file_has_golden_keys_and_shapes(stage4: Path) -> None:
    made, golden = load(stage4 / EVA), load(GOLDEN / EVA)
    unused = {name for name in made if name.startswith(("blocks.3.", "norm.", "head."))}
    golden_unused = {"blocks.3.norm1.weight", "norm.weight", "head.weight"}
    assert golden_unused <= unused
    assert {name.replace("blocks.3.", "blocks.0.") for name in unused if name.startswith("blocks.3.")} <= set(golden)
    used = {name: shape for name, shape in shapes(made).items() if name not in unused - golden_unused}
    assert used == shapes(golden)


def test_eva_file_has_stage3_golden_dtypes(stage4: Path) -> None:
    # golden/stage3 is the one in fp16; its blocks have the same keys.
    golden = load(ROOT / "tests" / "golden" / "stage3" / EVA)
    made = load(stage4 / EVA)
    shared = made.keys() & golden.keys()
    assert "blocks.1.mlp.fc2.weight" in shared
    assert {name: made[name].dtype for name in shared} == {name: golden[name].dtype for name in shared}


def test_blip2_file_has_golden_keys_and_shapes(stage4: Path) -> None:
    made = shapes(load(stage4 / BLIP2)["model"])
    assert made.pop("t5_proj.bias") == (4,)
    assert made == shapes(load(GOLDEN / BLIP2)["model"])


def test_stage_file_has_golden_keys_and_shapes(stage4: Path) -> None:
    made, golden = load(stage4 / STAGE4), load(GOLDEN / STAGE4)
    assert set(made) == set(golden)
    assert shapes(made["model"]) == shapes(golden["model"])
    assert made["config"] == golden["config"]
    assert (
        "llama_model.base_model.model.model.layers.0.self_attn.query_key_value.lora_A.default.weight" in made["model"]
    )


def test_optimizer_holds_both_moments_of_every_trained_tensor(stage4: Path) -> None:
    checkpoint = load(stage4 / STAGE4)
    trained = [tensor for tensor in checkpoint["model"].values() if tensor.is_floating_point()]
    state = checkpoint["optimizer"]["state"]
    assert [tuple(entry["exp_avg"].shape) for entry in state.values()] == [tuple(tensor.shape) for tensor in trained]
    for entry in state.values():
        assert entry["exp_avg_sq"].shape == entry["exp_avg"].shape
        assert (entry["exp_avg_sq"] >= 0).all()
    grouped = [index for group in checkpoint["optimizer"]["param_groups"] for index in group["params"]]
    assert sorted(grouped) == list(state)


def test_stage3_has_the_qformer_in_the_blip2_file_only(stage3: Path) -> None:
    trained = load(stage3 / "TinyGPT-V_for_Stage3.pth")["model"]
    golden = load(ROOT / "tests" / "golden" / "stage3" / "TinyGPT-V_for_Stage3.pth")["model"]
    not_language = {name for name in golden if not name.startswith("llama_model.")}
    assert {name for name in trained if not name.startswith("llama_model.")} == not_language
    assert "query_tokens" in load(stage3 / BLIP2)["model"]


def test_values_follow_from_seed_file_and_key_alone(stage3: Path, stage4: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "seed1", "--seed", "1") == 0
    phi3, phi4, other = load_phi(stage3), load_phi(stage4), load_phi(tmp_path / "seed1")
    assert all(torch.equal(phi3[name], phi4[name]) for name in phi4)
    assert not any(torch.equal(other[name], phi4[name]) for name in phi4)
    query_tokens = load(stage4 / STAGE4)["model"]["query_tokens"]
    assert not torch.equal(query_tokens, load(stage4 / BLIP2)["model"]["query_tokens"])


def test_values_are_finite_and_scaled(stage4: Path) -> None:
    for tensors in (
        load_phi(stage4),
        load(stage4 / EVA),
        load(stage4 / BLIP2)["model"],
        load(stage4 / STAGE4)["model"],
    ):
        for name, tensor in tensors.items():
            assert torch.isfinite(tensor).all(), name
            assert tensor.float().std() > 0, name
    fc1 = load_phi(stage4)["model.layers.0.mlp.fc1.weight"].float()
    assert fc1.std().item() == pytest.approx(160**-0.5, rel=0.02)


def test_architecture_is_written_beside_tiny_files(stage4: Path) -> None:
    made = json.loads((stage4 / "architecture.json").read_text())
    assert made == json.loads((GOLDEN / "architecture.json").read_text())


def test_published_sizes_agree_with_the_published_model() -> None:
    sizes = published_tensors.PUBLISHED
    phi = sum(tensor.nbytes // 2 for tensor in published_phi.phi_tensors(sizes.phi))
    assert phi == 2_779_683_840  # what transformers counts for microsoft/phi-2
    eva = {tensor.name: tensor.shape for tensor in published_tensors.eva_tensors(sizes)}
    assert eva["pos_embed"] == (1, 257, 1408)
    assert "blocks.39.attn.qkv.weight" in eva and "blocks.40.attn.qkv.weight" not in eva


def test_finished_folder_is_reused(stage4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in stage4.rglob("*")}
    assert make(stage4) == 0
    assert "reusing" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in stage4.rglob("*")} == before


def test_folder_made_otherwise_is_refused(stage4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in stage4.rglob("*")}
    assert make(stage4, "--seed", "2") == 1
    error = capsys.readouterr().err
    assert "'seed': 0" in error and "'seed': 2" in error
    assert {path: path.stat().st_mtime_ns for path in stage4.rglob("*")} == before


def test_changed_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    assert make(out) == 0
    (out / EVA).unlink()
    assert make(out) == 1
    assert "was changed" in capsys.readouterr().err


def test_someone_elses_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"cat")
    assert make(out) == 1
    assert "made_checkpoint.json" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["cat.jpg"]


def test_too_full_a_disk_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "new" / "made", "--keep-free", "1e9") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "0.0 GB needed" in error and "1000000000.0 GB to be kept free" in error and "GB found" in error
    assert list(tmp_path.iterdir()) == []


def test_missing_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "made", "--tokenizer", str(tmp_path)) == 1
    assert "--tokenizer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_tensor = random_tensors.draw_tensor

    def interrupted(seed: int, file: str, tensor: Any) -> Any:
        if file == BLIP2:
            assert any(tmp_path.rglob(EVA))
            raise KeyboardInterrupt
        return draw_tensor(seed, file, tensor)

    monkeypatch.setattr(make_checkpoint, "draw_tensor", interrupted)
    assert make(tmp_path / "made") == 130
    assert list(tmp_path.iterdir()) == []
