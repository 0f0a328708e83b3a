"""Greedy decoding against a loop that keeps nothing, and what is refused before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN_STAGES, QUESTION
from tinygptv.runtime import ContextOverflowError, TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, EMBEDDINGS, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.language.decoder import Decoder
from tinygptv.runtime.language.embeddings import TokenEmbeddings
from tinygptv.runtime.language.generate import check_room, decode

CONTEXT = 256


class Parts:
    """What greedy decoding is given, for one golden stage in fp32."""

    def __init__(self, folder: Path, prompt: np.ndarray) -> None:
        manifest = read_manifest(folder)
        self.decoder = Decoder(open_session(folder, manifest.graphs[DECODER], threads=1), manifest.contract)
        self.table = TokenEmbeddings(folder / EMBEDDINGS, manifest.contract)
        self.prompt = prompt

    def embed(self, token_id: int) -> np.ndarray:
        return self.table.rows([token_id])

    def greedy(self, max_new_tokens: int, eos_token_ids: tuple[int, ...] = ()) -> list[int]:
        return list(decode(self.decoder.start(), self.prompt, self.embed, max_new_tokens, eos_token_ids))


@pytest.fixture(scope="module", params=GOLDEN_STAGES)
def parts(
    request: pytest.FixtureRequest,
    golden_bundle: Callable[[int, str], Path],
    expected: Callable[[int], dict[str, np.ndarray]],
) -> Parts:
    """Of stage 3, then of stage 4."""
    return Parts(golden_bundle(request.param, "fp32"), expected(request.param)["inputs_embeds"])


def test_greedy_is_argmax_over_everything_computed_afresh(parts: Parts) -> None:
    wanted: list[int] = []
    for _ in range(24):
        everything = np.concatenate([parts.prompt[0], parts.table.rows(wanted)])[np.newaxis]
        wanted.append(int(np.argmax(parts.decoder.start().run(everything)[-1])))
    assert len(set(wanted)) > 5  # not the same token all along
    assert parts.greedy(24) == wanted


def test_end_of_text_stops_and_is_not_yielded(parts: Parts, fed: list[int]) -> None:
    ids = parts.greedy(24)
    place = max(ids.index(token) for token in ids)  # where a token comes for the first time
    assert place >= 3
    fed.clear()
    assert parts.greedy(24, (ids[place],)) == ids[:place]
    assert fed == [parts.prompt.shape[1]] + [1] * place
    assert parts.greedy(24, (319 + 1, ids[place], ids[1])) == ids[: ids.index(ids[1])]  # any of several


def test_end_of_text_at_once(parts: Parts, fed: list[int]) -> None:
    first = parts.greedy(1)
    fed.clear()
    assert parts.greedy(24, tuple(first)) == []
    assert fed == [parts.prompt.shape[1]]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 24])
def test_max_new_tokens_is_exact(parts: Parts, fed: list[int], max_new_tokens: int) -> None:
    assert parts.greedy(max_new_tokens) == parts.greedy(24)[:max_new_tokens]
    # The last token is not fed: nobody asks what would follow it.
    assert fed[:max_new_tokens] == [parts.prompt.shape[1]] + [1] * (max_new_tokens - 1)
    assert len(fed) == max_new_tokens + 24


def test_a_token_is_yielded_before_it_is_fed(parts: Parts, fed: list[int]) -> None:
    ids = decode(parts.decoder.start(), parts.prompt, parts.embed, 24, ())
    assert fed == []  # nothing is computed until the first token is asked for
    for count in range(1, 5):
        next(ids)
        assert fed == [parts.prompt.shape[1]] + [1] * (count - 1)


def test_a_sequence_can_be_continued(parts: Parts) -> None:
    state = parts.decoder.start()
    first = list(decode(state, parts.prompt, parts.embed, 5, ()))
    rest = list(decode(state, parts.embed(first[-1])[np.newaxis], parts.embed, 7, ()))
    assert first + rest == parts.greedy(12)


def test_check_room_at_its_edges() -> None:
    check_room(prompt=1, max_new_tokens=255, context=256)
    check_room(prompt=255, max_new_tokens=1, context=256)
    with pytest.raises(ContextOverflowError, match=r"\b200\b.*\b57\b.*\b257\b.*\b256\b"):
        check_room(prompt=200, max_new_tokens=57, context=256)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"max_new_tokens is {wrong}; expected at least 1"):
            check_room(prompt=1, max_new_tokens=wrong, context=256)


def test_a_full_context_works_and_one_more_token_is_refused(
    speaking_model: TinyGPTV, photo: Path, fed: list[int]
) -> None:
    embeds = speaking_model.embed_prompt(speaking_model.encode_image(photo), QUESTION)
    room = CONTEXT - embeds.shape[1]
    assert len(list(speaking_model.generate_ids(embeds, room))) == room
    assert sum(fed) == CONTEXT - 1
    fed.clear()
    with pytest.raises(ContextOverflowError, match=rf"\b{embeds.shape[1]} tokens.*\b{room + 1} new.*\b{CONTEXT}\b"):
        speaking_model.generate_ids(embeds, room + 1)
    assert fed == []


@pytest.mark.parametrize("call", ["stream", "ask"])
def test_what_does_not_fit_is_refused_before_the_image_is_looked_at(
    speaking_model: TinyGPTV, photo: Path, fed: list[int], call: str
) -> None:
    tokens = speaking_model.embed_prompt(speaking_model.encode_image(photo), QUESTION).shape[1]
    no_picture = photo.with_name("none.png")  # an ImageError if it were opened
    with pytest.raises(ContextOverflowError, match=rf"\b{tokens} tokens.*\b{CONTEXT} new.*\b{CONTEXT + tokens}\b"):
        getattr(speaking_model, call)(no_picture, QUESTION, max_new_tokens=CONTEXT)
    with pytest.raises(ContextOverflowError, match=rf"the model's context is {CONTEXT}, which leaves no room"):
        getattr(speaking_model, call)(no_picture, "why? " * CONTEXT)  # no number given: at least one must fit
    assert fed == []


@pytest.mark.parametrize("wrong", [0, -1])
def test_no_new_tokens_are_refused_at_the_call(
    speaking_model: TinyGPTV, photo: Path, fed: list[int], wrong: int
) -> None:
    embeds = speaking_model.embed_prompt(speaking_model.encode_image(photo), QUESTION)
    message = f"max_new_tokens is {wrong}; expected at least 1"
    with pytest.raises(ValueError, match=message):
        speaking_model.generate_ids(embeds, wrong)
    with pytest.raises(ValueError, match=message):
        speaking_model.stream(photo, QUESTION, max_new_tokens=wrong)
    with pytest.raises(ValueError, match=message):
        speaking_model.ask(photo, QUESTION, max_new_tokens=wrong)
    assert fed == []


def test_without_a_number_the_rest_of_the_context_is_used(speaking_model: TinyGPTV, photo: Path) -> None:
    answer = speaking_model.ask(photo, QUESTION)
    assert answer.prompt_tokens + len(answer.token_ids) == CONTEXT
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("shape", [(120,), (35, 120), (1, 35, 119), (1, 0, 120), (2, 35, 120)])
def test_generate_ids_checks_the_shape_at_the_call(speaking_model: TinyGPTV, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs_embeds .*expected"):
        speaking_model.generate_ids(np.zeros(shape, np.float32), 3)
