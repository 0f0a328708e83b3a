"""Golden checkpoints with something changed: read whole into memory, altered by a test, written out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
LANGUAGE = "llama_model.base_model.model."
"""What the stage file puts before the names of the language model's keys."""
ROLES = ("phi", "vision", "qformer", "checkpoint")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")

PhiWriter = Callable[[dict[str, Tensor], Path], None]


def published_files(stage: int, folder: Path | None = None) -> dict[str, str]:
    """Command-line options that name the four published files (and their architecture) of a golden checkpoint."""
    folder = folder or GOLDEN / f"stage{stage}"
    return {
        "--phi": str(folder / "phi-2"),
        "--vision": str(folder / "eva_vit_g.pth"),
        "--qformer": str(folder / "blip2_pretrained_flant5xxl.pth"),
        "--checkpoint": str(folder / f"TinyGPT-V_for_Stage{stage}.pth"),
        "--stage": str(stage),
        "--architecture": str(folder / "architecture.json"),
    }


def write_safetensors(tensors: dict[str, Tensor], folder: Path) -> None:
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors"
    )


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two safetensors shards and their index."""
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, shard in zip(names, _halves(tensors, names, folder / "model.safetensors.index.json"), strict=True):
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in shard.items()}, folder / name)


def write_bins(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two files of torch.save and their index."""
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for name, shard in zip(names, _halves(tensors, names, folder / "pytorch_model.bin.index.json"), strict=True):
        torch.save(shard, folder / name)


def _halves(tensors: dict[str, Tensor], names: list[str], index: Path) -> list[dict[str, Tensor]]:
    """The tensors in two parts, ``lm_head.bias`` in the second; their index is written."""
    keys = sorted(tensors, key=lambda key: key == "lm_head.bias")
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [{key: tensors[key] for key in part} for part in parts]


@dataclass
class Published:
    """What is in the four published files of one checkpoint."""

    stage: int
    config: dict[str, Any]
    architecture: dict[str, Any]
    phi: dict[str, Tensor]
    vision: dict[str, Tensor]
    qformer_file: dict[str, Any]
    checkpoint_file: dict[str, Any]

    @classmethod
    def golden(cls, stage: int = 4) -> Published:
        folder = GOLDEN / f"stage{stage}"
        phi: dict[str, Tensor] = {}
        for shard in sorted((folder / "phi-2").glob("*.safetensors")):
            phi |= safetensors.torch.load_file(shard)
        return cls(
            stage=stage,
            config=json.loads((folder / "phi-2" / "config.json").read_text()),
            architecture=json.loads((folder / "architecture.json").read_text()),
            phi=phi,
            vision=torch.load(folder / "eva_vit_g.pth"),
            qformer_file=torch.load(folder / "blip2_pretrained_flant5xxl.pth"),
            checkpoint_file=torch.load(folder / f"TinyGPT-V_for_Stage{stage}.pth"),
        )

    @property
    def qformer(self) -> dict[str, Tensor]:
        return self.qformer_file["model"]

    @property
    def checkpoint(self) -> dict[str, Tensor]:
        return self.checkpoint_file["model"]

    def tensors(self, role: str) -> dict[str, Tensor]:
        """The tensors of one of the :data:`ROLES`."""
        return {"phi": self.phi, "vision": self.vision, "qformer": self.qformer, "checkpoint": self.checkpoint}[role]

    def write(self, folder: Path, write_phi: PhiWriter = write_safetensors, **torch_save: Any) -> dict[str, str]:
        """Write the files into a new folder; returns the command-line options that name them."""
        files = published_files(self.stage, folder)
        phi = Path(files["--phi"])
        phi.mkdir(parents=True)
        for name in TOKENIZER_FILES:
            shutil.copy(GOLDEN / f"stage{self.stage}" / "phi-2" / name, phi)
        (phi / "config.json").write_text(json.dumps(self.config))
        Path(files["--architecture"]).write_text(json.dumps(self.architecture))
        write_phi(self.phi, phi)
        for option, document in (
            ("--vision", self.vision),
            ("--qformer", self.qformer_file),
            ("--checkpoint", self.checkpoint_file),
        ):
            torch.save(document, files[option], **torch_save)
        return files

    def write_one(self, role: str, folder: Path) -> str:
        """Write the file (for ``phi``, the folder) of one role, over what is there; returns its path."""
        if role == "phi":
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(self.config))
            write_safetensors(self.phi, folder)
            return str(folder)
        documents = {"vision": self.vision, "qformer": self.qformer_file, "checkpoint": self.checkpoint_file}
        torch.save(documents[role], folder)
        return str(folder)
