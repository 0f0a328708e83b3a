"""The server asked by programs' own client libraries: openai, ollama, langchain-openai, litellm, llm."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from pydantic import BaseModel
from served import IMAGES, RAMBLING, Served, about, ask, data_uri, serving
from tinygptv.runtime import TinyGPTV

CIRCLE = IMAGES / "teal_circle.png"
SHAPE = "what shape is in the image?"


class Shape(BaseModel):
    """What an answer in JSON is to hold."""

    shape: str
    red: bool
    corners: int


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server é")) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[TinyGPTV]:
    with TinyGPTV.load() as loaded:
        yield loaded


def test_openai_several_answers(served: Served) -> None:
    drawn: dict[str, Any] = {"temperature": 5, "seed": 1, "max_tokens": 12}
    done = ask(served.client(), None, "what?", n=3, **drawn)
    texts = [choice.message.content for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert 12 < done.usage.completion_tokens <= 36
    alone = ask(served.client(), None, "what?", **drawn | {"seed": 2})
    assert alone.choices[0].message.content == texts[1]
    streamed = ["", "", ""]
    ends = []
    for chunk in ask(served.client(), None, "what?", n=3, stream=True, **drawn):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert (streamed, ends) == (texts, [0, 1, 2])
    greedy = ask(served.client(), "teal_circle.png", SHAPE, n=2)
    assert [choice.message.content for choice in greedy.choices] == ["circle", "circle"]


def test_openai_logprobs(served: Served, model: TinyGPTV) -> None:
    wanted = model.ask(CIRCLE, "[caption]", top_logprobs=3)
    done = ask(served.client(), "teal_circle.png", "[caption]", logprobs=True, top_logprobs=3)
    (choice,) = done.choices
    found = choice.logprobs.content
    assert "".join(token.token for token in found) == choice.message.content == "a teal circle"  # without its "###"
    for token, own in zip(found, wanted.logprobs, strict=False):
        assert (token.token, bytes(token.bytes)) == (own.text.decode(), own.text)
        assert token.logprob == pytest.approx(own.logprob, abs=1e-4)
        assert [other.bytes for other in token.top_logprobs] == [list(other.text) for other in own.top]
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) < 1.001
    chunks = list(ask(served.client(), "teal_circle.png", "[caption]", logprobs=True, top_logprobs=3, stream=True))
    streamed = [token for chunk in chunks for c in chunk.choices if c.logprobs for token in c.logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in found]


def test_openai_json(served: Served) -> None:
    client = served.client()
    parsed = client.chat.completions.parse(
        model="demo",
        messages=about("teal_circle.png", SHAPE),  # type: ignore[arg-type]
        response_format=Shape,
    )
    assert isinstance(parsed.choices[0].message.parsed, Shape)
    assert parsed.choices[0].finish_reason == "stop"
    # Whatever is drawn, however improbable.
    format = {"type": "json_schema", "json_schema": {"name": "shape", "schema": Shape.model_json_schema()}}
    for seed in range(3):
        drawn = ask(client, None, "hi", response_format=format, **RAMBLING | {"seed": seed})
        if drawn.choices[0].finish_reason == "stop":
            Shape.model_validate_json(drawn.choices[0].message.content)
    anything = ask(client, "teal_circle.png", SHAPE, response_format={"type": "json_object"})
    assert isinstance(json.loads(anything.choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError, match="is not supported") as caught:
        ask(client, None, "hi", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "cat"}}})
    assert caught.value.param == "response_format.json_schema.schema"


def test_openai_lengths(served: Served) -> None:
    """A limit beyond the context is the context's."""
    whole = ask(served.client(), "teal_circle.png", "[caption]", max_tokens=4096)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("a teal circle", "stop")
    endless = {"type": "array", "items": {"const": "red"}, "minItems": 1000}
    format = {"type": "json_schema", "json_schema": {"name": "endless", "schema": endless}}
    full = ask(served.client(), None, "hi", max_tokens=4096, response_format=format)
    assert (full.choices[0].finish_reason, full.usage.total_tokens) == ("length", 512)
    said = [{"role": "user", "content": "is it red?"}, {"role": "assistant", "content": "no"}] * 4
    kept = ask_all(served, [*said, *about("teal_circle.png", SHAPE)], max_tokens=4096)
    assert kept.truncated_turns == 0
    long = ask_all(served, [*said * 8, *about("teal_circle.png", SHAPE)], max_tokens=4096)
    assert 0 < long.truncated_turns < 32


def ask_all(served: Served, messages: list[dict[str, object]], **fields: Any) -> Any:
    return served.client().chat.completions.create(model="demo", messages=messages, **fields)  # type: ignore[arg-type]


def test_openai_unusual_conversations(served: Served) -> None:
    greeting = {"role": "assistant", "content": "Hello! Show me an image."}
    question = about("teal_circle.png", SHAPE)
    done = ask_all(served, [greeting, *question, {"role": "assistant", "content": None}, greeting, *about(None, SHAPE)])
    assert done.choices[0].finish_reason == "stop"
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": data_uri(CIRCLE)}]}
    assert ask_all(served, [picture]).choices[0].message.content == "a teal circle"
    system = {"role": "system", "content": "is it red?"}
    beside = ask_all(served, [system, *question])
    assert (
        beside.choices[0].message.content
        == ask(served.client(), "teal_circle.png", f"is it red?\n{SHAPE}").choices[0].message.content
    )


