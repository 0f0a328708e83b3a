"""A bundle's tokenizer.json that would change what is asked, or bring a program down: refused in a line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinygptv.runtime import BundleError, TinyGPTV
from tinygptv.runtime.language.tokenizer import panics_told

Document = dict[str, Any]


@pytest.fixture
def load_with(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Callable[[str], TinyGPTV]:
    """Loads a bundle with another tokenizer.json, which its manifest vouches for."""

    def load(text: str) -> TinyGPTV:
        bundle = Path(shutil.copytree(golden_bundle(4, "int8"), tmp_path / "bundle"))
        content = text.encode("utf-8", "surrogatepass")
        (bundle / "tokenizer.json").write_bytes(content)
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        for record in manifest["files"]:
            if record["name"] == "tokenizer.json":
                record |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return TinyGPTV.load(bundle)

    return load


@pytest.fixture
def document(golden_bundle: Callable[[int, str], Path]) -> Document:
    found: Document = json.loads((golden_bundle(4, "int8") / "tokenizer.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "has a normalizer"),
        (
            lambda d: d.update(
                truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
            ),
            "has truncation",
        ),
        (
            lambda d: d.update(
                padding={
                    "strategy": {"Fixed": 99},
                    "direction": "Left",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "!",
                }
            ),
            "has padding",
        ),
        (lambda d: d["model"]["vocab"].update(beyond=320), "has ids up to 320, and the model 320 tokens"),
        (lambda d: d.update(model=None), "cannot be read"),
    ],
)
def test_what_changes_a_prompt_is_refused(
    change: Callable[[Document], object], told: str, document: Document, load_with: Callable[[str], TinyGPTV]
) -> None:
    change(document)
    with pytest.raises(BundleError) as refused:
        load_with(json.dumps(document))
    assert told in str(refused.value) and "\n" not in str(refused.value) and "tokenizer.json" in str(refused.value)


@pytest.mark.parametrize("text", ["", "[" * 200_000, '{"version": 1}', "\x00"])
def test_what_is_no_tokenizer_is_refused(text: str, load_with: Callable[[str], TinyGPTV]) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_with(text)


class PanicException(BaseException):
    """As the library's own, which cannot be imported."""


def test_a_panic_is_an_error() -> None:
    with pytest.raises(BundleError, match=r"^x makes the tokenizers library fail"), panics_told("x"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), panics_told("x"):
        raise KeyboardInterrupt
