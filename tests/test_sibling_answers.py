"""What the public API gives of the other Phi-2 families: published text, and a picture's tokens computed once."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from siblings import FAMILIES, SIBLINGS, golden_case, golden_numbers
from test_prompt import BUILT
from tinygptv.runtime import Sampling, TinyGPTV
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.engine import Engine
from tinygptv.runtime.language.embeddings import assemble
from tinygptv.runtime.language.prompt import Turn
from tinygptv.runtime.options import AnswerOptions
from tinygptv.runtime.tuning.find import find_tuned
from tinygptv.runtime.vision.cache import ImageCache

Bundle = Callable[..., Path]
END = "<|endoftext|>"
QUESTIONS = ("What is in the picture?", "And how many are there?", "Where is the largest one?")
DRAWN = Sampling(temperature=1.5, seed=3)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def picture(family: str) -> Path:
    return SIBLINGS / family / "picture.png"


@pytest.fixture
def other(family: str) -> Path:
    return SIBLINGS / ("mipha" if family == "bunny" else "bunny") / "picture.png"


@pytest.fixture
def model(family: str, sibling_bundle: Bundle) -> Iterator[TinyGPTV]:
    """In fp32; nobody has asked it before."""
    with TinyGPTV.load(sibling_bundle(family)) as loaded:
        yield loaded


def afresh(model: TinyGPTV, pictures: list[Path], turns: list[Turn], count: int) -> tuple[int, ...]:
    """Greedy ids of a conversation that is computed from its first position on."""
    engine = model._engine
    images = [model.encode_image(picture).embeds for picture in pictures]
    embeds = assemble(engine.table, engine.segments(turns, len(images), None), images)
    return tuple(model.generate_ids(embeds, count))


def text_of(model: TinyGPTV, ids: tuple[int, ...]) -> str:
    return model._engine.tokenizer.decode(list(ids), skip_special_tokens=True)


# Prompts and texts


def test_ids_are_those_of_the_published_code(family: str, model: TinyGPTV) -> None:
    """By the bundle's own template and an engine that has the real tokenizer."""
    loaded = model._engine
    engine = Engine(model.manifest, loaded.sessions, loaded.table, BUILT, ImageCache(model.manifest, None))
    document = json.loads((SIBLINGS / family / "prompts.json").read_text(encoding="utf-8"))
    assert max(len(entry["turns"]) for entry in document["prompts"]) > 1
    for entry in document["prompts"]:
        turns, count = [Turn(*turn) for turn in entry["turns"]], int(entry["image"])
        prepared = engine.prepare(turns, count, AnswerOptions(max_new_tokens=1))
        assert prepared.segments == entry["segment_ids"]
        # A chat keeps the ids of its own answers: with the published ones, nothing changes.
        generated = [
            turn if turn.answer is None else Turn(*entry["turns"][i], tuple(BUILT.encode(f" {turn.answer}").ids))
            for i, turn in enumerate(turns)
        ]
        assert engine.segments(generated, count, None) == entry["segment_ids"]


def test_an_answer_is_the_published_one_streamed_or_not(family: str, model: TinyGPTV, picture: Path) -> None:
    ids, question = golden_numbers(family)["greedy_ids"].tolist(), golden_case(family)["question"]
    stream = model.stream(picture, question, max_new_tokens=len(ids))
    pieces = list(stream)
    assert list(stream.answer.token_ids) == ids
    assert len(pieces) > 5 and "".join(pieces) == stream.answer.text == text_of(model, tuple(ids)).removeprefix(" ")
    assert model.ask(picture, question, max_new_tokens=len(ids)).text == stream.answer.text


def test_the_space_that_the_model_writes_first_is_not_part_of_an_answer(model: TinyGPTV, picture: Path) -> None:
    """Nor is it fed twice, where an answer's text becomes a prompt again."""
    engine = model._engine
    spaced = [i for i in range(engine.tokenizer.get_vocab_size()) if text_of(model, (i,)).startswith(" ")]
    drawn = (
        model.ask(picture, "what?", sampling=Sampling(temperature=100, seed=seed), max_new_tokens=4)
        for seed in itertools.count()
    )
    answer = next(answer for answer in drawn if answer.token_ids[0] in spaced)
    assert f" {answer.text}" == text_of(model, answer.token_ids)
    _, after = engine.segments([Turn("what?", answer.text), Turn("why?")], 1, None)
    assert engine.tokenizer.decode(after, skip_special_tokens=False) == (
        f"\nwhat? ASSISTANT: {answer.text}{END}USER: why? ASSISTANT:"
    )


