"""The fast tokenizer against the published ids, against the slow CodeGen tokenizer, and on broken folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygptv.export.sources.tokenizer import build_tokenizer, eos_token_id
from tinygptv.runtime.errors import ExportError
from tokenizers import Tokenizer
from transformers import CodeGenTokenizer

HERE = Path(__file__).parent
PHI = HERE / "tokenizer"
SMALL = HERE / "golden" / "stage4" / "phi-2"
GOLDEN = json.loads((HERE / "golden" / "prompts.json").read_text(encoding="utf-8"))

FAST = build_tokenizer(PHI, 51200)
SLOW = CodeGenTokenizer.from_pretrained(PHI)

ODD = [
    *(" " * n for n in (1, 2, 3, 9, 31, 32, 70)),
    *("\t" * n for n in (1, 2, 9, 10, 25)),
    *("\n", "\r\n", "\n\n\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "\ufeff", "\0", "\x7f"),
    *("###", "####", "#", "###Human: ", "###Assistant: ", "<s>", "</s>", "[INST]", "<Img>", "</Img> ", "<|endoftext|>"),
    *("<|endoftext", "endoftext|>", "{<1><2><30><100>}", "<delim>", "<p>", "</p>", "[vqa]", "...", "?!", "--"),
    *(
        "it's",
        "WE'LL",
        "don't",
        "'re",
        " 've",
        "1234567890",
        "x²½",
        "٣٤",
        "é",
        "e\u0301",
        "ß",
        "ﬁ",
        "北京",
        "こんにちは",
        "한국",
    ),
    *("🦙", "👩‍👩‍👧", "🇫🇷", "\U0001f3f4", "مرحبا", "नमस्ते", "the", " image", "Image", "red circle", "_", "\\", '"'),
]
TEXTS = st.lists(st.sampled_from(ODD) | st.text(st.characters(max_codepoint=0x24F), max_size=6), max_size=12).map(
    "".join
)


def slow_ids(tokenizer: CodeGenTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", GOLDEN["texts"], ids=lambda entry: repr(entry["text"][:20]))
def test_golden_texts(entry: dict) -> None:
    assert FAST.encode(entry["text"]).ids == entry["ids"]


@settings(deadline=None, max_examples=400)
@given(TEXTS)
def test_same_ids_as_the_slow_tokenizer(text: str) -> None:
    assert FAST.encode(text).ids == slow_ids(SLOW, text)


@pytest.mark.parametrize("folder", [SMALL, HERE / "golden" / "stage3" / "phi-2"], ids=["stage4", "stage3"])
def test_same_ids_as_the_slow_tokenizer_in_the_small_vocabulary(folder: Path) -> None:
    fast, slow = build_tokenizer(folder, 320), CodeGenTokenizer.from_pretrained(folder)

    @settings(deadline=None, max_examples=150)
    @given(TEXTS | st.text("deImagthisonlr #<>[/12345678", max_size=30))
    def compare(text: str) -> None:
        assert fast.encode(text).ids == slow_ids(slow, text)

    compare()
    assert fast.encode("###Human: this image<s>").ids != []
    assert eos_token_id(folder, fast) == 2


@settings(deadline=None, max_examples=200)
@given(TEXTS.filter(lambda text: "<|endoftext|>" not in text))
def test_text_survives_the_round_trip(text: str) -> None:
    assert FAST.decode(FAST.encode(text).ids, skip_special_tokens=True) == text


def test_every_token_of_the_vocabulary_has_its_published_id() -> None:
    vocab = json.loads((PHI / "vocab.json").read_text(encoding="utf-8"))
    vocab |= json.loads((PHI / "added_tokens.json").read_text(encoding="utf-8"))
    assert FAST.get_vocab(with_added_tokens=True) == vocab
    assert len(vocab) == 50295


def test_only_the_end_of_text_is_special() -> None:
    assert {i for i, token in FAST.get_added_tokens_decoder().items() if token.special} == {50256}
    assert FAST.decode([50256, 50286, 64, 50256, 50294], skip_special_tokens=True) == "  a\t\t"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    FAST.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for entry in GOLDEN["texts"]:
        assert loaded.encode(entry["text"]).ids == entry["ids"]
    assert loaded.to_str() == FAST.to_str()


# --- kinds of folders ------------------------------------------------------------------------------------------------

Change = Callable[[Path], None]


def copied(source: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for name in names or [p.name for p in source.iterdir() if p.suffix in (".json", ".txt")]:
        shutil.copyfile(source / name, target / name)
    return target


def edit(file: Path, **fields: object) -> None:
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    document.update(fields)
    file.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}), encoding="utf-8")


def published_fast_file(folder: Path) -> None:
    """A ``tokenizer.json`` as Phi-2's folder has it: merges as strings, settings of its own."""
    document = json.loads(FAST.to_str())
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    for token in document["added_tokens"]:
        token["normalized"] = not token["special"]
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    document["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


def only(*names: str) -> Change:
    def change(folder: Path) -> None:
        for file in folder.iterdir():
            if file.name not in names:
                file.unlink()

    return change


def misleading_fast_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {}}', encoding="utf-8")