def test_openai_responses(served: Served, model: TinyGPTV) -> None:
    client = served.client()
    content = [{"type": "input_image", "image_url": data_uri(CIRCLE)}, {"type": "input_text", "text": SHAPE}]
    asked: Any = [{"role": "user", "content": content}]
    done = client.responses.create(model="demo", input=asked, store=False, metadata={"a": "b"})
    answer = model.ask(CIRCLE, SHAPE)
    assert (done.output_text, done.status) == (answer.text, "completed")
    assert done.usage and done.usage.input_tokens == answer.prompt_tokens
    assert done.usage.output_tokens == len(answer.token_ids)
    said = [*asked, {"role": "assistant", "content": done.output[0].content}, {"role": "user", "content": "is it red?"}]
    wanted = model.ask(CIRCLE, "is it red?", turns=[(SHAPE, answer.text)]).text
    again = [{**part, "content": [p.model_dump() for p in part["content"]]} if part["role"] == "assistant" else part
             for part in said]  # fmt: skip
    assert client.responses.create(model="demo", input=again).output_text == wanted
    text = client.responses.create(model="demo", input="is a circle round?", instructions="Be brief.")
    assert text.output_text == model.ask(None, "is a circle round?", system="Be brief.").text
    cut = client.responses.create(model="demo", input="hi", max_output_tokens=1)
    assert cut.status == "incomplete"
    assert cut.incomplete_details and cut.incomplete_details.reason == "max_output_tokens"
    parsed = client.responses.parse(model="demo", input=asked, text_format=Shape)
    assert isinstance(parsed.output_parsed, Shape)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_openai_responses_streamed(served: Served) -> None:
    content = [{"type": "input_image", "image_url": data_uri(CIRCLE)}]
    asked: Any = [{"role": "user", "content": content}]
    include: Any = ["message.output_text.logprobs"]
    with served.client().responses.stream(model="demo", input=asked, include=include) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "a teal circle"
    assert [event.sequence_number for event in events] == sorted({event.sequence_number for event in events})
    kinds = [event.type for event in events]
    deltas: list[Any] = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added")
    ]
    assert kinds[-1] == "response.completed"
    assert (
        "".join(event.delta for event in deltas)
        == "a teal circle"
        == "".join(token.token for event in deltas for token in event.logprobs)
    )


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[ollama.Client]:
    made = ollama.Client(host=served.url)
    yield made
    made._client.close()


def test_ollama_tells_of_the_model(client: ollama.Client, served: Served) -> None:
    (listed,) = client.list().models
    assert listed.model == "demo:latest"
    assert listed.details and listed.details.family == "tinygpt-v"
    for name in ("demo", "demo:latest"):
        shown = client.show(name)
        assert shown.capabilities == ["completion", "vision"]
        assert shown.modelinfo and shown.modelinfo["tinygpt-v.context_length"] == 512
    assert client.ps().models[0].context_length == 512
    assert httpx.get(f"{served.url}/api/version").json()["version"].count(".") == 2
    with pytest.raises(ollama.ResponseError, match='this server has "demo"') as caught:
        client.show("llava")
    assert caught.value.status_code == 404


def test_ollama_chat(client: ollama.Client, model: TinyGPTV) -> None:
    question = {"role": "user", "content": SHAPE, "images": [str(CIRCLE)]}
    done = client.chat("demo", [question], keep_alive="5m", options={"num_ctx": 4096, "num_predict": 4096})
    assert (done.message.content, done.done, done.done_reason) == ("circle", True, "stop")
    assert done.prompt_eval_count == model.ask(CIRCLE, SHAPE).prompt_tokens
    lines = list(client.chat("demo", [{"role": "user", "content": "", "images": [CIRCLE.read_bytes()]}], stream=True))
    assert [part.done for part in lines] == [False] * (len(lines) - 1) + [True]
    assert "".join(part.message.content or "" for part in lines) == "a teal circle"
    assert len(lines) > 3 and lines[-1].eval_count == 4
    said = [question, {"role": "assistant", "content": "circle"}, {"role": "user", "content": "is it red?"}]
    wanted = model.ask(CIRCLE, "is it red?", turns=[(SHAPE, "circle")]).text
    assert client.chat("demo", said).message.content == wanted
    cut = client.chat("demo", [question], options={"num_predict": 1})
    assert cut.done_reason == "length"
    likely = client.chat("demo", [question], logprobs=True, top_logprobs=2)
    assert likely.logprobs and len(likely.logprobs[0].top_logprobs or ()) == 2


