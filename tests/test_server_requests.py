"""What a request's JSON means, without a server: messages, fields, refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinygptv.runtime import Answer, AnswerOptions, Sampling, Timings
from tinygptv.runtime.bundle.manifest import parse_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.server import ollama
from tinygptv.runtime.server.asked import Answered, Conversation, Piece
from tinygptv.runtime.server.limits import is_loopback
from tinygptv.runtime.server.messages import conversation, read_messages
from tinygptv.runtime.server.openai_chat import ChatReply, read_chat
from tinygptv.runtime.server.pictures import image_bytes
from tinygptv.runtime.server.refusal import RefusedError
from tinygptv.runtime.server.responses_api import read_responses
from tinygptv.runtime.server.schema import Schemas
from tokenizers import Tokenizer

DEMO = parse_manifest(DEMO_BUNDLE)
PNG = "data:image/png;base64,iVBORw0KGgo="
PNG_BYTES = b"\x89PNG\r\n\x1a\n"
SCHEMAS = Schemas(Tokenizer.from_file(str(DEMO_BUNDLE / "tokenizer.json")), DEMO)
HI = [{"role": "user", "content": "hi"}]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def picture(url: object = PNG) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def words(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def read(**fields: object) -> ChatReply:
    return read_chat(json.dumps({"messages": HI, **fields}).encode(), DEMO, SCHEMAS)


def talk(messages: object) -> Conversation:
    return conversation(read_messages(messages, "messages"), "messages", DEMO.caption_question)


def refused(**fields: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(**fields)
    return caught.value


def test_a_conversation() -> None:
    found = talk(
        [
            said("system", "Be brief."),
            said("user", [words("What is this?"), picture()]),
            said("assistant", "a circle"),
            said("developer", "Say more."),
            said("user", [picture(), words("And this?")]),
            said("user", "Is it red?"),
        ]
    )
    assert [image.data for image in found.images] == [PNG_BYTES, PNG_BYTES]
    assert found.images[1].where == "messages[4].content[0].image_url.url"
    assert found.system == "Be brief."
    assert found.turns == (("What is this?", "a circle"),)
    assert found.question == "Say more.\nAnd this?\nIs it red?"


@pytest.mark.parametrize(
    ("messages", "turns", "question"),
    [
        ([said("assistant", "Hello!"), *HI], [("", "Hello!")], "hi"),
        ([said("assistant", None), *HI], [], "hi"),
        ([*HI, said("assistant", "a"), said("assistant", "b"), *HI], [("hi", "a\nb")], "hi"),
        ([*HI, said("assistant", None), *HI], [("hi", "")], "hi"),
        ([*HI, {"role": "assistant"}, *HI], [("hi", "")], "hi"),
        ([said("user", None), said("assistant", "a"), *HI], [("", "a")], "hi"),
        ([said("user", ""), *HI], [], "hi"),
        ([said("user", [picture()])], [], "[caption]"),
        ([said("user", [picture(), words(" ")])], [], "[caption]"),
        ([said("user", [picture()]), said("assistant", "a"), *HI], [("[caption]", "a")], "hi"),
        ([said("user", [{"type": "image_url", "image_url": PNG}])], [], "[caption]"),
        ([said("user", [{"type": "input_image", "image_url": PNG}, {"type": "input_text", "text": "a"}])], [], "a"),
        ([said("user", "a") | {"images": ["iVBORw0KGgo="]}], [], "a"),
        ([said("user", None) | {"images": [PNG]}], [], "[caption]"),
    ],
)
def test_unusual_conversations(messages: object, turns: list[tuple[str, str]], question: str) -> None:
    found = talk(messages)
    assert ([*found.turns], found.question) == (turns, question)
    assert {image.data for image in found.images} <= {PNG_BYTES}


@pytest.mark.parametrize(
    ("messages", "param", "told"),
    [
        (None, "messages", "at least one message"),
        ([], "messages", "at least one message"),
        ([3], "messages[0]", "an object"),
        ([said("tool", "x")], "messages[0].role", "system, developer, user or assistant"),
        ([said("user", 3)], "messages[0].content", "a text or a list of parts"),
        ([said("user", None)], "messages[0]", "no text and no image"),
        ([said("user", [{"type": "image_url", "image_url": None}])], "messages[0].content[0]", "image_url"),
        ([said("user", [picture("data:image/png;base64,!")])], "messages[0].content[0].image_url.url", "base64"),
        ([said("user", [words("<ImageHere>")])], "messages[0].content[0].text", "another way"),
        ([*HI, said("assistant", "\ud800"), *HI], "messages[1].content", "lone surrogates"),
        ([said("user", "a") | {"images": "iVBORw0KGgo="}], "messages[0].images", "a list of files"),
        ([said("user", "a") | {"images": ["!"]}], "messages[0].images[0]", "base64"),
        ([said("user", [{"type": "input_audio"}])], "messages[0].content[0]", "input_audio"),
        ([said("user", [picture(3)])], "messages[0].content[0].image_url.url", "a data: URI"),
        ([said("system", [picture()])], "messages[0]", "of role user"),
        ([said("system", "x")], "messages", "not of role user"),
        ([*HI, said("assistant", "yes")], "messages", "not of role user"),
        ([*HI, {"role": "assistant", "content": "", "tool_calls": [1]}, *HI], "messages[1]", "more than text"),
        ([said("user", " \n")], "messages[0]", "no text and no image"),
        ([said("user", [picture()]), said("assistant", "a"), said("user", "")], "messages[2]", "no text and no image"),
    ],
)
def test_messages_that_are_refused(messages: object, param: str, told: str) -> None:
    with pytest.raises(RefusedError, match=r"expected|never says|once more|another way") as caught:
        talk(messages)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/cat.png", "https://example.com/cat.png", "file:///etc/passwd", "/etc/passwd", ""),
        *("data:image/png,abc", "data:image/png;base64", "data:image/png;base64x,aGk=", "iVBORw0KGgo="),
        *("data:image/png;base64,aGkaa", "data:image/png;base64,a!b=", "data:image/png;base64,é"),
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(RefusedError) as caught:
        image_bytes(url, "here")
    assert caught.value.code == "invalid_image_url"
    assert str(caught.value).startswith("here ")


@given(
    st.binary(max_size=64),
    st.sampled_from(["image/png", "IMAGE/JPEG", "image/svg+xml", "image/webp;q=1", "", "text/plain", " image/png "]),
    st.sampled_from(["", " "]),
    st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, lambda data: quote(base64.b64encode(data)).encode()]),
    st.booleans(),
)
def test_data_uris_come_back(
    data: bytes, kind: str, space: str, encode: Callable[[bytes], bytes], padded: bool
) -> None:
    text = encode(data).decode()
    text = text if padded else text.rstrip("=")
    assert image_bytes(f"{space}data:{kind};{space}base64,{space}{text}", "here") == data


@pytest.mark.parametrize("wrapped", [base64.encodebytes, lambda data: b"\r\n " + base64.b64encode(data) + b"\t\n"])
def test_base64_may_be_broken_into_lines(wrapped: Callable[[bytes], bytes]) -> None:
    data = bytes(range(256))
    assert image_bytes(f"data:image/png;base64,{wrapped(data).decode()}", "here") == data


def test_without_fields_an_answer_is_greedy() -> None:
    reply = read(model="demo", n=1, tools=[], logprobs=False, temperature=None, response_format={"type": "text"})
    assert (reply.asked.options, reply.asked.count) == (AnswerOptions(), 1)
    assert (reply.streamed, reply.include_usage) == (False, False)


def test_what_clients_send_by_themselves_changes_nothing() -> None:
    reply = read(
        **{"model": "demo:latest", "user": "me", "metadata": {"a": "b"}, "min_p": 0.05, "keep_alive": "5m", "seed": -1},
        **{"cache_prompt": True, "top_k": -1, "max_tokens": -1, "reasoning_effort": "low", "mirostat": 0},
    )
    assert reply.asked.options == AnswerOptions()


def test_fields() -> None:
    reply = read(
        temperature=1,
        n=3,
        logprobs=True,
        top_logprobs=2,
        top_p=0.5,
        top_k=3,
        seed=4,
        repetition_penalty=1.1,
        max_completion_tokens=7,
        stop="end",
        stream=True,
        stream_options={"include_usage": True},
    )
    sampling = Sampling(temperature=1.0, top_p=0.5, top_k=3, repetition_penalty=1.1, seed=4)
    options = AnswerOptions(max_new_tokens=7, sampling=sampling, stop=("end",), top_logprobs=2)
    assert reply.asked.options == options
    assert reply.streamed and reply.include_usage
    assert [reply.asked.options_of(index).sampling.seed for index in range(reply.asked.count)] == [4, 5, 6]
    assert read(max_tokens=7, max_completion_tokens=7, stop=["a", "b"]).asked.options.stop == ("a", "b")
    assert read(logprobs=True).asked.options.top_logprobs == 0


@pytest.mark.parametrize(
    ("param", "value", "told"),
    [
        ("n", 0, "1 to 16"),
        ("n", 17, "1 to 16"),
        ("n", True, "a whole number"),
        ("tools", [{"type": "function"}], "leave it out"),
        ("tool_choice", "required", "leave it out"),
        ("logprobs", 0, "true or false"),
        ("top_logprobs", False, "a whole number"),
        ("top_logprobs", 2, "logprobs to be true"),
        ("top_logprobs", 21, "0 to 20"),
        ("mirostat", 2, "leave it out"),
        ("grammar", "root ::= x", "not a field that this server knows"),
        ("logit_bias", {"5": 1}, "leave it out"),
        ("frequency_penalty", 0.5, "leave it out"),
        ("temperature", -1, "0 or more"),
        ("temperature", "hot", "a number"),
        ("temperature", True, "a number"),
        ("temperature", 10**400, "too large"),
        ("temperature", float("nan"), "0 or more"),
        ("top_p", 0, "more than 0"),
        ("top_k", 1.5, "a whole number"),
        ("seed", -2, "0 or more"),
        ("max_tokens", 0, "at least 1"),
        ("max_completion_tokens", "many", "a whole number"),
        ("stop", "", "none empty"),
        ("stop", ["a"] * 5, "up to 4"),
        ("stop", [3], "up to 4"),
        ("stream", "yes", "true or false"),
        ("stream_options", {"include_usage": True}, "stream to be true"),
    ],
)
def test_fields_that_are_refused(param: str, value: object, told: str) -> None:
    refusal = refused(**{param: value})
    assert refusal.status == 400
    assert refusal.param == param
    assert told in str(refusal)
    assert refusal.document["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_unknown_fields_and_other_models_are_refused() -> None:
    assert refused(tempreature=1).code == "unsupported_parameter"
    assert (refused(model="gpt-4o").status, refused(model="gpt-4o").code) == (404, "model_not_found")
    assert refused(max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_what_was_found_is_told_in_words_of_json() -> None:
    """Not in Python's."""
    for value, told in ((True, "true"), ([None], "[null]"), ("é'\n", '"é\'\\n"'), ({"a": False}, '{"a": false}')):
        assert str(refused(n=value)) == f"n is {told}; expected a whole number"
    assert str(refused(messages="x" * 99)) == f'messages is "{"x" * 56}...; expected a list of at least one message'
    with pytest.raises(RefusedError, match=r"^here is not valid base64; encode"):
        image_bytes("data:image/png;base64,é", "here")
    for body, reason in ((b"\xff\xfe{", "it is not UTF-8 text"), (b"[" * 10**5, "it is nested too deeply")):
        with pytest.raises(RefusedError, match=reason):
            read_chat(body, DEMO, SCHEMAS)
    with pytest.raises(RefusedError, match="a number is too long"):
        read_chat(b"1" * 5000, DEMO, SCHEMAS)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{", b"[]", b"3", b"[" * 100_000, b"1" * 5000, b'"secret"'])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(RefusedError, match="expected one JSON object") as caught:
        read_chat(body, DEMO, SCHEMAS)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 250


ANY = (
    "messages",
    "input",
    "prompt",
    "images",
    "stop",
    "seed",
    "stream",
    "top_k",
    "n",
    "options",
    "text",
    "format",
    "x",
)


@pytest.mark.parametrize("reader", [read_chat, read_responses, ollama.read_chat, ollama.read_generate])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw builds tables of characters
@given(document=st.dictionaries(st.sampled_from(ANY), anything))
def test_no_document_raises_anything_else(reader: Callable[..., object], document: dict[str, Any]) -> None:
    try:
        reader(json.dumps(document).encode(), DEMO, SCHEMAS)
    except RefusedError as error:
        json.dumps(error.document).encode("ascii")


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": anything})))
def test_no_messages_raise_anything_else(messages: list[object]) -> None:
    try:
        found = talk(messages)
    except RefusedError:
        return
    assert found.question.strip()
    assert all(question.strip() or question == "" for question, _ in found.turns)


def test_replies_count_and_say_how_it_ended() -> None:
    timings = Timings(0, 0, 0, 0, 0, 0, 0)
    answer = Answer("{<0><0><50><100>}", (1, 2, 3), "length", 10, 4, 2, timings)
    reply = read()
    result = Answered(0, answer, (), ())
    whole: Any = reply.whole([result])
    assert whole["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["message"]["boxes"] == []  # of no picture, or which?
    assert whole["truncated_turns"] == 2
    events = [*reply.opening(), *reply.piece(Piece(0, "a", ())), *reply.answered(result)]
    assert [json.loads(event.removeprefix(b"data: "))["id"] for event in events] == [whole["id"]] * 3
    assert read().id != reply.id


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1")),
        *((host, False) for host in ("", "0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.evil.example")),
    ],
)
def test_what_is_surely_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
