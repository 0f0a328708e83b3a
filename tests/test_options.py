"""AnswerOptions: the same for every call that asks, as one object or as keywords, and checked when the call is made."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

import pytest
from conftest import QUESTION
from tinygptv.runtime.options import merged

from tinygptv import AnswerKeywords, AnswerOptions, ArgumentError, Chat, Sampling, TinyGPTV

CALLS = [
    *(TinyGPTV.stream, TinyGPTV.ask, TinyGPTV.astream, TinyGPTV.ask_each, TinyGPTV.ask_many),
    *(Chat.stream, Chat.ask, Chat.astream),
]
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_new_tokens": 0}, ArgumentError, "max_new_tokens is 0; expected at least 1"),
    ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens is a float; expected an int"),
    ({"template": "chatml"}, ArgumentError, "template"),
    ({"template": 3}, TypeError, "template is 3; expected"),
    ({"sampling": 0.7}, TypeError, r"sampling is 0\.7; expected a Sampling"),
    ({"stop": "ab"}, TypeError, "stop is 'ab'; expected a sequence of strings"),
    ({"stop": [3]}, TypeError, r"stop is \[3\]; expected a sequence of strings"),
    ({"stop": ["a", ""]}, ArgumentError, "stop holds an empty string"),
    ({"max_tokens": 3}, TypeError, "unknown keyword max_tokens; .*max_new_tokens, template, sampling, stop"),
    ({"options": {"max_new_tokens": 3}}, TypeError, "expected AnswerOptions"),
]
USES = """
from tinygptv import AnswerKeywords, AnswerOptions, Sampling, TinyGPTV
from typing import Unpack

def about(model: TinyGPTV, **keywords: Unpack[AnswerKeywords]) -> str:
    model.chat(None).ask("what?", sampling=Sampling(seed=1), options=AnswerOptions(stop=["a"]))
    return model.ask("photo.jpg", "what?", **keywords).text

with TinyGPTV.load() as model:
    about(model, max_new_tokens=40)
    images = [model.encode_image("photo.jpg")]
    for piece in model.stream(images, "what?", turns=[("who?", "me")], max_new_tokens=40, stop=["a"]):
        print(piece + ".")
    print([answer.text for _, answer in model.ask_each([(images[0], "what?")], template=None)])