def older_kind(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder=...)


def older_kind_with_fast_file(folder: Path) -> None:
    older_kind(folder)
    published_fast_file(folder)
    (folder / "added_tokens.json").unlink()


def only_fast_file(folder: Path) -> None:
    published_fast_file(folder)
    only("tokenizer.json", "tokenizer_config.json")(folder)


def newer_fast_file_alone(folder: Path) -> None:
    FAST.save(str(folder / "tokenizer.json"))
    only("tokenizer.json")(folder)


def fast_file_without_merges_txt(folder: Path) -> None:
    published_fast_file(folder)
    (folder / "merges.txt").unlink()


def without_final_newline_or_version(folder: Path) -> None:
    text = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_text(text.split("\n", 1)[1].rstrip("\n"), encoding="utf-8")


def pad_token_outside_the_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="[PAD]", additional_special_tokens=[{"content": "[X]"}])


@pytest.mark.parametrize(
    "change",
    [
        published_fast_file,
        misleading_fast_file,
        older_kind,
        older_kind_with_fast_file,
        only("vocab.json", "merges.txt", "added_tokens.json"),
        only("vocab.json", "merges.txt", "tokenizer_config.json"),
        only_fast_file,
        newer_fast_file_alone,
        fast_file_without_merges_txt,
        without_final_newline_or_version,
        pad_token_outside_the_vocabulary,
    ],
)
def test_folders_that_say_the_same_in_other_words(change: Change, tmp_path: Path) -> None:
    folder = copied(PHI, tmp_path / "phi-2")
    if change is misleading_fast_file:  # of no consequence where the other files are complete
        older = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert "added_tokens_decoder" in older
    change(folder)
    tokenizer = build_tokenizer(folder, 51200)
    assert tokenizer.to_str() == FAST.to_str()
    assert eos_token_id(folder, tokenizer) == 50256


def test_tokens_named_special_are_special(tmp_path: Path) -> None:
    folder = copied(SMALL, tmp_path / "phi-2")
    edit(folder / "special_tokens_map.json", pad_token={"content": "<pad>"}, additional_special_tokens=["<s>"])
    tokenizer = build_tokenizer(folder, 320)
    assert tokenizer.encode("<s>de<pad>").ids == [1, 262, 0]
    assert tokenizer.decode([1, 262, 0], skip_special_tokens=True) == "de"

    entry = {"content": "<pad>", "special": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"0": entry})
    assert build_tokenizer(folder, 320).decode([262, 0], skip_special_tokens=True) == "de"


