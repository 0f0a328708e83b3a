"""Inputs and outputs of the three graphs: what the manifest promises to every program that loads a bundle."""

from __future__ import annotations

from tinygptv.runtime.architecture import Architecture
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Axis, TensorSpec

BATCH, SEQUENCE, PAST, PRESENT, KEPT = (
    Axis(name, None) for name in ("batch", "sequence", "past_length", "present_length", "kept")
)
Contract = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def contracts(architecture: Architecture, cache_dtype: str) -> dict[str, Contract]:
    """(inputs, outputs) of each graph; the KV cache's dtype is ``float16`` or ``float32``."""
    vision, qformer, language = architecture.vision, architecture.qformer, architecture.language
    side = Axis("size", vision.image_size)
    features = TensorSpec(
        "image_features", "float32", (BATCH, Axis("tokens", vision.num_tokens), Axis("width", vision.hidden_size))
    )
    hidden = Axis("hidden", language.hidden_size)
    heads, head_dim = Axis("heads", language.num_attention_heads), Axis("head_dim", language.head_dim)
    note = (
        "past_length rows of room, of which the first seqlens_k + 1 - sequence are filled; may be present's own buffer"
    )
    past = tuple(
        TensorSpec(f"past_key_values.{{i}}.{part}", cache_dtype, (BATCH, heads, PAST, head_dim), note)
        for part in ("key", "value")
    )
    present = tuple(
        TensorSpec(f"present.{{i}}.{part}", cache_dtype, (BATCH, heads, PRESENT, head_dim)) for part in ("key", "value")
    )
    return {
        VISION_ENCODER: (
            (TensorSpec("pixel_values", "float32", (BATCH, Axis("channels", 3), side, side)),),
            (features,),
        ),
        PROJECTOR: (
            (features,),
            (TensorSpec("image_embeds", "float32", (BATCH, Axis("queries", qformer.num_query_tokens), hidden)),),
        ),
        DECODER: (
            (
                TensorSpec("inputs_embeds", "float32", (BATCH, SEQUENCE, hidden)),
                TensorSpec("position_ids", "int64", (BATCH, SEQUENCE), "position in the context, from 0"),
                TensorSpec("seqlens_k", "int32", (BATCH,), "length with these inputs, less one"),
                TensorSpec("total_sequence_length", "int32", (), "largest length of the batch, with these inputs"),
                TensorSpec("num_logits_to_keep", "int64", (), "logits of the last so many positions; 0 for all"),
                *past,
            ),
            (
                TensorSpec("logits", "float32", (BATCH, KEPT, Axis("vocabulary", language.vocab_size))),
                *present,
            ),
        ),
    }
