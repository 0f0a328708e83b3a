"""Writes the trained model as the four files that a user of the published model brings, and what describes their sizes.

Matrices are stored in fp16 where the published files have them so, everything else in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from adapters import ALPHA, RANK, adapter_of
from network import LANGUAGE, NETWORKS, QFORMER, VISION
from safetensors.torch import save_file
from tinygptv.export.verify.oracle import Oracle, tensors_of
from torch import Tensor
from vocabulary import Vocabulary

PHI_FOLDER = "phi-2"
VISION_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
STAGE_FILE = "TinyGPT-V_for_Stage4.pth"
ARCHITECTURE_FILE = "architecture.json"

_STAGE_PREFIX = "llama_model.base_model.model."
_TRAINED_NORMS = ("input_layernorm.weight", "post_layernorm.weight", "q_layernorm.weight", "k_layernorm.weight")
_TEXT_MODEL = ("model.", "lm_head.")


def save_model(model: Oracle, vocabulary: Vocabulary, folder: Path) -> None:
    """Writes all files into ``folder``.

    Args:
        model: The trained model, with its adapters.
        vocabulary: Its tokenizer.
        folder: Where to; made if need be.
    """
    phi = folder / PHI_FOLDER
    phi.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().clone() for name, tensor in tensors_of(_without_adapters(model)).items()}

    save_file(
        {name: tensor.half().contiguous() for name, tensor in _phi_tensors(tensors).items()}, phi / "model.safetensors"
    )
    _write_json(phi / "config.json", _phi_config(vocabulary))
    vocabulary.save(phi)
    torch.save(_vision_tensors(tensors), folder / VISION_FILE)
    qformer = {name: tensor for name, tensor in tensors.items() if name.startswith(("Qformer.", "query_tokens"))}
    ln_vision = {name: tensor for name, tensor in tensors.items() if name.startswith("ln_vision.")}
    torch.save({"model": qformer | ln_vision}, folder / QFORMER_FILE)
    projections = {name: tensor for name, tensor in tensors.items() if name.startswith("llama_proj")}
    norms = {_STAGE_PREFIX + name: tensor for name, tensor in tensors.items() if name.endswith(_TRAINED_NORMS)}
    stage = {
        "model": _adapter_tensors(model) | norms | projections | qformer,
        "optimizer": {},
        "config": {
            "model": {
                "arch": "minigpt_v2",
                "image_size": VISION.image_size,
                "lora_r": RANK,
                "lora_alpha": ALPHA,
            }
        },
        "scaler": None,
        "epoch": 0,
    }
    torch.save(stage, folder / STAGE_FILE)
    untold = {
        "image_size": VISION.image_size,
        "patch_size": VISION.patch_size,
        "vision_layers": VISION.num_hidden_layers,
        "vision_heads": VISION.num_attention_heads,
        "qformer_heads": QFORMER.num_attention_heads,
    }
    _write_json(folder / ARCHITECTURE_FILE, untold)


def _without_adapters(model: Oracle) -> Oracle:
    base = Oracle(NETWORKS)
    frozen = ".parametrizations.weight.original"
    state = {name.replace(frozen, ".weight"): tensor for name, tensor in model.state_dict().items()}
    base.load_state_dict({name: tensor for name, tensor in state.items() if ".parametrizations." not in name})
    return base


def _adapter_tensors(model: Oracle) -> dict[str, Tensor]:
    tensors = {}
    for index, layer in enumerate(model.language.model.layers):
        attention = layer.self_attn
        parts = [adapter_of(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        dense = adapter_of(attention.dense.linear)
        prefix = f"{_STAGE_PREFIX}model.layers.{index}.self_attn."
        fused_b = _head_major(torch.cat([part.factor_b.detach() for part in parts]))
        tensors[f"{prefix}query_key_value.lora_A.default.weight"] = parts[0].factor_a.detach().clone()
        tensors[f"{prefix}query_key_value.lora_B.default.weight"] = fused_b
        tensors[f"{prefix}dense.lora_A.default.weight"] = dense.factor_a.detach().clone()
        tensors[f"{prefix}dense.lora_B.default.weight"] = dense.factor_b.detach().clone()
    return tensors


def _phi_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks what Phi-2 itself has: of the norms that TinyGPT-V adds, none."""
    added = ("post_layernorm.", "q_layernorm.", "k_layernorm.")
    kept = {}
    for name, tensor in tensors.items():
        if name.startswith(_TEXT_MODEL) and not any(part in name for part in added):
            fused = name.replace(".qkv.", ".query_key_value.")
            kept[fused] = tensor if fused == name else _head_major(tensor)
    return kept


def _vision_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names the vision encoder's weights as the EVA-CLIP file does; keys have no bias there, nor any effect of one."""
    stored = {}
    for name, tensor in tensors.items():
        key = name.removeprefix("visual.")
        if key == name:
            continue
        if key.endswith("attn.qkv.bias"):
            stored[key.replace("qkv.bias", "q_bias")], _, stored[key.replace("qkv.bias", "v_bias")] = tensor.chunk(3)
        else:
            stored[key] = tensor.half() if key.endswith(".weight") and tensor.ndim > 1 else tensor
    return {key: tensor.clone() for key, tensor in stored.items()}


def _head_major(rows: Tensor) -> Tensor:
    """Orders rows (q/k/v, head, head_dim) as the fused matrix has them: (head, q/k/v, head_dim)."""
    heads = LANGUAGE.num_attention_heads
    return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def _phi_config(vocabulary: Vocabulary) -> dict[str, object]:
    language = LANGUAGE
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_hidden_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_attention_heads,
        "max_position_embeddings": language.max_position_embeddings,
        "partial_rotary_factor": language.rotary_dim / language.head_dim,
        "rope_theta": language.rope_theta,
        "rope_scaling": None,
        "layer_norm_eps": language.layer_norm_eps,
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary.end_of_text_id,
        "eos_token_id": vocabulary.end_of_text_id,
        "torch_dtype": "float16",
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
