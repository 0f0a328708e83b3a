"""Documents that stand in the folders of more than one layout of the siblings."""

from __future__ import annotations

from typing import Any

from siblings import Lora, Sibling

PHI_CONFIG = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "hidden_act": "gelu_new",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.38.2",
    "use_cache": True,
}
"""What a PhiConfig that is written in full also says."""


def adapter_config(target_modules: list[str], base: str | None) -> dict[str, Any]:
    """adapter_config.json as peft 0.10 writes it."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": Lora.alpha,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": Lora.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def phi_config(sibling: Sibling, rows: int | None = None) -> dict[str, Any]:
    """config.json of the language model alone, in full."""
    text = sibling.text_config
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    taken = {name: text[name] for name in (*sizes, "bos_token_id", "eos_token_id", "torch_dtype")}
    return PHI_CONFIG | taken | {"model_type": "phi", "vocab_size": rows or text["vocab_size"]}
