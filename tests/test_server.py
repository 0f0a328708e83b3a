"""``tinygptv serve``: a real process, asked by the real openai client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from served import IMAGES, Served, about, ask, serving
from test_demo import ANSWERS
from tinygptv.runtime import TinyGPTV


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server é")) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[TinyGPTV]:
    with TinyGPTV.load() as loaded:
        yield loaded


def test_models(served: Served) -> None:
    (only,) = served.client().models.list().data
    assert served.client().models.retrieve(only.id).id == only.id == "demo"
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("gpt-4o")


@pytest.mark.parametrize(("image", "question", "expected"), ANSWERS)
def test_answers_about_an_image(served: Served, image: str, question: str, expected: str) -> None:
    completion = ask(served.client(), image, question)
    (choice,) = completion.choices
    assert (choice.message.content, choice.message.role) == (expected, "assistant")
    assert choice.finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_an_answer_about_text_alone(served: Served, model: TinyGPTV) -> None:
    answer = model.ask(None, "is a circle round?")
    completion = ask(served.client(), None, "is a circle round?")
    assert completion.choices[0].message.content == answer.text
    assert completion.usage.prompt_tokens == answer.prompt_tokens
    assert completion.usage.completion_tokens == len(answer.token_ids)


def test_boxes_are_in_pixels(served: Served, model: TinyGPTV) -> None:
    (choice,) = ask(served.client(), "red_triangle.png", "[detection] triangle").choices
    ((phrase, (box,)),) = [(region["phrase"], region["boxes"]) for region in choice.message.boxes]
    assert phrase == "red triangle"
    assert box == pytest.approx([16, 5, 39, 25], abs=2)  # read off the picture, 64 x 64


def test_streaming(served: Served) -> None:
    whole = ask(served.client(), "red_triangle.png", "[detection] triangle")
    chunks = list(
        ask(
            served.client(),
            "red_triangle.png",
            "[detection] triangle",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert "".join(filter(None, pieces)) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-2].choices[0].delta.boxes == whole.choices[0].message.boxes
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 8  # the image's part was known


def test_limits_and_stops_of_an_answer(served: Served) -> None:
    client = served.client()
    short = ask(client, "red_triangle.png", "[caption]", max_tokens=1).choices[0]
    assert (short.message.content, short.finish_reason) == ("a", "length")
    stopped = ask(client, "red_triangle.png", "[caption]", stop=["tri", "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("a red ", "stop")


def test_sampling_by_seed(served: Served) -> None:
    drawn = [
        ask(served.client(), None, "what?", temperature=5, top_p=0.9, seed=seed, max_tokens=20) for seed in (1, 1, 2)
    ]
    texts = [completion.choices[0].message.content for completion in drawn]
    assert texts[0] == texts[1] != texts[2]
    penalised = ask(served.client(), None, "what?", max_tokens=20, extra_body={"repetition_penalty": 1.5, "top_k": 3})
    assert penalised.choices[0].finish_reason


def test_a_conversation_goes_on(served: Served, model: TinyGPTV) -> None:
    """It is answered as a chat is, and from the third question on only what is new is computed."""
    chat = model.chat(IMAGES / "teal_circle.png")
    questions = ("what shape is in the image?", "what color is the shape?", "is there a red shape?", "a circle?")
    messages = about("teal_circle.png", questions[0])
    computed = []
    for number, question in enumerate(questions):
        if number:
            messages.append({"role": "user", "content": question})
        completion: Any = served.client().chat.completions.create(model="demo", messages=messages)  # type: ignore[arg-type]
        answer = completion.choices[0].message.content
        assert answer == chat.ask(question).text
        messages.append({"role": "assistant", "content": answer})
        computed.append(completion.usage.prompt_tokens - completion.usage.prompt_tokens_details.cached_tokens)
    assert completion.usage.prompt_tokens > 60
    assert max(computed[2:]) < 25


def test_a_chat_may_begin_with_turns(model: TinyGPTV) -> None:
    picture = IMAGES / "teal_circle.png"
    chat = model.chat(picture)
    first = chat.ask("what shape is in the image?")
    second = chat.ask("what color is the shape?")
    resumed = model.chat(picture, turns=[("what shape is in the image?", first.text)])
    answer = resumed.ask("what color is the shape?")
    assert answer.text == second.text
    assert answer.prompt_tokens > first.prompt_tokens + 8
    assert resumed.turns == chat.turns
    with pytest.raises(ValueError, match="question 1"):
        model.chat(Path("no such file"), turns=[(" ", "a circle")])


def test_many_at_once(served: Served) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(model="demo", messages=about(image, question))  # type: ignore[arg-type]
                for image, question, _ in ANSWERS * 2
            ]
            return [completion.choices[0].message.content for completion in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [expected for _, _, expected in ANSWERS * 2]
