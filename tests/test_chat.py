"""Conversations: what a turn computes, what is forgotten when the context is full, and several images or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import QUESTION
from PIL import Image
from tinygptv.runtime import Answer, ContextOverflowError, EncodedImage, Sampling, TinyGPTV
from tinygptv.runtime.language import kv_cache, prefix_cache
from tinygptv.runtime.language.embeddings import assemble
from tinygptv.runtime.language.prompt import Turn, render

CONTEXT = 256
TAGGED = "[vqa] what is it?"
QUESTIONS = (QUESTION, TAGGED, "and why is that?", QUESTION)


@pytest.fixture
def fresh(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """A model that nobody asked before."""
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        yield model


def afresh(model: TinyGPTV, images: list[EncodedImage], turns: list[Turn], tokens: int) -> tuple[int, ...]:
    """The same conversation computed from its first position on."""
    engine = model._engine
    segments = engine.segments(turns, len(images), None)
    embeds = assemble(engine.table, segments, [image.embeds for image in images])
    return tuple(model.generate_ids(embeds, tokens))


@pytest.mark.parametrize("growth", [4, 128])
def test_a_turn_feeds_only_what_is_new(
    fresh: TinyGPTV, photo: Path, runs: list[int], growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH", growth)
    image = fresh.encode_image(photo)
    chat = fresh.chat(image)
    turns: list[Turn] = []
    before = 0
    for question in QUESTIONS[:3]:
        runs.clear()
        answer = chat.ask(question, max_new_tokens=8)
        positions = answer.prompt_tokens - answer.cached_tokens
        assert runs == [positions] + [1] * (len(answer.token_ids) - 1)
        # All that was fed before: the last token of an answer is not, since nothing followed it yet.
        assert answer.cached_tokens == before
        assert answer.token_ids == afresh(fresh, [image], [*turns, Turn(question)], 8)
        before = answer.prompt_tokens + len(answer.token_ids) - 1
        turns.append(Turn(question, answer.text, answer.token_ids))
    assert chat.turns == tuple((turn.question, turn.answer) for turn in turns)


def test_the_prompt_is_the_published_one(fresh: TinyGPTV, photo: Path) -> None:
    chat = fresh.chat(photo)
    first = chat.ask(QUESTION, max_new_tokens=4)
    second = chat.ask(TAGGED, max_new_tokens=4)
    prompt = render(fresh.manifest.template(None), [(QUESTION, first.text), (TAGGED, None)])
    assert prompt.count("###Human: ") == 2 and prompt.startswith("###Human: <Img>")
    queries = fresh.manifest.contract.image_tokens
    before, after = fresh._engine.segments([Turn(QUESTION)], 1, None)
    between = fresh._engine.tokenizer.encode(f"###Human: {TAGGED}###Assistant: ", add_special_tokens=False).ids
    assert second.prompt_tokens == len(before) + queries + len(after) + len(first.token_ids) + len(between)


def test_another_question_about_the_image_reuses_its_part(fresh: TinyGPTV, photo: Path, runs: list[int]) -> None:
    queries = fresh.manifest.contract.image_tokens
    image = fresh.encode_image(photo)
    first = fresh.ask(image, QUESTION, max_new_tokens=8)
    assert first.cached_tokens == 0
    # ###Human: <Img> image </Img>, which the next question's words follow
    before, after = fresh._engine.segments([Turn(TAGGED)], 1, None)
    closing = len(fresh._engine.tokenizer.encode("</Img>", add_special_tokens=False).ids)
    runs.clear()
    second = fresh.ask(photo, TAGGED, max_new_tokens=8)
    assert second.cached_tokens == len(before) + queries + closing
    assert runs[0] == len(after) - closing
    assert second.token_ids == afresh(fresh, [image], [Turn(TAGGED)], 8)
    other = fresh.ask(Image.open(photo).transpose(Image.Transpose.ROTATE_180), TAGGED, max_new_tokens=8)
    assert other.cached_tokens == 0  # and leaves the first one its own
    again = fresh.ask(image, QUESTION, max_new_tokens=8)
    assert again.token_ids == first.token_ids and again.cached_tokens >= len(before) + queries


def test_only_so_many_caches_are_kept(fresh: TinyGPTV, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "IDLE_CACHES", 1)
    pictures = [Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    for picture in (*pictures, pictures[0]):
        last = fresh.ask(picture, QUESTION, max_new_tokens=2)
    assert len(fresh._engine.prefixes._idle) == 1
    assert last.cached_tokens < fresh.manifest.contract.image_tokens


@pytest.mark.parametrize(("room", "kept"), [(2.5, 2), (1.5, 1), (0.5, 1)])
def test_caches_take_so_much_and_no_more(
    room: float, kept: int, fresh: TinyGPTV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is kept however large it is: another question about the same image is what comes most."""
    first = fresh.ask(Image.new("RGB", (8, 8), "red"), QUESTION, max_new_tokens=2)
    (idle,) = fresh._engine.prefixes._idle
    monkeypatch.setattr(prefix_cache, "IDLE_BYTES", room * idle.cache.nbytes)
    fresh.ask(Image.new("RGB", (8, 8), "blue"), QUESTION, max_new_tokens=2)
    assert len(fresh._engine.prefixes._idle) == kept
    again = fresh.ask(Image.new("RGB", (8, 8), "blue"), QUESTION, max_new_tokens=2)
    assert again.cached_tokens > fresh.manifest.contract.image_tokens
    again = fresh.ask(Image.new("RGB", (8, 8), "red"), QUESTION, max_new_tokens=2)
    assert (again.cached_tokens > fresh.manifest.contract.image_tokens) == (kept == 2)
    assert again.token_ids == first.token_ids


