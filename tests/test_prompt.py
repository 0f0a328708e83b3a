"""Prompts and their token ids, as the published conversation templates and the slow tokenizer gave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygptv.export.sources.families import TINYGPT_V
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.runtime.bundle.manifest import PromptTemplate
from tinygptv.runtime.language.prompt import (
    IMAGE_SLOT,
    Prompt,
    Turn,
    closing_tokens,
    encode_segments,
    render,
)
from tokenizers import Tokenizer

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "prompts.json").read_text(encoding="utf-8"))["prompts"]
TEMPLATES = {template.name: template for template in TINYGPT_V.templates}
PLAIN = TEMPLATES["human_assistant"]
TEXT = st.text(min_size=1).filter(lambda text: text.strip() and IMAGE_SLOT not in text)
SIBLINGS = HERE / "golden" / "siblings"
FAMILIES = ("bunny", "llava-phi", "mipha", "tinyllava")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


def sibling(family: str) -> PromptTemplate:
    """The template of another family of models on Phi-2."""
    return PromptTemplate(
        name=family,
        system=SYSTEM,
        user="USER: ",
        assistant=" ASSISTANT:",
        image=f"{IMAGE_SLOT}\n",
        before_answer=" ",
        after_answer="<|endoftext|>",
        strip_question=family == "tinyllava",
    )


def sibling_prompts() -> list[tuple[str, dict]]:
    documents = {family: json.loads((SIBLINGS / family / "prompts.json").read_text("utf-8")) for family in FAMILIES}
    return [(family, entry) for family, document in documents.items() for entry in document["prompts"]]


class CountingTokenizer:
    """A tokenizer, and every text that it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def encode(self, text: str, add_special_tokens: bool) -> object:
        self.texts.append(text)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


BUILT = build_tokenizer(HERE / "tokenizer", 51200)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return BUILT


def test_the_golden_prompts_cover_every_published_template() -> None:
    assert {entry["template"] for entry in GOLDEN} == set(TEMPLATES)


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['template']}-{entry['turns'][0][0]}")
def test_published_prompts_and_ids(entry: dict, tokenizer: Tokenizer) -> None:
    prompt = render(TEMPLATES[entry["template"]], [tuple(turn) for turn in entry["turns"]])
    assert prompt == entry["prompt"]
    assert encode_segments(tokenizer, prompt) == entry["segment_ids"]
    turns = [Turn(*turn) for turn in entry["turns"]]
    assert Prompt(TEMPLATES[entry["template"]], tokenizer, turns, 1).segments() == entry["segment_ids"]


