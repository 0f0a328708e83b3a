"""Files of one tokenizer that tell different things of it: joined as ``transformers`` joins them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer import FAST, GOLDEN, ODD, PHI, Change, copied, edit, published_fast_file
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.runtime.errors import ExportError
from transformers import CodeGenTokenizerFast

CONFIG, ADDED, FAST_FILE = "tokenizer_config.json", "added_tokens.json", "tokenizer.json"
DECODER: dict[str, Any] = json.loads((PHI / CONFIG).read_text(encoding="utf-8"))["added_tokens_decoder"]
END = "50256"
BOX = {"content": "<box>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
GREEDY_BOX = BOX | {"lstrip": True, "rstrip": True}
TEXTS = [
    *(entry["text"] for entry in GOLDEN["texts"]),
    *ODD,
    *("a <box> b", "a<box>b", "  <box>  b", "\t\t\t<box>\n", "<box><box>", "x   <|endoftext|>   <box>", "<bo <box"),
    "        if a:\n            return  b\t\t\t\tc",
]


def folder_with(folder: Path, listed: dict[str, Any], more: list[dict[str, Any]]) -> Path:
    """Phi-2's tokenizer with tokenizer.json: this list of added tokens in its configuration, and ``more`` in that."""
    folder = copied(PHI, folder / "phi-2")
    published_fast_file(folder)
    edit(folder / CONFIG, added_tokens_decoder=listed)
    file = folder / FAST_FILE
    document = json.loads(file.read_text(encoding="utf-8"))
    document["truncation"] = None
    document["added_tokens"] += more
    file.write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("listed", "more"),
    [
        ({}, []),
        ({END: DECODER[END]}, []),
        ({key: DECODER[key] for key in (END, "50257", "50290")}, []),
        (DECODER, [{"id": 50295, **BOX}]),
        ({END: DECODER[END]}, [{"id": 50295, **BOX}]),
        (DECODER | {"50295": BOX}, []),
        ({"50295": BOX}, []),
        (DECODER | {"50295": BOX}, [{"id": 50295, **BOX}]),
        (DECODER | {"50295": GREEDY_BOX}, []),
        ({END: DECODER[END]}, [{"id": 50295, **GREEDY_BOX}]),
        ({END: DECODER[END]}, [{"id": 50295, **BOX, "normalized": True, "special": False}]),
    ],
)
def test_no_list_of_added_tokens_hides_another(
    listed: dict[str, Any], more: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, listed, more)
    tokenizer, expected = build_tokenizer(folder, 51200), CodeGenTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer.encode(text).ids == expected(text, add_special_tokens=False)["input_ids"], text
    if not more and "50295" not in listed:
        assert tokenizer.to_str() == FAST.to_str()
    else:
        assert tokenizer.encode("<box>").ids == [50295]


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def in_fast_file(*path: str, value: Any) -> Change:
    """Another value in tokenizer.json."""

    def change(folder: Path) -> None:
        document = json.loads((folder / FAST_FILE).read_text(encoding="utf-8"))
        part = document
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value(part[path[-1]]) if callable(value) else value
        (folder / FAST_FILE).write_text(json.dumps(document), encoding="utf-8")

    return change


def listed(**fields: Any) -> Change:
    """Other fields of the token of two spaces in the configuration."""
    return lambda folder: edit(folder / CONFIG, added_tokens_decoder=DECODER | {"50286": DECODER["50286"] | fields})


def only_listed(*ids: str) -> Change:
    def change(folder: Path) -> None:
        edit(folder / CONFIG, added_tokens_decoder={key: DECODER[key] for key in ids})
        (folder / FAST_FILE).unlink()

    return change


def cut(lines: int) -> Change:
    def change(folder: Path) -> None:
        (folder / FAST_FILE).unlink()
        text = (folder / "merges.txt").read_text(encoding="utf-8")
        (folder / "merges.txt").write_text("".join(text.splitlines(keepends=True)[:lines]), encoding="utf-8")

    return change


def swapped(merges: list[Any]) -> list[Any]:
    return [*merges[:100], merges[101], merges[100], *merges[102:]]