def test_reset_keeps_the_image(fresh: TinyGPTV, photo: Path) -> None:
    """And gives back the room that the turns took."""
    chat = fresh.chat(photo)
    first = chat.ask(QUESTION, max_new_tokens=8)
    chat.ask(TAGGED, max_new_tokens=120)
    taken = chat._cache._sequence.cache.nbytes
    chat.reset()
    assert chat.turns == ()
    assert chat._cache._sequence.cache.nbytes < taken
    again = chat.ask(QUESTION, max_new_tokens=8)
    assert again.token_ids == first.token_ids
    assert fresh.manifest.contract.image_tokens < again.cached_tokens < again.prompt_tokens


def test_whole_turns_are_dropped_when_the_context_is_full(fresh: TinyGPTV, photo: Path) -> None:
    image = fresh.encode_image(photo)
    chat = fresh.chat(image)
    answers: list[Answer] = []
    while not answers or answers[-1].truncated_turns < 2:
        assert len(answers) < 30
        answers.append(chat.ask(TAGGED, max_new_tokens=24))
        assert answers[-1].prompt_tokens + 24 <= CONTEXT
    dropped = [answer.truncated_turns for answer in answers]
    assert dropped == sorted(dropped) and dropped[0] == 0 and 1 in dropped
    last = answers[-1]
    said = [Turn(TAGGED, answer.text, answer.token_ids) for answer in answers[:-1]]
    assert last.token_ids == afresh(fresh, [image], [*said[last.truncated_turns :], Turn(TAGGED)], 24)
    # One turn more would not have fitted.
    longer = fresh._engine.segments([*said[last.truncated_turns - 1 :], Turn(TAGGED)], 1, None)
    assert sum(map(len, longer)) + len(image.embeds) + 24 > CONTEXT
    assert len(chat.turns) == len(answers)  # what was said is not forgotten by the chat, only by the model


def test_a_question_too_long_alone_is_refused_and_the_chat_goes_on(fresh: TinyGPTV, photo: Path) -> None:
    chat = fresh.chat(photo)
    first = chat.ask(QUESTION, max_new_tokens=4)
    with pytest.raises(ContextOverflowError, match="the model's context is 256"):
        chat.ask("word " * 300)
    assert chat.turns == ((QUESTION, first.text),)
    assert chat.ask(TAGGED, max_new_tokens=4).cached_tokens > 0


def test_several_images_each_in_its_slot(fresh: TinyGPTV, photo: Path) -> None:
    images = [fresh.encode_image(photo), fresh.encode_image(Image.new("RGB", (9, 9), "red"))]
    both = fresh.ask(images, QUESTION, max_new_tokens=12)
    swapped = fresh.ask(tuple(reversed(images)), QUESTION, max_new_tokens=12)
    assert both.token_ids == afresh(fresh, images, [Turn(QUESTION)], 12)
    assert both.token_ids != swapped.token_ids
    assert both.prompt_tokens == swapped.prompt_tokens > 2 * len(images[0].embeds)
    assert fresh.chat(images).ask(QUESTION, max_new_tokens=12).token_ids == both.token_ids


def test_text_alone(fresh: TinyGPTV) -> None:
    answer = fresh.ask(None, QUESTION, max_new_tokens=12)
    assert answer.token_ids == afresh(fresh, [], [Turn(QUESTION)], 12)
    assert answer.timings.preprocess == answer.timings.image_encode == 0
    chat = fresh.chat(None)
    assert chat.images == ()
    assert chat.ask(QUESTION, max_new_tokens=12).token_ids == answer.token_ids


def test_chats_in_turn_do_not_disturb_each_other(fresh: TinyGPTV, photo: Path) -> None:
    def alone() -> list[tuple[int, ...]]:
        chat = fresh.chat(photo)
        return [chat.ask(question, max_new_tokens=6).token_ids for question in QUESTIONS]

    wanted = alone()
    chats = [fresh.chat(photo), fresh.chat(photo)]
    streams = [chat.stream(QUESTIONS[0], max_new_tokens=6) for chat in chats]
    for pieces in zip(*streams, strict=False):
        assert len(pieces) == 2
    assert [stream.answer.token_ids for stream in streams] == wanted[:1] * 2
    for question, ids in zip(QUESTIONS[1:], wanted[1:], strict=True):
        assert [chat.ask(question, max_new_tokens=6).token_ids for chat in chats] == [ids] * 2


def test_stop_and_sampling(fresh: TinyGPTV, photo: Path) -> None:
    whole = fresh.chat(photo).ask(QUESTION, max_new_tokens=20)
    cut = whole.text[3:5]
    answer = fresh.chat(photo).ask(QUESTION, max_new_tokens=20, stop=[cut])
    assert (answer.text, answer.finish_reason) == (whole.text[: whole.text.index(cut)], "stop")
    warm = [
        fresh.chat(photo).ask(QUESTION, max_new_tokens=20, sampling=Sampling(temperature=2, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]
    with pytest.raises(TypeError, match="expected a sequence of strings"):
        fresh.chat(photo).ask(QUESTION, stop="ab")


@pytest.mark.parametrize("arguments", [{"template": "none such"}])
def test_arguments_are_checked_before_the_image(fresh: TinyGPTV, arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="none such"):
        fresh.chat("no such file.png", **arguments)
