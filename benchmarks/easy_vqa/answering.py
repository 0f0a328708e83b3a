"""Greedy answers of the torch model, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from network import pixel_values
from numpy.typing import NDArray
from tinygptv.export.verify.oracle import Oracle
from vocabulary import Vocabulary

MAX_NEW_TOKENS = 24
"""Enough for the longest answer, a phrase with its box."""


@torch.no_grad()
def answer_all(
    model: Oracle,
    vocabulary: Vocabulary,
    pixels: NDArray[np.uint8],
    asked: Sequence[tuple[int, str]],
    batch_size: int = 256,
) -> list[str]:
    """Answers questions about pictures, in fp32.

    Args:
        model: The model.
        vocabulary: Its tokenizer.
        pixels: The pictures, [pictures, height, width, 3].
        asked: For each question its picture's row in ``pixels``, and its text.
        batch_size: How many questions to answer at once; those of one length are put together.

    Returns:
        The answers in the order of ``asked``.
    """
    rows = sorted({row for row, _ in asked})
    encoded = [model.image_embeds(model.image_features(part)) for part in pixel_values(pixels[rows]).split(batch_size)]
    image_embeds = dict(zip(rows, torch.cat(encoded), strict=True))
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, (_, question) in enumerate(asked):
        by_length[len(vocabulary.prompt_ids(question)[1])].append(index)

    answers = [""] * len(asked)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            before, after = zip(*(vocabulary.prompt_ids(asked[index][1]) for index in chosen), strict=True)
            images = torch.stack([image_embeds[asked[index][0]] for index in chosen])
            inputs_embeds = torch.cat([model.embed(torch.tensor(before)), images, model.embed(torch.tensor(after))], 1)
            stop = (vocabulary.separator_id, vocabulary.end_of_text_id)
            for index, token_ids in zip(chosen, model.generate_ids(inputs_embeds, MAX_NEW_TOKENS, stop), strict=True):
                answers[index] = vocabulary.decode_answer(token_ids)
    return answers
