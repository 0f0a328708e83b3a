"""Phi-2 as a checkpoint holds it: sizes, config.json, and which tensors there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from random_tensors import Tensor, linear_tensors, norm_tensors


@dataclass(frozen=True)
class PhiSizes:
    """What sets the shapes of its tensors."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    context: int
    eos_token_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


PUBLISHED_PHI = PhiSizes(
    vocab_size=51200,
    hidden_size=2560,
    intermediate_size=10240,
    num_layers=32,
    num_heads=32,
    context=2048,
    eos_token_id=50256,
)


def phi_tensors(
    sizes: PhiSizes,
    dtype: torch.dtype = torch.float16,
    fused: bool = True,
    head_bias: bool = True,
    prefix: str = "",
) -> Iterator[Tensor]:
    """Phi-2, which has none of TinyGPT-V's extra norms.

    Args:
        sizes: Of the network.
        dtype: Of every tensor.
        fused: With query_key_value, whose rows are (head, q/k/v, head_dim), and not q_proj, k_proj and v_proj.
        head_bias: Whether lm_head has a bias.
        prefix: What stands before every key.
    """
    width = sizes.hidden_size
    yield Tensor(f"{prefix}model.embed_tokens.weight", (sizes.vocab_size, width), dtype)
    residual_gain = 1 / math.sqrt(2 * sizes.num_layers)
    inputs = {"query_key_value": 3 * width} if fused else dict.fromkeys(("q_proj", "k_proj", "v_proj"), width)
    for i in range(sizes.num_layers):
        layer = f"{prefix}model.layers.{i}"
        yield from norm_tensors(f"{layer}.input_layernorm", width, dtype)
        for name, rows in inputs.items():
            yield from linear_tensors(f"{layer}.self_attn.{name}", rows, width, dtype)
        yield from linear_tensors(f"{layer}.self_attn.dense", width, width, dtype, gain=residual_gain)
        yield from linear_tensors(f"{layer}.mlp.fc1", sizes.intermediate_size, width, dtype)
        yield from linear_tensors(f"{layer}.mlp.fc2", width, sizes.intermediate_size, dtype, gain=residual_gain)
    yield from norm_tensors(f"{prefix}model.final_layernorm", width, dtype)
    head = linear_tensors(f"{prefix}lm_head", sizes.vocab_size, width, dtype)
    yield next(head)
    if head_bias:
        yield next(head)


def phi_config(sizes: PhiSizes) -> dict[str, Any]:
    """config.json of the Phi-2 folder that TinyGPT-V was trained on."""
    return {
        "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": sizes.eos_token_id,
        "embd_pdrop": 0.0,
        "eos_token_id": sizes.eos_token_id,
        "hidden_act": "gelu_new",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.context,
        "model_type": "phi",
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_heads,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.37.2",
        "use_cache": True,
        "vocab_size": sizes.vocab_size,
    }
