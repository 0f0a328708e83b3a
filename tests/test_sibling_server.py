"""The server on bundles of the other Phi-2 families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from served import about, data_uri, serving
from siblings import FAMILIES, SIBLINGS
from tinygptv.runtime import TinyGPTV

Bundle = Callable[..., Path]


def turn(role: str, text: str, *pictures: Path) -> dict[str, object]:
    if not pictures:
        return {"role": role, "content": text}
    images = [{"type": "image_url", "image_url": {"url": data_uri(picture)}} for picture in pictures]
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}


@pytest.mark.parametrize("family", FAMILIES)
def test_server(family: str, sibling_bundle: Bundle, tmp_path: Path) -> None:
    bundle, picture = sibling_bundle(family), SIBLINGS / family / "picture.png"
    other = SIBLINGS / ("mipha" if family == "bunny" else "bunny") / "picture.png"
    with serving(tmp_path, "--bundle", str(bundle)) as served, TinyGPTV.load(bundle) as model:
        client = served.client()
        (listed,) = client.models.list().data
        assert (listed.id, listed.family, listed.tasks, listed.boxes) == (family, family, [], False)

        def ask(*messages: dict[str, object], **fields: object) -> tuple[str | None, int, int]:
            done = client.chat.completions.create(model=family, messages=messages, max_tokens=8, **fields)
            (choice,) = done.choices
            assert getattr(choice.message, "boxes", []) == []
            return choice.message.content, done.usage.prompt_tokens, done.usage.prompt_tokens_details.cached_tokens

        def expected(*arguments: object, **named: object) -> tuple[str, int]:
            answer = model.ask(*arguments, **named, max_new_tokens=8)
            return answer.text, answer.prompt_tokens

        text = "A [vqa] tag {<1><2><30><40>} is text here"
        assert ask(turn("user", text))[:2] == expected(None, text)
        assert ask(turn("user", text, picture))[:2] == expected(picture, text)
        assert ask(turn("user", text, picture, other))[:2] == expected([picture, other], text)
        ask(turn("user", "who?", picture))
        first = ask(turn("user", "what?", picture))
        assert first[2] >= model.manifest.contract.image_tokens
        said = [turn("user", "what?", picture), turn("assistant", first[0] or ""), turn("user", "why?")]
        assert ask(*said)[:2] == expected(picture, "why?", turns=[("what?", first[0] or "")])
        chunks = client.chat.completions.create(model=family, messages=said, max_tokens=8, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert streamed == ask(*said)[0]


def test_a_server_refuses_what_does_not_fit(sibling_bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, "--bundle", str(sibling_bundle("mipha"))) as served:
        with pytest.raises(openai.BadRequestError, match=r"2,?048"):
            served.client().chat.completions.create(model="mipha", messages=about("red_triangle.png", " tree" * 2100))
        assert served.health()["pending"] == 0
