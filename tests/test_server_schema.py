"""JSON by a schema: whatever a model would like to say, with the demo's own tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from tinygptv.runtime.bundle.manifest import parse_manifest
from tinygptv.runtime.language.sampling import Sampling, sampler
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.server import schema as module
from tinygptv.runtime.server.refusal import RefusedError
from tinygptv.runtime.server.schema import ANY_OBJECT, Schemas
from tokenizers import Tokenizer

DEMO = parse_manifest(DEMO_BUNDLE)
TOKENIZER = Tokenizer.from_file(str(DEMO_BUNDLE / "tokenizer.json"))
SCHEMAS = Schemas(TOKENIZER, DEMO)
(END,) = DEMO.eos_token_ids
STOP = TOKENIZER.token_to_id("###")
MOST = 400


class Thing(BaseModel):
    """Strings of any text, numbers, a list."""

    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = Field(ge=0, le=99)
    parts: list[bool]


def written(schema: dict[str, object], seed: int, wishes: dict[int, float], temperature: float = 5.0) -> str | None:
    """What is sampled from random logits, some tokens more probable; None if it went on and on."""
    random = np.random.default_rng(seed)
    sample = sampler(Sampling(temperature=temperature, seed=seed), SCHEMAS.processor(schema, "schema")())
    ids: list[int] = []
    while len(ids) < MOST:
        logits = random.normal(size=DEMO.contract.vocab_size).astype(np.float32)
        for token, more in wishes.items():
            logits[token] += np.float32(more)
        token = sample(logits)
        if token == END:
            return TOKENIZER.decode(ids)
        ids.append(token)
    return None


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.dictionaries(st.integers(0, 548), st.floats(0, 20), max_size=5), st.floats(0, 20))
def test_whatever_is_sampled_follows_the_schema(seed: int, wishes: dict[int, float], end: float) -> None:
    text = written(Thing.model_json_schema(), seed, {STOP: end} | wishes)
    if text is not None:
        Thing.model_validate_json(text)
        assert "###" not in text and "\n" not in text


def test_a_model_that_wants_to_end_comes_to_an_end() -> None:
    """By its stop string, or by the end of text: strings, lists and objects are closed."""
    for ending in (STOP, END):
        text = written(Thing.model_json_schema(), 1, {ending: 100}, temperature=0)
        assert text is not None and len(text) < 60
        assert Thing.model_validate_json(text).parts == []
        assert written(ANY_OBJECT, 1, {ending: 100}, temperature=0) == "{}"


def test_what_only_a_stop_string_could_go_on_with_is_refused() -> None:
    sample = sampler(Sampling(), SCHEMAS.processor({"const": "###"}, "schema")())
    logits = np.zeros(DEMO.contract.vocab_size, np.float32)
    assert TOKENIZER.decode([sample(logits)]) == '"'
    with pytest.raises(RefusedError, match=r"^schema cannot be satisfied any further"):
        _ = [sample(logits) for _ in range(3)]


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (3, "expected a JSON schema"),
        ({"type": "cat"}, "is not supported"),
        ({"$ref": "https://example.com/schema.json"}, "is not supported"),
        ({"not": {"type": "string"}}, "is not supported"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "is not supported"),
    ],
)
def test_schemas_that_are_refused(schema: object, told: str) -> None:
    with pytest.raises(RefusedError, match=told) as caught:
        SCHEMAS.processor(schema, "text.format.schema")
    assert (caught.value.status, caught.value.param) == (400, "text.format.schema")
    assert "\n" not in str(caught.value)


def test_each_answer_has_its_own_place_in_the_document() -> None:
    begin = SCHEMAS.processor({"const": [True]}, "schema")
    first, second = begin(), begin()
    logits = np.zeros(DEMO.contract.vocab_size, np.float32)
    bracket = int(first((), logits).argmax())
    assert TOKENIZER.decode([bracket]) == "["
    first((bracket,), logits)
    assert int(second((), logits).argmax()) == bracket


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r'^format needs llguidance .*pip install "\.\[json\]"') as caught:
        SCHEMAS.processor(ANY_OBJECT, "format")
    assert caught.value.status == 501


def test_documents_in_other_alphabets() -> None:
    text = written({"const": {"größe": "été 🙂"}}, 2, {})
    assert text is not None
    assert json.loads(text) == {"größe": "été 🙂"}
