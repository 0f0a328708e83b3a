"""Inputs and outputs of the three graphs, as promised by the manifest to every program that loads a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER, Axis, TensorSpec

from .parts import phi


@dataclass(frozen=True)
class Interface:
    """One graph's inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def interfaces(
    image_size: int, features: tuple[int, int], image_tokens: int, language: phi.Sizes, cache_dtype: str
) -> dict[str, Interface]:
    """The interface of each graph.

    Args:
        image_size: Side of the square that the vision encoder reads, in pixels.
        features: (tokens, width) of image_features.
        image_tokens: Tokens of image_embeds.
        language: The language model's sizes.
        cache_dtype: Data type of the KV cache: ``int8``, ``float16`` or ``float32``.
    """
    context = language.max_position_embeddings
    batch, kept = Axis("batch", None), Axis("kept", None)
    sequence, past_length, present_length = (
        Axis(name, None, context) for name in ("sequence", "past_length", "present_length")
    )
    side, (tokens, width) = Axis("size", image_size), features
    image_features = TensorSpec("image_features", "float32", (batch, Axis("tokens", tokens), Axis("width", width)))
    hidden = Axis("hidden", language.hidden_size)
    heads, head_dim = Axis("heads", language.num_attention_heads), Axis("head_dim", language.head_dim)
    note = (
        "past_length rows of room, of which the first seqlens_k + 1 - sequence are filled; may be present's own buffer"
    )
    layers, parts = language.num_hidden_layers, ("key", "value")
    past = tuple(
        TensorSpec(f"past_key_values.{{i}}.{part}", cache_dtype, (batch, heads, past_length, head_dim), note, layers)
        for part in parts
    )
    present = tuple(
        TensorSpec(f"present.{{i}}.{part}", cache_dtype, (batch, heads, present_length, head_dim), count=layers)
        for part in parts
    )
    return {
        VISION_ENCODER: Interface(
            (TensorSpec("pixel_values", "float32", (batch, Axis("channels", 3), side, side)),), (image_features,)
        ),
        PROJECTOR: Interface(
            (image_features,),
            (TensorSpec("image_embeds", "float32", (batch, Axis("image_tokens", image_tokens), hidden)),),
        ),
        DECODER: Interface(
            (
                TensorSpec("inputs_embeds", "float32", (batch, sequence, hidden)),
                TensorSpec("position_ids", "int64", (batch, sequence), "position in the context, from 0"),
                TensorSpec("seqlens_k", "int32", (batch,), "length with these inputs, less one"),
                TensorSpec("total_sequence_length", "int32", (), "largest length of the batch, with these inputs"),
                TensorSpec("num_logits_to_keep", "int64", (), "logits of the last so many positions; 0 for all"),
                *past,
            ),
            (
                TensorSpec("logits", "float32", (batch, kept, Axis("vocabulary", language.vocab_size))),
                *present,
            ),
        ),
    }