def test_nothing_but_the_end_of_text_ends_an_answer(model: TinyGPTV, picture: Path) -> None:
    engine = model._engine
    (end,) = model.manifest.eos_token_ids
    assert (model.manifest.stop_strings, engine.tokenizer.id_to_token(end)) == ((), END)
    writer = engine.prepare([Turn("what?")], 1, AnswerOptions()).writer
    pieces = [writer.push(token) for token in engine.tokenizer.encode("###Human: b").ids]
    assert "".join(pieces) == "###Human: b" and not writer.complete
    drawn = (
        model.ask(picture, "what?", sampling=Sampling(temperature=100, seed=seed), max_new_tokens=500)
        for seed in itertools.count()
    )
    ended = next(answer for answer in drawn if answer.finish_reason == "stop")
    assert end not in ended.token_ids and END not in ended.text


# What is fed


def test_a_second_question_feeds_no_image_token_again(model: TinyGPTV, picture: Path, runs: list[int]) -> None:
    tokens = model.manifest.contract.image_tokens
    before, after = model._engine.segments([Turn(QUESTIONS[1])], 1, None)
    first = model.ask(picture, QUESTIONS[0], max_new_tokens=4)
    assert first.cached_tokens == 0 and runs[0] == first.prompt_tokens
    runs.clear()
    second = model.ask(picture, QUESTIONS[1], max_new_tokens=4)
    assert second.cached_tokens == len(before) + tokens
    assert runs == [len(after), 1, 1, 1]
    assert second.token_ids == afresh(model, [picture], [Turn(QUESTIONS[1])], 4)


def test_a_turn_feeds_only_what_is_new(model: TinyGPTV, picture: Path, runs: list[int]) -> None:
    chat = model.chat(picture)
    turns: list[Turn] = []
    finished: list[str] = []
    for number, question in enumerate(QUESTIONS):
        runs.clear()
        answer = chat.ask(question, max_new_tokens=6)
        if number:
            # The last answer's last token, unless the model ended it itself; its end of text, and the question.
            new = model._engine.tokenizer.encode(f"{END}USER: {question} ASSISTANT:").ids
            unfed = int(finished[-1] == "length")
            assert runs[0] == unfed + len(new) == answer.prompt_tokens - answer.cached_tokens
            assert new[0] == model.manifest.eos_token_ids[0]
        assert answer.token_ids == afresh(model, [picture], [*turns, Turn(question)], 6)
        turns.append(Turn(question, answer.text, answer.token_ids))
        finished.append(answer.finish_reason)


def test_a_conversation_that_another_program_keeps(model: TinyGPTV, picture: Path, runs: list[int]) -> None:
    said = [(QUESTIONS[0], "Two.")]
    model.ask(picture, QUESTIONS[0], max_new_tokens=4)
    runs.clear()
    second = model.ask(picture, QUESTIONS[1], turns=said, max_new_tokens=4)
    assert runs[0] == len(model._engine.segments([Turn(*said[0]), Turn(QUESTIONS[1])], 1, None)[1])
    runs.clear()
    third = model.ask(picture, QUESTIONS[2], turns=[*said, (QUESTIONS[1], second.text)], max_new_tokens=4)
    assert third.cached_tokens >= second.prompt_tokens - 1  # all but what may be tokenised otherwise with what follows
    assert runs[0] == third.prompt_tokens - third.cached_tokens


