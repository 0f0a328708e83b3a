"""The commands on bundles of the other Phi-2 families: what they answer, what they refuse, and what they tell."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from captioned import picture_folder, texts
from siblings import FAMILIES, SIBLINGS, golden_case, golden_numbers
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.cli import main

Bundle = Callable[..., Path]
Said = Callable[..., str]
CAPTION = "Provide a one-sentence caption for the provided image."


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def picture(family: str) -> str:
    return str(SIBLINGS / family / "picture.png")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command, which succeeds, and returns what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


def table(text: str) -> dict[str, str]:
    """Lines of a name and what is said of it, aligned; the last of several lines of one name."""
    lines = text.splitlines()
    assert all(re.match(r"[ \w]{14}  \S", line) for line in lines), text
    return {line[:14].strip(): line[16:] for line in lines}


def test_ask(family: str, picture: str, sibling_bundle: Bundle, said: Said) -> None:
    ids, question = golden_numbers(family)["greedy_ids"].tolist(), golden_case(family)["question"]
    bundle = sibling_bundle(family)
    asked = ("ask", picture, question, "--bundle", bundle, "--max-new-tokens", len(ids))
    document = json.loads(said(*asked, "--json"))
    assert document["token_ids"] == ids and document["regions"] == []
    assert said(*asked, "--memory", "low").removesuffix("\n") == document["text"]
    two = json.loads(said("ask", picture, picture, question, "--bundle", bundle, "--max-new-tokens", "2", "--json"))
    after = len(two["token_ids"]) and document["prompt_tokens"] + 1 + read_manifest(bundle).contract.image_tokens
    assert two["prompt_tokens"] == after


def test_boxes_are_refused_by_name(
    family: str, picture: str, sibling_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "drawn.png"
    for more in (("--box", "1,1,20,20"), ("what?", "--draw", str(drawing))):
        assert main(["ask", picture, *more, "--bundle", str(sibling_bundle(family))]) == 1
        captured = capsys.readouterr()
        told = f"tinygptv: {family} is of the family {family}, which knows no boxes; ask in words instead\n"
        assert (captured.out, captured.err) == ("", told)
    assert not drawing.exists()


def test_chat(family: str, picture: str, sibling_bundle: Bundle, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, questions = sibling_bundle(family), ("What is it?", "How many?")
    with TinyGPTV.load(bundle) as model:
        chat = model.chat(picture)
        expected = [chat.ask(question, max_new_tokens=6) for question in questions]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{question}\n" for question in questions)))
    printed = said("chat", picture, "--bundle", bundle, "--max-new-tokens", "6", "--json").splitlines()
    documents = [json.loads(line) for line in printed]
    assert [document["text"] for document in documents] == [answer.text for answer in expected]
    assert [document["cached_tokens"] for document in documents] == [answer.cached_tokens for answer in expected]


def test_caption_asks_in_the_family_s_words(family: str, sibling_bundle: Bundle, said: Said, tmp_path: Path) -> None:
    bundle, output = sibling_bundle(family), tmp_path / "captions.jsonl"
    folder = picture_folder(tmp_path / "pictures")
    said("caption", folder, "-o", output, "--bundle", bundle, "--max-new-tokens", "8", "--batch-size", "2")
    found = texts(output)
    assert len(found) == 4
    with TinyGPTV.load(bundle) as model:
        for name, text in found.items():
            assert text == model.ask(folder / name, CAPTION, max_new_tokens=8).text
    assert {json.loads(line)["question"] for line in output.read_text().splitlines()} == {CAPTION}


def test_tune(family: str, picture: str, sibling_bundle: Bundle, said: Said, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(sibling_bundle(family, precision="int8"), tmp_path / "bundle"))
    asked = ("ask", picture, "what?", "--bundle", bundle, "--max-new-tokens", "8")
    before = said(*asked)
    assert json.loads(said("tune", bundle, "--json"))["home"] == str(bundle)
    assert said(*asked) == before
    assert said("bundle", "verify", bundle).splitlines()[-1] == f"{bundle} is complete"
    assert f"{bundle}: yes, will be used" in said("bundle", "info", bundle)
    said("tune", bundle, "--undo")
    assert said(*asked) == before


def test_bundle_info(family: str, sibling_bundle: Bundle, said: Said) -> None:
    bundle = sibling_bundle(family, precision="int8")
    manifest = read_manifest(bundle)
    rows = table(said("bundle", "info", bundle))
    assert rows["family"] == family
    assert (rows["tasks"], rows["boxes"], rows["stop strings"], rows["caption"]) == ("none", "none", "none", CAPTION)
    fit = {"llava-phi": "pad with RGB (122, 116, 104) to 56 px", "tinyllava": "squash to 62 px"}
    assert rows["images"].startswith(f"{fit.get(family, 'pad with RGB (127, 127, 127) to 62 px')}, bicubic, mean 0.")
    assert rows["images"].endswith(f": {manifest.contract.image_tokens} tokens each")
    assert set(manifest.parts) <= set(rows)
    assert json.loads(said("bundle", "info", bundle, "--json"))["family"] == family


def test_doctor_states_the_memory_of_several_pictures(family: str, sibling_bundle: Bundle, said: Said) -> None:
    bundle = sibling_bundle(family, precision="int8")
    contract = read_manifest(bundle).contract
    told = said("doctor", bundle)
    assert f"({family}, {family}, " in table(told)["bundle"]
    sizes = [(n * contract.image_tokens + 480) * contract.cache_bytes_per_position / 1e6 for n in (1, 2, 3)]
    assert table(told)["KV cache"] == (
        f"1 picture {sizes[0]:.1f} MB, 2 pictures {sizes[1]:.1f} MB, 3 pictures {sizes[2]:.1f} MB, each with a "
        f"question and its answer ({contract.image_tokens} tokens a picture, context of 2,048)"
    )
    assert table(told)["answers"] == "yes"