"""
MISUSES = """
from tinygptv import AnswerOptions, TinyGPTV
model = TinyGPTV.load()
model.ask("photo.jpg", "what?", max_tokens=40)
model.stream("photo.jpg", "what?", max_new_tokens="40")
model.ask_many([], stop=3)
model.chat(None).ask("what?", options={"stop": ["a"]})
AnswerOptions(sampling=None)
"""


def test_keywords_are_the_fields() -> None:
    assert typing.get_type_hints(AnswerKeywords) == typing.get_type_hints(AnswerOptions)
    assert AnswerKeywords.__required_keys__ == frozenset()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_every_call_that_asks_takes_them(call: Callable[..., object]) -> None:
    hints = typing.get_type_hints(call)
    assert hints["options"] == AnswerOptions | None
    assert hints["keywords"] == Unpack[AnswerKeywords]
    assert not set(hints) & {field.name for field in dataclasses.fields(AnswerOptions)}


def test_one_object_or_keywords() -> None:
    assert merged(None, {}) == AnswerOptions()
    options = AnswerOptions(max_new_tokens=3, stop=["a"])
    assert merged(options, {}) == options == merged(None, {"max_new_tokens": 3, "stop": ("a",)})
    assert merged(options, {"max_new_tokens": 5}) == AnswerOptions(max_new_tokens=5, stop=["a"])
    assert merged(options, {"max_new_tokens": None, "stop": ()}) == AnswerOptions()
    assert options.stop == ("a",)
    assert len({options, AnswerOptions(3, stop=("a",)), AnswerOptions()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.stop = ("b",)  # type: ignore[misc]


def test_both_forms_give_the_same_answer(speaking_model: TinyGPTV, photo: Path) -> None:
    template = "human_assistant_with_system"
    sampling = Sampling(temperature=1.5, seed=2)
    keywords: AnswerKeywords = {"max_new_tokens": 9, "template": template, "sampling": sampling}
    options = AnswerOptions(**keywords)
    wanted = speaking_model.ask(photo, QUESTION, **keywords)
    assert len(wanted.token_ids) == 9
    plain = speaking_model.ask(photo, QUESTION, max_new_tokens=9)
    assert plain.token_ids != wanted.token_ids and plain.prompt_tokens != wanted.prompt_tokens
    chat = speaking_model.chat(photo, template=template)
    for answer in (
        speaking_model.ask(photo, QUESTION, options=options),
        speaking_model.stream(photo, QUESTION, options=options).answer,
        speaking_model.ask_many([(photo, QUESTION)], options=options)[0],
        speaking_model.ask_many([(photo, QUESTION)], **keywords)[0],
        chat.ask(QUESTION, options=options),
    ):
        assert (answer.token_ids, answer.prompt_tokens) == (wanted.token_ids, wanted.prompt_tokens)
    shorter = speaking_model.ask(photo, QUESTION, options=options, max_new_tokens=3)
    assert shorter.token_ids == wanted.token_ids[:3]


@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG)
def test_what_is_wrong_is_raised_by_the_call(
    wrong: dict[str, Any], kind: type[Exception], message: str, speaking_model: TinyGPTV, fed: list[int]
) -> None:
    """Also by those whose answers come later, and before a picture is opened or a question is taken."""

    def none() -> Iterator[tuple[str, str]]:
        raise AssertionError("nothing was asked for yet")
        yield "", ""

    chat = speaking_model.chat(None)
    for call in (speaking_model.stream, speaking_model.ask, speaking_model.astream):
        with pytest.raises(kind, match=message):
            call("no such file.png", QUESTION, **wrong)
    with pytest.raises(kind, match=message):
        speaking_model.ask_each(none(), **wrong)
    with pytest.raises(kind, match=message):
        speaking_model.ask_many([("no such file.png", QUESTION)], **wrong)
    for talk in (chat.stream, chat.ask, chat.astream):
        with pytest.raises(kind, match=message):
            talk(QUESTION, **wrong)
    assert fed == [] and chat.turns == ()


def test_a_chat_has_one_template(speaking_model: TinyGPTV) -> None:
    default = speaking_model.manifest.default_template
    for template, others in ((None, ("inst",)), ("inst", (default, "chatml"))):
        chat = speaking_model.chat(None, template=template)
        for other in others:
            with pytest.raises(ArgumentError, match=f"template is '{other}'; this chat's is '{template or default}'"):
                chat.ask(QUESTION, template=other)
        same = chat.ask(QUESTION, max_new_tokens=2, template=template or default)
        chat.reset()
        assert chat.ask(QUESTION, max_new_tokens=2).prompt_tokens == same.prompt_tokens


def test_a_wrong_call_leaves_a_chat_as_it_is(speaking_model: TinyGPTV) -> None:
    chat = speaking_model.chat(None)
    stream = chat.stream(QUESTION, max_new_tokens=5)
    next(stream)
    with pytest.raises(TypeError, match="unknown keyword"):
        chat.ask(QUESTION, max_tokens=3)  # type: ignore[call-arg]
    assert stream.answer.finish_reason == "length"


def test_type_checkers_know_the_keywords(wheel: Path, tmp_path: Path) -> None:
    """As installed: mypy finds the packages where the wheel is unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    def found(code: str) -> list[str]:
        (tmp_path / "program.py").write_text(code, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "program.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"MYPYPATH": "site", "PATH": ""},
            check=False,
        )
        errors = (line for line in done.stdout.splitlines() if line.startswith("program.py") and ": error: " in line)
        return [line.partition(": error: ")[2] for line in errors]

    assert found(USES) == []
    unknown, *others = found(MISUSES)
    assert unknown.startswith('Unexpected keyword argument "max_tokens" for "ask"')
    assert [message.partition(";")[0] for message in others] == [
        'Argument "max_new_tokens" to "stream" of "TinyGPTV" has incompatible type "str"',
        'Argument "stop" to "ask_many" of "TinyGPTV" has incompatible type "int"',
        'Argument "options" to "ask" of "Chat" has incompatible type "dict[str, list[str]]"',
        'Argument "sampling" to "AnswerOptions" has incompatible type "None"',
    ]