@pytest.mark.parametrize(
    ("family", "entry"), sibling_prompts(), ids=lambda part: part["turns"][0][0] if isinstance(part, dict) else part
)
def test_prompts_and_ids_of_other_families(family: str, entry: dict, tokenizer: Tokenizer) -> None:
    template, count = sibling(family), int(entry["image"])
    prompt = render(template, [tuple(turn) for turn in entry["turns"]], count)
    assert prompt == entry["prompt"].replace("<image>", IMAGE_SLOT)
    turns = [Turn(*turn) for turn in entry["turns"]]
    assert Prompt(template, tokenizer, turns, count).segments() == entry["segment_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_other_families_with_their_own_tokenizers(family: str) -> None:
    folder = SIBLINGS / family
    question = json.loads((folder / "case.json").read_text("utf-8"))["question"]
    own = build_tokenizer(folder / "checkpoint", 320)
    before, after = Prompt(sibling(family), own, [Turn(question)], 1).segments()
    with np.load(folder / "expected.npz") as expected:
        assert before == expected["input_ids_before"].tolist()
        assert after == expected["input_ids_after"].tolist()


def test_only_the_question_with_the_picture_is_stripped() -> None:
    turns = [(" a\t", "b "), (" c ", None)]
    stripping, keeping = sibling("tinyllava"), sibling("mipha")
    assert render(stripping, turns, 1) == render(keeping, [("a", "b "), (" c ", None)], 1)
    assert render(stripping, turns, 0) == render(keeping, turns, 0)


def test_answers_with_token_ids_keep_them(tokenizer: Tokenizer) -> None:
    """Whatever their text would be tokenised to, and whatever is in it; the text around them is one piece."""
    template = sibling("mipha")
    generated = (2297, 13)  # " Red", "."
    as_text = [Turn("what?", "Red."), Turn("why?", "So."), Turn("when?")]
    as_ids = [Turn("what?", f"Red.{IMAGE_SLOT}", generated), *as_text[1:]]
    assert Prompt(template, tokenizer, as_ids, 1).segments() == (Prompt(template, tokenizer, as_text, 1).segments())
    letters = (49, 68, 67, 13)  # R, e, d, .
    before, after = Prompt(template, tokenizer, [Turn("what?", "Red.", letters), Turn("why?")], 1).segments()
    asked = encode_segments(tokenizer, render(template, [("what?", None)], 1))
    assert before == asked[0]
    assert after == [*asked[1], *letters, *tokenizer.encode("<|endoftext|>USER: why? ASSISTANT:").ids]


def test_nothing_follows_an_answer_of_this_family(tokenizer: Tokenizer) -> None:
    turns = [Turn("what?", "red", (445,)), Turn("why?")]
    segments = Prompt(PLAIN, tokenizer, turns, 0).segments()
    parts = ("###Human: what?###Assistant: ", "###Human: why?###Assistant: ")
    asked, then = (tokenizer.encode(part).ids for part in parts)
    assert segments == [[*asked, 445, *then]]


@pytest.mark.parametrize("count", [0, 2])
def test_without_its_oldest_turns_it_is_a_conversation_of_the_others(count: int, tokenizer: Tokenizer) -> None:
    turns = [Turn("a?", "b", (65,)), Turn(" c? ", "d"), Turn("e?", "f", (69,)), Turn("g?")]
    for template in (PLAIN, sibling("tinyllava")):
        prompt = Prompt(template, tokenizer, turns, count)
        for first in (0, 2, 1, 3, 0):
            alone = Prompt(template, tokenizer, turns[first:], count)
            assert prompt.segments(first) == alone.segments()


def test_each_piece_of_text_is_tokenised_once(tokenizer: Tokenizer) -> None:
    counting = CountingTokenizer(tokenizer)
    turns = [Turn(f"question {number}?", "answer", (64,)) for number in range(6)]
    prompt = Prompt(sibling("mipha"), counting, [*turns, Turn("last?")], 1)  # type: ignore[arg-type]
    for first in (0, 3, 5, 5, 0):
        prompt.segments(first)
    # Before and after the image, and six turns; of those that begin later, only the first question is another text.
    assert len(counting.texts) == len(set(counting.texts)) == 8 + 1 + 1


@pytest.mark.parametrize(
    ("template", "closing"), [(PLAIN, "</Img>"), (TEMPLATES["inst"], "</Img>"), (sibling("mipha"), "")]
)
@given(question=TEXT)
def test_every_question_about_an_image_begins_with_its_closing(
    template: PromptTemplate, closing: str, question: str
) -> None:
    tokenizer = BUILT
    count = closing_tokens(template, tokenizer)
    after = Prompt(template, tokenizer, [Turn(question)], 1).segments()[1]
    assert after[:count] == tokenizer.encode(closing).ids
    assert count == len(tokenizer.encode(closing).ids)


def test_without_an_image_and_with_several() -> None:
    turns = [("which?", "red"), ("why?", None)]
    assert render(PLAIN, turns, image_count=0) == "###Human: which?###Assistant: red###Human: why?###Assistant: "
    slot = "<Img><ImageHere></Img> "
    assert render(PLAIN, turns, 2) == render(PLAIN, turns, 0).replace("which?", slot + slot + "which?")


def test_the_last_answer_may_be_there_too() -> None:
    assert render(PLAIN, [("which?", "the red")], 0) == "###Human: which?###Assistant: the red"
    assert render(sibling("bunny"), [("which?", "the red")], 0).endswith(" ASSISTANT: the red<|endoftext|>")


@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), count=st.integers(0, 3))
def test_one_segment_more_than_images(turns: list[tuple[str, str]], count: int) -> None:
    for template in TINYGPT_V.templates:
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
        with pytest.raises(ValueError, match=message):
            Prompt(PLAIN, BUILT, [Turn(*turn) for turn in turns], count)


def joined(template: PromptTemplate, turns: list[Turn], count: int, system: str | None = None) -> str:
    """A prompt's text, as its token ids give it."""
    segments = Prompt(template, BUILT, turns, count, system).segments()
    return IMAGE_SLOT.join(BUILT.decode(segment, skip_special_tokens=False) for segment in segments)


def test_where_a_system_text_goes() -> None:
    """In the place of the template's own, or before the first question that is left."""
    llava = sibling("mipha")
    turns = [Turn("a", "b"), Turn("c")]
    own = joined(llava, turns, 1)
    assert own.startswith(llava.system)
    assert joined(llava, turns, 1, " Be brief.\n") == " Be brief. " + own.removeprefix(llava.system)
    assert joined(PLAIN, turns, 0, "Be brief.") == "###Human: Be brief.\na###Assistant: b###Human: c###Assistant: "
    later = Prompt(PLAIN, BUILT, turns, 0, "Be brief.").segments(1)[0]
    assert BUILT.decode(later) == "###Human: Be brief.\nc###Assistant: "
    for blank in (None, "", " \n"):
        assert joined(llava, turns, 1, blank) == own


def test_an_answer_that_nobody_asked_for() -> None:
    """A greeting: pictures still come before the first question."""
    turns = [Turn("", "Hello!"), Turn("c")]
    asked = PLAIN.image + "c###Assistant: "
    assert joined(PLAIN, turns, 1) == f"###Human: ###Assistant: Hello!###Human: {asked}"
    assert joined(PLAIN, turns, 1, "Be brief.").endswith(f"###Human: {PLAIN.image}Be brief.\nc###Assistant: ")


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
    with pytest.raises(ValueError, match=f"template '{template.name}' gives"):
        Prompt(template, BUILT, [Turn("a", "b"), Turn("Here>")], 1).segments()