def test_a_token_added_by_finetuning(tmp_path: Path) -> None:
    folder = copied(PHI, tmp_path / "phi-2")
    decoder = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder | {"50295": {"content": "<box>"}})
    slow = CodeGenTokenizer.from_pretrained(folder)
    text = "a <box>  \t<|endoftext|>b"
    assert build_tokenizer(folder, 51200).encode(text).ids == slow_ids(slow, text)
    assert 50295 in slow_ids(slow, text)


def test_a_token_that_takes_the_spaces_around_it(tmp_path: Path) -> None:
    folder = copied(PHI, tmp_path / "phi-2")
    decoder = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    box = {"content": "<box>", "lstrip": True, "rstrip": True}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder | {"50295": box})
    ids = slow_ids(CodeGenTokenizer.from_pretrained(folder), "a <box> b")
    assert ids == [64, 50295, 65]
    assert build_tokenizer(folder, 51200).encode("a <box> b").ids == ids


@pytest.mark.parametrize(
    ("config", "special", "expected"),
    [
        ({"eos_token": "<s>"}, {}, 1),
        ({"eos_token": {"content": "<s>"}}, {"eos_token": "<pad>"}, 1),
        ({"eos_token": None}, {"eos_token": {"content": "<pad>"}}, 0),
        ({"eos_token": ...}, {"eos_token": ...}, 2),
    ],
)
def test_end_of_text(config: dict, special: dict, expected: int, tmp_path: Path) -> None:
    folder = copied(SMALL, tmp_path / "phi-2")
    edit(folder / "tokenizer_config.json", **config)
    edit(folder / "special_tokens_map.json", **special)
    assert eos_token_id(folder, build_tokenizer(folder, 320)) == expected