def test_ollama_generate(client: ollama.Client, served: Served) -> None:
    assert client.generate("demo", SHAPE, images=[CIRCLE]).response == "circle"
    parts = list(client.generate("demo", images=[CIRCLE], stream=True))
    assert "".join(part.response or "" for part in parts) == "a teal circle"
    loaded = client.generate("demo")
    assert (loaded.response, loaded.done_reason) == ("", "load")
    assert client.chat("demo").done_reason == "load"
    shape = client.generate("demo", SHAPE, images=[CIRCLE], format=Shape.model_json_schema())
    assert Shape.model_validate_json(shape.response or "")
    drawn = [
        client.generate("demo", "hi", options={"temperature": 5, "seed": seed, "num_predict": 9}).response
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    curl = httpx.post(  # as curl -d sends it
        f"{served.url}/api/generate",
        content=b'{"model": "demo", "prompt": "hi", "options": {"num_predict": 1}}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert curl.headers["content-type"] == "application/x-ndjson"
    assert json.loads(curl.text.splitlines()[-1])["done_reason"] == "length"


def test_ollama_errors_are_its_own(client: ollama.Client) -> None:
    for options, told in (
        ({"num_predict": 0}, r"^options\.num_predict is 0"),
        ({"repeat_penalty": 0}, r"^options\.repeat_penalty is 0"),
        ({"tempreature": 1}, r'"options\.tempreature" is not a field'),
    ):
        with pytest.raises(ollama.ResponseError, match=told):
            client.generate("demo", "hi", options=options)
    with pytest.raises(ollama.ResponseError, match=r"^images\[0\]: image bytes") as caught:
        client.generate("demo", "hi", images=[b"no picture"])
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="leaves no room"):
        list(client.generate("demo", " shape" * 600, stream=True))


def test_ollama_async(served: Served) -> None:
    async def pieces() -> str:
        client = ollama.AsyncClient(host=served.url)
        stream = await client.chat("demo", [{"role": "user", "content": SHAPE, "images": [CIRCLE]}], stream=True)
        text = "".join([part.message.content or "" async for part in stream])
        await client._client.aclose()
        return text

    assert asyncio.run(pieces()) == "circle"


def test_langchain(served: Served) -> None:
    from langchain_openai import ChatOpenAI

    question: Any = [{"role": "user", "content": about("teal_circle.png", SHAPE)[0]["content"]}]
    # Its own clients, so that they can be closed.
    with httpx.Client() as http:
        chat = ChatOpenAI(model="demo", base_url=f"{served.url}/v1", api_key="none", http_client=http, max_retries=0)  # type: ignore[arg-type]
        assert chat.invoke(question).content == "circle"
        assert "".join(str(chunk.content) for chunk in chat.stream(question)) == "circle"
        structured: Any = chat.with_structured_output(Shape, method="json_schema").invoke(question)
        assert isinstance(structured, Shape)
        responses = ChatOpenAI(
            model="demo",
            base_url=f"{served.url}/v1",
            api_key="none",  # type: ignore[arg-type]
            http_client=http,
            use_responses_api=True,
        )
        (part,) = responses.invoke(question).content
        assert isinstance(part, dict) and part["text"] == "circle"


def test_litellm(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it would fetch one when it is imported
    reached: list[object] = []
    connect = socket.socket.connect

    def noting(self: socket.socket, address: Any) -> None:
        reached.append(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noting)
    import litellm

    question = about("teal_circle.png", SHAPE)
    local: dict[str, Any] = {"messages": question, "num_retries": 0}
    at_openai = {"model": "openai/demo", "api_base": f"{served.url}/v1", "api_key": "none"}
    assert litellm.completion(**local, **at_openai, max_tokens=4096).choices[0].message.content == "circle"
    chunks = litellm.completion(**local, **at_openai, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "circle"
    at_ollama = {"model": "ollama_chat/demo", "api_base": served.url}
    assert litellm.completion(**local, **at_ollama).choices[0].message.content == "circle"
    assert set(reached) == {"127.0.0.1"}


def test_what_the_documentation_shows(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One program after the other, in tinygptv's folder, as they are there but for the port."""
    root = Path(__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    text = (root / "docs" / "server.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "documentation"}
    for program in programs:
        exec(re.sub(r"http://127\.0\.0\.1:\d+", served.url, program), names)
        client = names["client"]
        served.clients.append(client) if isinstance(client, openai.OpenAI) else client._client.close()
    color, shape, words, *ollamas = capsys.readouterr().out.splitlines()
    assert color == "red"
    assert shape.startswith("shape=")
    assert words and len(ollamas) == 1


def test_llm(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of its own kind, as users write it into extra-openai-models.yaml."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    line = {"model_id": "tiny", "model_name": "demo", "api_base": f"{served.url}/v1", "vision": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([line]), encoding="utf-8")
    import llm

    tiny = llm.get_model("tiny")
    response = tiny.prompt(SHAPE, attachments=[llm.Attachment(path=str(CIRCLE))], key="none")
    assert "".join(response) == "circle"
    talk = tiny.conversation()
    whole = talk.prompt(SHAPE, attachments=[llm.Attachment(path=str(CIRCLE))], stream=False, key="none")
    assert whole.text() == "circle"
    assert talk.prompt("is it red?", stream=False, key="none").text() in ("yes", "no")