def test_a_full_context_costs_the_oldest_turns_and_never_the_picture(
    model: TinyGPTV, picture: Path, runs: list[int]
) -> None:
    context, tokens = model.manifest.contract.context, model.manifest.contract.image_tokens
    word = len(model._engine.tokenizer.encode(" tree").ids)
    long = " tree" * (context * 2 // 5 // word)
    chat = model.chat(picture)
    turns: list[Turn] = []
    for number in range(3):
        question = f"{number}{long}"
        runs.clear()
        answer = chat.ask(question, max_new_tokens=4)
        turns.append(Turn(question, answer.text, answer.token_ids))
    assert answer.truncated_turns == 1 and answer.prompt_tokens <= context - 4
    before, _ = model._engine.segments([Turn("?")], 1, None)
    assert answer.cached_tokens >= len(before) + tokens
    assert runs[0] == answer.prompt_tokens - answer.cached_tokens
    assert answer.token_ids == afresh(model, [picture], [turns[1], Turn(question)], 4)


# Several pictures, several questions


def test_several_pictures_each_in_its_slot(model: TinyGPTV, picture: Path, other: Path) -> None:
    tokens = model.manifest.contract.image_tokens
    segments = model._engine.segments([Turn(QUESTIONS[0])], 2, None)
    assert model._engine.tokenizer.decode(segments[1]) == "\n"
    answer = model.ask([picture, other], QUESTIONS[0], max_new_tokens=8)
    assert answer.prompt_tokens == sum(map(len, segments)) + 2 * tokens
    assert answer.token_ids == afresh(model, [picture, other], [Turn(QUESTIONS[0])], 8)
    assert answer.token_ids != afresh(model, [other, picture], [Turn(QUESTIONS[0])], 8)
    again = model.ask([picture, other], QUESTIONS[1], max_new_tokens=8)
    assert again.cached_tokens == sum(map(len, segments[:2])) + 2 * tokens


def test_many_questions_at_once(model: TinyGPTV, picture: Path, other: Path) -> None:
    asked = list(itertools.product((picture, other), QUESTIONS))
    options = AnswerOptions(max_new_tokens=20, sampling=DRAWN, stop=("e", "s"))
    single = [model.ask(*one, options=options) for one in asked]
    assert any(answer.finish_reason == "stop" for answer in single)
    assert len({answer.text for answer in single}) > len(QUESTIONS)
    batched = model.ask_many(asked, batch_size=4, options=options)
    alike = [(answer.text, answer.token_ids, answer.finish_reason) for answer in single]
    assert [(answer.text, answer.token_ids, answer.finish_reason) for answer in batched] == alike
    each = dict(model.ask_each(asked, batch_size=4, options=options))
    assert [each[number].text for number in range(len(asked))] == [answer.text for answer in single]


# Pictures


def test_what_the_model_sees_of_a_picture(family: str, model: TinyGPTV, picture: Path) -> None:
    image = model.encode_image(picture)
    width, height = image.width, image.height
    assert width != height
    if family == "tinyllava":
        assert image.view == (0, 0, width, height)
    else:
        left, top, right, bottom = image.view
        assert right - left == bottom - top == max(width, height)
        assert (left, top) == (-((max(width, height) - width) // 2), -((max(width, height) - height) // 2))


def test_a_folder_of_encoded_images_serves_several_models(sibling_bundle: Bundle, tmp_path: Path) -> None:
    """Mipha's and Bunny's golden towers are shown the same pixels and see something else in them."""
    picture, seen = SIBLINGS / "mipha" / "picture.png", {}
    for family in ("mipha", "bunny", "mipha", "bunny"):
        with TinyGPTV.load(sibling_bundle(family), image_cache=tmp_path) as model:
            image = model.encode_image(picture)
        assert image == seen.setdefault(family, image)
    assert not np.allclose(seen["mipha"].embeds, seen["bunny"].embeds)
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*.embeds")]
    assert len({file.name for file in files}) == 1 and len({file.parent for file in files}) == 2


@pytest.mark.parametrize("options", [{"memory": "low"}, {"tune": True}], ids=["low memory", "tuned"])
def test_low_memory_and_tuned_weights_change_no_answer(
    family: str, options: dict[str, Any], picture: Path, sibling_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(sibling_bundle(family, precision="int8"), tmp_path / "bundle"))
    said = []
    for given in ({}, options):
        with TinyGPTV.load(bundle, **given) as model:
            chat = model.chat(picture)
            said.append([chat.ask(question, max_new_tokens=12).token_ids for question in QUESTIONS])
    assert said[0] == said[1]
    assert (find_tuned(bundle, read_manifest(bundle)) is not None) == ("tune" in options)
