"""Batches for the language model: several questions about one picture share its image tokens.

A row is the prompt up to the image tokens, those, and then as many segments as fit: each a question (or a short chat)
with its answer, which sees the beginning of the row and itself, at the positions it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from network import QFORMER
from questions import Turn
from tinygptv.export.verify.oracle import Oracle
from torch import Tensor, nn
from vocabulary import AFTER_IMAGE, ASSISTANT, BEFORE_IMAGE, HUMAN, SEPARATOR, Vocabulary

QUERIES = QFORMER.num_query_tokens
ROW_LENGTH = 256
"""Positions of a row: one length for all batches, most of it filled."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows of segments; ``rest`` is what follows a row's image tokens, and sequence is ``ROW_LENGTH``."""

    before_ids: Tensor
    """Token ids before the image, int64 [before], the same in every row."""
    rest_ids: Tensor
    """Int64 [batch, rest]."""
    position_ids: Tensor
    """Int64 [batch, before + queries + rest]."""
    attention_mask: Tensor
    """Bool [batch, 1, sequence, sequence]: true where a position sees another."""
    labels: Tensor
    """The token that each position should give next, int64 [batch, sequence]; -100 where it doesn't matter."""
    weights: Tensor
    """Each label's share of the loss, f32 [batch, sequence]."""


def segment_ids(
    conversation: Sequence[Turn], vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[list[int], int]:
    """Encodes a chat from behind the image slot, answers included.

    Earlier answers appear either as the published code has them, encoded with the whole prompt, or as they were
    generated: a token boundary falls between ``Assistant: `` and an answer only in the latter.

    Returns:
        The token ids, and how many of them at the end are the last answer and its ``###``.
    """
    together = rng.random() < 0.5
    token_ids: list[int] = []
    text = ""
    for index, turn in enumerate(conversation):
        text += f"{SEPARATOR}{HUMAN.removeprefix(SEPARATOR)}" if index else " "
        text += f"{turn.question}{ASSISTANT}"
        if index + 1 == len(conversation):
            break
        if together:
            text += turn.answer
        else:
            token_ids += (*vocabulary.encode(text), *vocabulary.encode(turn.answer))
            text = ""
    answer_ids = (*vocabulary.encode(conversation[-1].answer), vocabulary.separator_id)
    token_ids += (*vocabulary.encode(text), *answer_ids)
    return token_ids, len(answer_ids)


def pack(rows: Sequence[Sequence[Sequence[Turn]]], vocabulary: Vocabulary, rng: np.random.Generator) -> PackedBatch:
    """Packs conversations about each picture into one row, passing over those that don't fit any more."""
    before, after = vocabulary.encode(BEFORE_IMAGE), vocabulary.encode(AFTER_IMAGE)
    shared = len(before) + QUERIES + len(after)
    shape = (len(rows), ROW_LENGTH)
    token_ids = np.zeros(shape, dtype=np.int64)
    positions = np.tile(np.arange(ROW_LENGTH), (len(rows), 1))
    segments = np.full(shape, -1)
    labels = np.full(shape, -100)
    weights = np.zeros(shape, dtype=np.float32)
    token_ids[:, shared - len(after) : shared] = after
    segments[:, :shared] = 0
    for row, conversations in enumerate(rows):
        start = shared
        for number, conversation in enumerate(conversations, start=1):
            ids, answer_length = segment_ids(conversation, vocabulary, rng)
            end = start + len(ids)
            if end > ROW_LENGTH:
                continue
            token_ids[row, start:end] = ids
            positions[row, start:end] = np.arange(shared, shared + len(ids))
            segments[row, start:end] = number
            labels[row, end - answer_length - 1 : end - 1] = ids[-answer_length:]
            # The root keeps long answers (boxes) from outweighing short ones, and still gives them more.
            weights[row, end - answer_length - 1 : end - 1] = answer_length**-0.5
            start = end

    same = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = same & np.tri(ROW_LENGTH, dtype=bool)
    return PackedBatch(
        before_ids=torch.tensor(before),
        rest_ids=torch.from_numpy(token_ids[:, len(before) + QUERIES :]),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.from_numpy(mask)[:, None],
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
    )


def answer_loss(model: Oracle, image_embeds: Tensor, batch: PackedBatch) -> Tensor:
    """Gives the weighted mean cross-entropy of the answers' tokens; ``image_embeds`` is [batch, queries, hidden]."""
    before = model.embed(batch.before_ids).expand(image_embeds.shape[0], -1, -1)
    inputs_embeds = torch.cat([before, image_embeds, model.embed(batch.rest_ids)], dim=1)
    hidden_states = model.language.model(
        inputs_embeds=inputs_embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    chosen = batch.labels != -100
    logits = model.language.lm_head(hidden_states[chosen])
    losses = nn.functional.cross_entropy(logits.float(), batch.labels[chosen], reduction="none")
    weights = batch.weights[chosen]
    return (losses * weights).sum() / weights.sum()