REFUSED: dict[str, tuple[Change, str]] = {
    "same id, other text": (
        listed(content="<box>"),
        r"tokenizer_config\.json: added token '<box>' with id 50286 differs",
    ),
    "other flags": (listed(lstrip=True), r"added token '  ' with id 50286 differs in tokenizer\.json; copy all"),
    "same text, other id": (
        lambda folder: edit(folder / CONFIG, added_tokens_decoder={"50295": DECODER["50286"]}),
        r"added token '  ' with id 50295 differs in tokenizer\.json",
    ),
    "added_tokens.json has more": (
        only_listed(END),
        r"added_tokens\.json: added token '.*' has id 502\d\d, but tokenizer_config\.json's added_tokens_decoder says",
    ),
    "other ids in tokenizer.json": (
        in_fast_file("model", "vocab", value=lambda vocab: vocab | {"the": vocab["of"], "of": vocab["the"]}),
        r"tokenizer\.json: the id of 'of' differs from that in vocab\.json and merges\.txt; copy all tokenizer files",
    ),
    "other merges in tokenizer.json": (
        in_fast_file("model", "merges", value=swapped),
        r"tokenizer\.json: the merges differ from those in vocab\.json and merges\.txt",
    ),
    "fewer merges in tokenizer.json": (
        in_fast_file("model", "merges", value=lambda merges: merges[:-1]),
        r"tokenizer\.json: the merges differ from those",
    ),
    "tokenizer.json normalises": (
        in_fast_file("normalizer", value={"type": "NFC"}),
        r"tokenizer\.json: not a byte-level BPE tokenizer as Phi-2's",
    ),
    "tokenizer.json begins texts": (
        in_fast_file("post_processor", value={"type": "TemplateProcessing"}),
        r"tokenizer\.json: not a byte-level BPE",
    ),
    "tokenizer.json ignores merges": (
        in_fast_file("model", "ignore_merges", value=True),
        r"tokenizer\.json: not a byte-level BPE",
    ),
    "tokenizer.json is no JSON": (write(FAST_FILE, "{"), r"tokenizer\.json: cannot be read as JSON"),
    "another class": (
        lambda folder: edit(folder / CONFIG, tokenizer_class="Qwen2Tokenizer"),
        r"tokenizer_config\.json: tokenizer_class is 'Qwen2Tokenizer', which is not supported",
    ),
    "a token at the beginning": (
        lambda folder: edit(folder / CONFIG, add_bos_token=True),
        r"tokenizer_config\.json: add_bos_token is True, which is not supported",
    ),
    "a token at the end": (lambda folder: edit(folder / CONFIG, add_eos_token=True), r"add_eos_token is True"),
    "special tokens are text": (
        lambda folder: edit(folder / CONFIG, split_special_tokens=True),
        r"split_special_tokens is True",
    ),
    "empty merges.txt": (
        cut(0),
        r"merges\.txt: 50000 tokens of vocab\.json, such as .*, cannot be made by any of its 0 merges",
    ),
    "merges.txt with its first line": (cut(1), r"merges\.txt: 50000 tokens of vocab\.json"),
    "half of merges.txt": (
        cut(25_001),
        r"merges\.txt: 25000 tokens of vocab\.json, such as .*, cannot be made by any of its 25000 merges; it is cut",
    ),
    "merges.txt without its last line": (cut(50_000), r"merges\.txt: 1 tokens of vocab\.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_contradict_each_other(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DECODER, [])
    change, message = REFUSED[name]
    change(folder)
    with pytest.raises(ExportError, match=message) as caught:
        build_tokenizer(folder, 51200)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merges_that_tokenizer_json_alone_lacks(tmp_path: Path) -> None:
    folder = copied(PHI, tmp_path / "phi-2")
    published_fast_file(folder)
    (folder / "merges.txt").unlink()
    in_fast_file("model", "merges", value=lambda merges: merges[: len(merges) // 2])(folder)
    with pytest.raises(ExportError, match=r"tokenizer\.json: 25000 tokens of tokenizer\.json, such as "):
        build_tokenizer(folder, 51200)


@pytest.mark.parametrize("name", ["CodeGenTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast", None])
def test_classes_that_cut_texts_in_the_same_way(name: str | None, tmp_path: Path) -> None:
    folder = copied(PHI, tmp_path / "phi-2")
    edit(folder / CONFIG, tokenizer_class=name)
    assert build_tokenizer(folder, 51200).to_str() == FAST.to_str()
