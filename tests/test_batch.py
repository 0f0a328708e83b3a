"""Several answers at once are the answers one by one, in fewer steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinygptv.runtime import (
    Answer,
    AnswerOptions,
    ArgumentError,
    Cancellation,
    CancellationError,
    ContextOverflowError,
    EncodedImage,
    ImageError,
    Sampling,
    TinyGPTV,
)
from tinygptv.runtime.language.batch import DecoderBatch

QUESTIONS = ("what?", "what is this?", "what is this? and what is that, to the left of it?", "[vqa] is it?", "image")


@pytest.fixture(scope="module")
def images(speaking_model: TinyGPTV) -> list[EncodedImage]:
    random = np.random.default_rng(5)
    pictures = random.integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    return [speaking_model.encode_image(Image.fromarray(picture)) for picture in pictures]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each step of a batch had."""
    counts: list[int] = []
    run = DecoderBatch.run

    def counting(batch: DecoderBatch, inputs_embeds: np.ndarray, cancellation: Cancellation) -> np.ndarray:
        counts.append(inputs_embeds.shape[0])
        return run(batch, inputs_embeds, cancellation)

    monkeypatch.setattr(DecoderBatch, "run", counting)
    return counts


def same(first: Answer, second: Answer) -> bool:
    return (first.token_ids, first.text, first.finish_reason, first.prompt_tokens) == (
        second.token_ids,
        second.text,
        second.finish_reason,
        second.prompt_tokens,
    )


@settings(deadline=None, max_examples=25)
@given(
    asked=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(QUESTIONS)), max_size=9),
    batch_size=st.integers(1, 5),
    max_new_tokens=st.integers(1, 30),
)
def test_many_are_answered_as_one_by_one(
    speaking_model: TinyGPTV,
    images: list[EncodedImage],
    asked: list[tuple[int, str]],
    batch_size: int,
    max_new_tokens: int,
) -> None:
    questions = [(images[image], question) for image, question in asked]
    many = speaking_model.ask_many(questions, max_new_tokens=max_new_tokens, batch_size=batch_size)
    alone = [speaking_model.ask(*question, max_new_tokens=max_new_tokens) for question in questions]
    assert len(many) == len(alone)
    assert all(map(same, many, alone))


@settings(deadline=None, max_examples=25)
@given(
    asked=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(QUESTIONS)), min_size=1, max_size=7),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    penalty=st.sampled_from([1.0, 1.3]),
    stop=st.sampled_from([(), ("e",), ("in", "d"), (" ",)]),
)
def test_each_is_sampled_and_stopped_as_alone(
    speaking_model: TinyGPTV,
    images: list[EncodedImage],
    asked: list[tuple[int, str]],
    batch_size: int,
    seed: int,
    penalty: float,
    stop: tuple[str, ...],
) -> None:
    """Whatever else is in the batch; two times the same question gets the same answer."""
    sampling = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=penalty, seed=seed)
    options = AnswerOptions(max_new_tokens=12, sampling=sampling, stop=stop)
    questions = [(images[image], question) for image, question in [*asked, asked[0]]]
    many = speaking_model.ask_many(questions, options=options, batch_size=batch_size)
    assert all(map(same, many, [speaking_model.ask(*question, options=options) for question in questions]))
    each = dict(speaking_model.ask_each(questions, options=options, batch_size=batch_size + 1))
    assert all(same(answer, many[number]) for number, answer in each.items())
    assert same(many[0], many[-1])


def test_without_a_seed_each_draws_for_itself(speaking_model: TinyGPTV, images: list[EncodedImage]) -> None:
    hot = Sampling(temperature=2.0)
    many = speaking_model.ask_many([(images[0], "what?")] * 4, max_new_tokens=12, sampling=hot, batch_size=4)
    assert len({answer.token_ids for answer in many}) > 1


def test_a_stop_string_ends_one_answer_of_a_batch(
    speaking_model: TinyGPTV, images: list[EncodedImage], steps: list[int]
) -> None:
    questions = [(images[i % 4], question) for i, question in enumerate(QUESTIONS)]
    whole = speaking_model.ask_many(questions, max_new_tokens=20)
    stop = next(letter for letter in whole[0].text[4:] if not all(letter in answer.text for answer in whole[1:]))
    steps.clear()
    many = speaking_model.ask_many(questions, max_new_tokens=20, stop=[stop])
    assert {answer.finish_reason for answer in many} == {"stop", "length"}
    assert [answer.text for answer in many] == [answer.text.partition(stop)[0] for answer in whole]
    assert sum(steps) < len(questions) * 19, "nothing is computed for an answer that has ended"


