"""What a request's JSON means, without a server: messages, fields, refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygptv.runtime import Answer, AnswerOptions, Sampling, Timings
from tinygptv.runtime.bundle.manifest import parse_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.server.limits import is_loopback
from tinygptv.runtime.server.messages import image_bytes, read_messages
from tinygptv.runtime.server.refusal import RefusedError
from tinygptv.runtime.server.replies import Reply
from tinygptv.runtime.server.requests import CompletionRequest, read_request

DEMO = parse_manifest(DEMO_BUNDLE)
PNG = "data:image/png;base64,iVBORw0KGgo="
PNG_BYTES = b"\x89PNG\r\n\x1a\n"
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


def read(**fields: object) -> CompletionRequest:
    return read_request(json.dumps({"messages": HI, **fields}).encode(), "demo")


def refused(**fields: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(**fields)
    return caught.value


def test_a_conversation() -> None:
    conversation = read_messages(
        [
            said("system", "Be brief."),
            said("user", [words("What is this?"), picture()]),
            said("assistant", "a circle"),
            said("user", [picture(), words("And this?")]),
            said("user", "Is it red?"),
        ]
    )
    assert conversation.images == (PNG_BYTES, PNG_BYTES)
    assert conversation.turns == (("Be brief.\nWhat is this?", "a circle"),)
    assert conversation.question == "And this?\nIs it red?"


@pytest.mark.parametrize(
    ("messages", "param", "told"),
    [
        (None, "messages", "at least one message"),
        ([], "messages", "at least one message"),
        ([3], "messages[0]", "an object"),
        ([said("tool", "x")], "messages[0].role", "system, developer, user or assistant"),
        ([said("user", None)], "messages[0].content", "a text or a list of parts"),
        ([said("user", [{"type": "input_audio"}])], "messages[0].content[0]", "input_audio"),
        ([said("user", [picture(3)])], "messages[0].content[0].image_url.url", "a data: URI"),
        ([said("system", [picture()])], "messages[0]", "of role user"),
        ([said("system", "x")], "messages", "not of role user"),
        ([*HI, said("assistant", "yes")], "messages", "not of role user"),
        ([said("assistant", "yes"), *HI], "messages[0]", "no user message"),
        ([*HI, {"role": "assistant", "content": "", "tool_calls": [1]}, *HI], "messages[1]", "more than text"),
        ([said("user", " \n")], "messages[0]", "no text in the user message"),
        ([said("user", [picture()])], "messages[0]", "no text in the user message"),
    ],
)
def test_messages_that_are_refused(messages: object, param: str, told: str) -> None:
    with pytest.raises(RefusedError, match=r"expected|never says") as caught:
        read_messages(messages)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/cat.png", "https://example.com/cat.png", "file:///etc/passwd", "/etc/passwd", ""),
        *("data:image/png,abc", "data:text/plain;base64,aGk=", "data:;base64,aGk=", "data:image/png;base64"),
        *("data:image/png;base64,aGk", "data:image/png;base64,a!b=", "data:image/png;base64,é"),
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(RefusedError) as caught:
        image_bytes(url, "here")
    assert caught.value.code == "invalid_image_url"
    assert str(caught.value).startswith("here ")


@given(st.binary(max_size=64), st.sampled_from(["image/png", "IMAGE/JPEG", "image/svg+xml", "image/webp;q=1"]))
def test_data_uris_come_back(data: bytes, kind: str) -> None:
    assert image_bytes(f"data:{kind};base64,{base64.b64encode(data).decode()}", "here") == data


@pytest.mark.parametrize("wrapped", [base64.encodebytes, lambda data: b"\r\n " + base64.b64encode(data) + b"\t\n"])
def test_base64_may_be_broken_into_lines(wrapped: Callable[[bytes], bytes]) -> None:
    data = bytes(range(256))
    assert image_bytes(f"data:image/png;base64,{wrapped(data).decode()}", "here") == data


def test_without_fields_an_answer_is_greedy() -> None:
    request = read(model="demo", user="me", metadata={"a": "b"}, n=1, tools=[], logprobs=False, temperature=None)
    assert request.options == AnswerOptions()
    assert (request.stream, request.include_usage) == (False, False)


def test_fields() -> None:
    request = read(
        temperature=1,
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
    assert request.options == AnswerOptions(max_new_tokens=7, sampling=sampling, stop=("end",))
    assert request.stream and request.include_usage
    assert read(max_tokens=7, max_completion_tokens=7, stop=["a", "b"]).options.stop == ("a", "b")


@pytest.mark.parametrize(
    ("param", "value", "told"),
    [
        ("n", 2, "leave it out"),
        ("n", True, "leave it out"),
        ("tools", [{"type": "function"}], "leave it out"),
        ("tool_choice", "required", "leave it out"),
        ("logprobs", True, "leave it out"),
        ("logprobs", 0, "leave it out"),
        ("top_logprobs", False, "leave it out"),
        ("logit_bias", {"5": 1}, "leave it out"),
        ("response_format", {"type": "json_object"}, "leave it out"),
        ("frequency_penalty", 0.5, "leave it out"),
        ("temperature", -1, "0 or more"),
        ("temperature", "hot", "a number"),
        ("temperature", True, "a number"),
        ("temperature", 10**400, "too large"),
        ("temperature", float("nan"), "0 or more"),
        ("top_p", 0, "more than 0"),
        ("top_k", 1.5, "a whole number"),
        ("seed", -1, "0 or more"),
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


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{", b"[]", b"3", b"[" * 100_000, b"1" * 5000, b'"secret"'])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(RefusedError, match="expected one JSON object") as caught:
        read_request(body, "demo")
    assert caught.value.status == 400
    assert len(str(caught.value)) < 250


@given(st.dictionaries(st.sampled_from(["messages", "stop", "seed", "stream", "top_k", "n", "x"]), anything))
def test_no_document_raises_anything_else(document: dict[str, Any]) -> None:
    try:
        read_request(json.dumps(document).encode(), "demo")
    except RefusedError as error:
        json.dumps(error.document).encode("ascii")


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": anything})))
def test_no_messages_raise_anything_else(messages: list[object]) -> None:
    try:
        conversation = read_messages(messages)
    except RefusedError:
        return
    assert conversation.question.strip()
    assert all(question.strip() for question, _ in conversation.turns)


def test_replies_count_and_say_how_it_ended() -> None:
    timings = Timings(0, 0, 0, 0, 0, 0, 0)
    answer = Answer("{<0><0><50><100>}", (1, 2, 3), "length", 10, 4, 2, timings)
    reply = Reply(DEMO)
    whole: Any = reply.complete(answer, ())
    assert whole["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["message"]["boxes"] == []  # of no picture, or which?
    assert whole["truncated_turns"] == 2
    assert {whole["id"]} == {document["id"] for document in (reply.first(), reply.piece("a"), reply.last(answer, ()))}
    assert Reply(DEMO).id != reply.id


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1")),
        *((host, False) for host in ("", "0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.evil.example")),
    ],
)
def test_what_is_surely_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
