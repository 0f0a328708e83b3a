"""Prompts and their token ids, as the published conversation templates and the slow tokenizer gave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygptv.export.tokenizer import build_tokenizer
from tinygptv.runtime.bundle.manifest import PromptTemplate
from tinygptv.runtime.language.prompt import IMAGE_SLOT, PUBLISHED_TEMPLATES, encode_segments, render
from tokenizers import Tokenizer

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "prompts.json").read_text(encoding="utf-8"))["prompts"]
TEMPLATES = {template.name: template for template in PUBLISHED_TEMPLATES}
PLAIN = TEMPLATES["human_assistant"]
TEXT = st.text(min_size=1).filter(lambda text: text.strip() and IMAGE_SLOT not in text)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(HERE / "tokenizer", 51200)


def test_the_golden_prompts_cover_every_published_template() -> None:
    assert {entry["template"] for entry in GOLDEN} == set(TEMPLATES)


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['template']}-{entry['turns'][0][0]}")
def test_published_prompts_and_ids(entry: dict, tokenizer: Tokenizer) -> None:
    prompt = render(TEMPLATES[entry["template"]], [tuple(turn) for turn in entry["turns"]])
    assert prompt == entry["prompt"]
    assert encode_segments(tokenizer, prompt) == entry["segment_ids"]


def test_without_an_image_and_with_several() -> None:
    turns = [("which?", "red"), ("why?", None)]
    assert render(PLAIN, turns, image_count=0) == "###Human: which?###Assistant: red###Human: why?###Assistant: "
    slot = "<Img><ImageHere></Img> "
    assert render(PLAIN, turns, 2) == render(PLAIN, turns, 0).replace("which?", slot + slot + "which?")


def test_an_answer_begun_can_be_continued() -> None:
    assert render(PLAIN, [("which?", "the re")], 0) == "###Human: which?###Assistant: the re"


@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), count=st.integers(0, 3))
def test_one_segment_more_than_images(turns: list[tuple[str, str]], count: int) -> None:
    for template in PUBLISHED_TEMPLATES:
        prompt = render(template, turns, count)
        assert prompt.count(IMAGE_SLOT) == count
        asked = [*turns[:-1], (turns[-1][0], None)]
        assert prompt == render(template, asked, count) + turns[-1][1]


def test_each_segment_is_tokenised_on_its_own(tokenizer: Tokenizer) -> None:
    assert encode_segments(tokenizer, "") == [[]]
    assert encode_segments(tokenizer, IMAGE_SLOT) == [[], []]
    whole = encode_segments(tokenizer, "a red circle")[0]
    assert encode_segments(tokenizer, f"a r{IMAGE_SLOT}ed circle{IMAGE_SLOT}") == [
        tokenizer.encode("a r").ids,
        tokenizer.encode("ed circle").ids,
        [],
    ]
    assert whole == tokenizer.encode("a red circle").ids


def test_no_special_token_is_added(tokenizer: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    adding = Tokenizer.from_str(tokenizer.to_str())
    adding.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 50256)])
    assert adding.encode("red").ids == [50256, 445]
    assert encode_segments(adding, "red") == [[445]]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "turns is empty"),
        ([("", None)], "question 1 is ''"),
        ([("a", "b"), (" \n\t", None)], r"question 2 is ' \\n\\t'"),
        ([("a", None), ("b", None)], "answer 1 of 2 is None"),
        ([("what is <ImageHere>?", None)], "question 1 holds <ImageHere>"),
        ([("a", "it is <ImageHere>"), ("b", None)], "answer 1 holds <ImageHere>"),
        ([("half a \ud83e", None)], "question 1 is not valid Unicode"),
    ],
)
def test_turns_that_make_no_prompt(turns: list[tuple[str, str | None]], message: str) -> None:
    for count in (0, 1):
        with pytest.raises(ValueError, match=message):
            render(PLAIN, turns, count)


def test_wrong_types_and_counts() -> None:
    with pytest.raises(TypeError, match="question 1 is of type NoneType"):
        render(PLAIN, [(None, None)])
    with pytest.raises(TypeError, match="answer 1 is of type int"):
        render(PLAIN, [("how many?", 3)])
    with pytest.raises(ValueError, match="image_count is -1"):
        render(PLAIN, [("a", None)], -1)


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate("no slot", "", "Q: ", " A: ", "<Img></Img>"),
        PromptTemplate("slot too many", "<ImageHere>", "Q: ", " A: ", "<ImageHere>"),
        PromptTemplate("slot across parts", "", "<Image", "", "<ImageHere>"),
    ],
)
def test_templates_with_other_slots_than_images(template: PromptTemplate) -> None:
    with pytest.raises(ValueError, match=f"template '{template.name}' gives"):
        render(template, [("a", "b"), ("Here>", None)])
