"""The sizes that define one TinyGPT-V: what graphs are built from and what a bundle's manifest carries.

Field names are those of ``transformers``' configuration classes. The defaults of the published model
(EVA-CLIP ViT-g/14, BLIP-2's Q-Former, Phi-2) come from its files and are not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionArchitecture:
    """EVA-CLIP vision transformer, without a final norm, plus BLIP-2's ``ln_vision``."""

    image_size: int
    """Side of the square input, in pixels."""
    patch_size: int
    """Side of a square patch, in pixels."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-6
    output_norm_eps: float = 1e-5
    """Epsilon of ``ln_vision``, which differs from the blocks' own."""

    @property
    def num_tokens(self) -> int:
        """Tokens per image: one class token and the patches, row by row."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class QFormerArchitecture:
    """BLIP-2's querying transformer, of which only the query half is used, and the two projections."""

    num_query_tokens: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_size: int
    """Width between ``llama_proj`` and ``llama_proj2`` (4096 as published)."""
    cross_attention_frequency: int = 2
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True)
class LanguageArchitecture:
    """Phi-2 with q/k layer norms and an RMSNorm after the attention's output projection."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    """Context length, in tokens (image tokens count)."""
    rotary_dim: int
    """Leading dimensions of each head that are rotated (32 of 80 as published)."""
    rope_theta: float
    layer_norm_eps: float = 1e-5
    post_norm_eps: float = 1e-6
    """Epsilon of ``post_layernorm``, an RMSNorm."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Architecture:
    """All three parts of one model."""

    vision: VisionArchitecture
    qformer: QFormerArchitecture
    language: LanguageArchitecture