def test_end_of_text_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    folder = copied(SMALL, tmp_path / "phi-2")
    tokenizer = build_tokenizer(folder, 320)
    edit(folder / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(ExportError, match="'</s>' is not in the vocabulary"):
        eos_token_id(folder, tokenizer)


# --- broken folders --------------------------------------------------------------------------------------------------


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def change_json(name: str, **fields: object) -> Change:
    return lambda folder: edit(folder / name, **fields)


def small_fast_file(**model: object) -> Change:
    def change(folder: Path) -> None:
        document = json.loads(build_tokenizer(folder, 320).to_str())
        document.update({key: model.pop(key) for key in list(model) if key in document})
        document["model"].update(model)
        only("none")(folder)
        (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")

    return change


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


BROKEN = {
    "no vocab": (remove("vocab.json"), "no vocab.json; expected"),
    "no merges": (remove("merges.txt"), "no merges.txt; expected"),
    "neither": (remove("vocab.json", "merges.txt"), "no vocab.json and no merges.txt"),
    "vocab is no JSON": (write("vocab.json", "{"), "vocab.json: cannot be read as JSON"),
    "vocab is a list": (write("vocab.json", "[]"), "vocab.json: holds a list"),
    "vocab is UTF-16": (lambda f: (f / "vocab.json").write_bytes(b"\xff\xfe{") and None, "vocab.json: cannot be read"),
    "id is a string": (change_json("vocab.json", de="262"), "vocab.json: the id of 'de' is '262'"),
    "id is a truth value": (change_json("vocab.json", de=True), "vocab.json: the id of 'de' is True"),
    "id is negative": (change_json("vocab.json", de=-1), "vocab.json: the id of 'de' is -1"),
    "id twice": (change_json("vocab.json", de=263), "vocab.json: two tokens have the same id"),
    "a byte lacks": (change_json("vocab.json", **{"Ń": ...}), "vocab.json: 1 of the 256 single bytes .* 'Ń'"),
    "id too large": (change_json("vocab.json", new=320), "ids up to 320, the model's vocab_size is 320"),
    "added id too large": (
        change_json("tokenizer_config.json", added_tokens_decoder={"320": {"content": "<a>"}}),
        "ids up to 320",
    ),
    "merge of unknown": (write("merges.txt", "#version: 0.2\nd e\nq q\n"), r"merge 2 \(q q\) needs 'qq'"),
    "merge with unknown": (write("merges.txt", "#version: 0.2\nqq e\n"), r"merge 1 \(qq e\) needs 'qq'"),
    "merge of three": (write("merges.txt", "#version: 0.2\nd e\nd e f\n"), "merges.txt: line 3 is 'd e f'"),
    "merges are no text": (
        lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe") and None,
        "merges.txt: cannot be read",
    ),
    "config is no JSON": (write("tokenizer_config.json", "nope"), "tokenizer_config.json: cannot be read"),
    "special map is no JSON": (write("special_tokens_map.json", ""), "special_tokens_map.json: cannot be read"),
    "added tokens are no JSON": (write("added_tokens.json", "{]"), "added_tokens.json: cannot be read"),
    "added id is no number": (change_json("added_tokens.json", x="y"), "added_tokens.json: added token 'y' is"),
    "decoder is a list": (
        change_json("tokenizer_config.json", added_tokens_decoder=[1]),
        "tokenizer_config.json: added_tokens_decoder is",
    ),
    "decoder without content": (
        change_json("tokenizer_config.json", added_tokens_decoder={"300": {}}),
        "tokenizer_config.json: added token '300' is {}",
    ),
    "decoder contradicts vocab": (
        change_json("tokenizer_config.json", added_tokens_decoder={"5": {"content": "<a>"}}),
        "added token '<a>' has id 5, but vocab.json says otherwise",
    ),
    "added token has another id in vocab": (
        change_json("tokenizer_config.json", added_tokens_decoder={"300": {"content": "de"}}),
        "added token 'de' has id 300, but vocab.json says otherwise",
    ),
    "gap before an added token": (
        change_json("tokenizer_config.json", added_tokens_decoder={"305": {"content": "<a>"}}),
        "added token '<a>' has id 305, which leaves a gap",
    ),
    "special token is a number": (change_json("tokenizer_config.json", eos_token=2), "a special token is 2"),
    "special tokens are a string": (
        change_json("special_tokens_map.json", additional_special_tokens="<s>"),
        "special_tokens_map.json: additional_special_tokens is '<s>'",
    ),
    "prefix space": (change_json("tokenizer_config.json", add_prefix_space=True), "add_prefix_space is True"),
    "fast file is empty": (
        lambda f: (only()(f), (f / "tokenizer.json").write_text("{}"), None)[-1],
        "not a byte-level",
    ),
    "fast file of another model": (small_fast_file(type="Unigram"), "tokenizer.json: not a byte-level BPE"),
    "fast file normalises": (small_fast_file(normalizer={"type": "Lowercase"}), "tokenizer.json: not a byte-level BPE"),
    "fast file cuts elsewhere": (
        small_fast_file(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
        "tokenizer.json: not a byte-level BPE",
    ),
    "fast file puts a space before": (
        small_fast_file(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
        "tokenizer.json: not a byte-level BPE",
    ),
    "fast file without decoder": (small_fast_file(decoder=None), "tokenizer.json: not a byte-level BPE"),
    "fast file without vocab": (small_fast_file(vocab=None), "tokenizer.json: model has no vocab or no merges"),
    "fast file with odd merges": (small_fast_file(merges=["d e f"]), "tokenizer.json: a merge is 'd e f'"),
    "fast file with unknown merges": (small_fast_file(merges=[["q", "q"]]), "tokenizer.json: merge 1 .* needs 'qq'"),
    "fast file with odd added tokens": (small_fast_file(added_tokens=["x"]), "tokenizer.json: added token None is 'x'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(name: str, tmp_path: Path) -> None:
    folder = copied(SMALL, tmp_path / "phi-2")
    change, message = BROKEN[name]
    change(folder)
    with pytest.raises(ExportError, match=message) as caught:
        build_tokenizer(folder, 320)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