def test_answers_that_end_make_room_for_the_next(
    speaking_model: TinyGPTV, images: list[EncodedImage], steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths differ, since one question's first tokens are declared to end a text."""
    questions = [(images[i % 4], question) for i, question in enumerate(QUESTIONS * 2)]
    alone = [speaking_model.ask(*question, max_new_tokens=20) for question in questions]
    ends = tuple({answer.token_ids[length] for length, answer in enumerate(alone)})
    monkeypatch.setattr(speaking_model._engine, "manifest", replace(speaking_model.manifest, eos_token_ids=ends))
    many = speaking_model.ask_many(questions, max_new_tokens=20, batch_size=3)
    assert all(map(same, many, [speaking_model.ask(*question, max_new_tokens=20) for question in questions]))
    lengths = [len(answer.token_ids) for answer in many]
    assert len(set(lengths)) > 2
    assert "stop" in {answer.finish_reason for answer in many}
    assert max(steps) == 3
    # Each token but an answer's first comes of a step, and so does the end of text, which is not told.
    fed = [length - (answer.finish_reason == "length") for length, answer in zip(lengths, many, strict=True)]
    assert sum(steps) == sum(fed)


def test_each_comes_as_soon_as_it_is_whole(
    speaking_model: TinyGPTV, images: list[EncodedImage], steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And questions are taken one by one, when there is room for them."""
    asked = [(images[i % 4], question) for i, question in enumerate(QUESTIONS * 2)]
    end = speaking_model.ask(*asked[0], max_new_tokens=20).token_ids[4]
    monkeypatch.setattr(speaking_model._engine, "manifest", replace(speaking_model.manifest, eos_token_ids=(end,)))
    alone = [(one, speaking_model.ask(*one, max_new_tokens=20)) for one in asked]
    several = [pair for pair in alone if len(pair[1].token_ids) > 1]
    (short, soon), *_, (long, late) = sorted(several, key=lambda pair: len(pair[1].token_ids))
    assert len(soon.token_ids) < len(late.token_ids)
    taken: list[int] = []

    def questions() -> Iterator[tuple[EncodedImage, str]]:
        for number, one in enumerate((long, short, long)):
            taken.append(number)
            yield one

    answers = speaking_model.ask_each(questions(), max_new_tokens=20, batch_size=2)
    assert taken == [] == steps
    number, answer = next(answers)
    assert number == 1 and same(answer, soon)
    assert taken == [0, 1]
    computed = len(steps)
    rest = dict(answers)
    assert list(rest) == [0, 2] and taken == [0, 1, 2]
    assert all(same(answer, late) for answer in rest.values())
    assert len(steps) > computed


def test_nothing_is_computed_for_a_reader_who_left(
    speaking_model: TinyGPTV, images: list[EncodedImage], fed: list[int], steps: list[int]
) -> None:
    answers = speaking_model.ask_each([(image, "what?") for image in images], max_new_tokens=3, batch_size=2)
    next(answers)
    computed = (len(fed), len(steps))
    answers.close()
    assert list(answers) == []
    assert (len(fed), len(steps)) == computed


def test_cancelling(speaking_model: TinyGPTV, images: list[EncodedImage], photo: Path, steps: list[int]) -> None:
    cancellation = Cancellation()
    answers = speaking_model.ask_each(
        [(images[0], "what?"), (images[1], "what is this?"), (photo, "what?")],
        max_new_tokens=20,
        batch_size=2,
        cancellation=cancellation,
    )
    next(answers)
    cancellation.cancel()
    with pytest.raises(CancellationError):
        list(answers)
    computed = len(steps)
    with pytest.raises(CancellationError):
        speaking_model.ask_many([(photo, "what?")], cancellation=cancellation)
    assert len(steps) == computed
    assert speaking_model.ask_many([(photo, "what?")], max_new_tokens=2)[0].token_ids


def test_a_step_of_a_batch_can_be_ended(speaking_model: TinyGPTV) -> None:
    """Its rows then stay as they were."""
    decoder = speaking_model._decoder
    random = np.random.default_rng(3)
    prompt = random.standard_normal((1, 4, decoder.contract.hidden_size)).astype(np.float32)
    new = random.standard_normal((2, decoder.contract.hidden_size)).astype(np.float32)
    batch = DecoderBatch(decoder, 2)
    for _ in range(2):
        state = decoder.start()
        state.run(prompt)
        batch.add(state)
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(CancellationError):
        batch.run(new, cancelled)
    twin = decoder.start()
    twin.run(prompt)
    assert np.allclose(batch.run(new)[0], twin.run(new[np.newaxis, :1])[0], atol=1e-4)


def test_what_is_wrong_with_every_question_is_said_at_once(speaking_model: TinyGPTV, photo: Path) -> None:
    def none() -> Iterator[tuple[Path, str]]:
        raise AssertionError("nothing was asked for yet")
        yield photo, ""

    with pytest.raises(ArgumentError, match="batch_size is 0"):
        speaking_model.ask_each(none(), batch_size=0)
    with pytest.raises(ArgumentError, match="no prompt template"):
        speaking_model.ask_each(none(), template="none")
    with pytest.raises(ArgumentError, match="max_new_tokens"):
        speaking_model.ask_each(none(), max_new_tokens=0)
    answers = speaking_model.ask_each([(photo, "what?"), (photo, " ")], max_new_tokens=3, batch_size=1)
    assert next(answers)[0] == 0
    with pytest.raises(ArgumentError, match="expected some text"):
        next(answers)


def test_rows_grow_and_leave(speaking_model: TinyGPTV, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's logits are those of its sequence alone, whatever the others do."""
    monkeypatch.setattr("tinygptv.runtime.language.kv_cache.GROWTH", 4)
    decoder = speaking_model._decoder
    assert decoder is not None
    random = np.random.default_rng(3)
    hidden = decoder.contract.hidden_size
    batch = DecoderBatch(decoder, 3)
    states, twins = [], []
    for length in (3, 9, 6):
        prompt = random.standard_normal((1, length, hidden)).astype(np.float32)
        for kept in (states, twins):
            kept.append(decoder.start())
            kept[-1].run(prompt)
        batch.add(states[-1])
    for leaving in (None, 0, None, None, 1, None):
        if leaving is not None:
            batch.remove(leaving)
            twins[leaving] = twins[-1]
            twins.pop()
        new = random.standard_normal((len(batch), hidden)).astype(np.float32)
        logits = batch.run(new)
        expected = np.concatenate([twin.run(row[np.newaxis, np.newaxis]) for twin, row in zip(twins, new, strict=True)])
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4 * expected.std()


def test_timings_are_each_answers_own(speaking_model: TinyGPTV, images: list[EncodedImage], photo: Path) -> None:
    encoded, path = speaking_model.ask_many([(images[0], "what?"), (photo, "what?")], max_new_tokens=5)
    assert encoded.timings.image_encode == 0 == encoded.timings.preprocess
    assert path.timings.image_encode > 0
    for answer in (encoded, path):
        timings = answer.timings
        assert 0 < timings.prefill < timings.prefill + timings.decode
        parts = sum((timings.preprocess, timings.image_encode, timings.projector, timings.prefill))
        assert timings.time_to_first_token == pytest.approx(parts)


def test_arguments_are_checked_before_anything_is_computed(
    speaking_model: TinyGPTV, photo: Path, fed: list[int], steps: list[int]
) -> None:
    good = (photo, "what?")
    assert speaking_model.ask_many([]) == []
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        speaking_model.ask_many([good], batch_size=0)
    with pytest.raises(ArgumentError, match="expected some text"):
        speaking_model.ask_many([good, (photo, " ")])
    with pytest.raises(ArgumentError, match="no prompt template"):
        speaking_model.ask_many([good], template="none")
    with pytest.raises(ContextOverflowError, match="300"):
        speaking_model.ask_many([good], max_new_tokens=300)
    with pytest.raises(ImageError, match="does not exist"):
        speaking_model.ask_many([(photo.with_name("none.png"), "what?")])
    assert fed == steps == []
