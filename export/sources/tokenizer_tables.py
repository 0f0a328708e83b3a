"""Vocabulary and merges of a byte-level BPE tokenizer, from the files that exist."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygptv.runtime.errors import ExportError, reason_of
from tokenizers import pre_tokenizers

from ..documents import read_json, refuse_pointer

VOCAB = "vocab.json"
MERGES = "merges.txt"
FAST_TOKENIZER = "tokenizer.json"
_NOT_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
"""Settings of BPE that Phi-2's tokenizer does not use."""
_MARK = re.compile(r"<[^<>\s]+>")
"""Matches tokens such as ``<pad>``, which no text becomes, and which need no merge."""


@dataclass(frozen=True)
class Tables:
    """The tables of a byte-level BPE tokenizer, with the files that they come from, for messages."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    vocab_file: Path
    merges_file: Path


def read_tables(folder: Path) -> Tables:
    """``vocab.json`` and ``merges.txt``, or where one is missing ``tokenizer.json``.

    Raises:
        ExportError: A file cannot be read or is not of Phi-2's kind; two files contradict each other.
    """
    missing = [name for name in (VOCAB, MERGES) if not (folder / name).is_file()]
    if not missing:
        vocab_file, merges_file = folder / VOCAB, folder / MERGES
        vocab, merges = read_json(vocab_file), _read_merges(merges_file)
        _check_fast_tables(folder / FAST_TOKENIZER, vocab, merges)
    elif (folder / FAST_TOKENIZER).is_file():
        vocab_file = merges_file = folder / FAST_TOKENIZER
        vocab, merges = _read_fast_tables(vocab_file)
    else:
        raise ExportError(
            f"{folder}: no {' and no '.join(missing)}; expected {VOCAB} with {MERGES}, or {FAST_TOKENIZER}: "
            "copy all tokenizer files of Phi-2"
        )
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise ExportError(f"{vocab_file}: the id of {token!r} is {token_id!r}; expected a whole number from 0 up")
    lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys())
    if lacking:
        raise ExportError(f"{vocab_file}: {len(lacking)} of the 256 single bytes have no token, such as {lacking[0]!r}")
    for number, (left, right) in enumerate(merges, start=1):
        for part in (left, right, left + right):
            if part not in vocab:
                raise ExportError(
                    f"{merges_file}: merge {number} ({left} {right}) needs {part!r}, which {vocab_file.name} does not "
                    "have; both must be from the same model"
                )
    return Tables(vocab, merges, vocab_file, merges_file)


def _check_fast_tables(file: Path, vocab: dict[str, Any], merges: list[tuple[str, str]]) -> None:
    """Refuse a tokenizer.json, which other programs would read, if its tables differ from those of the older files."""
    if not _part(optional(file), "model"):
        return
    other_vocab, other_merges = _read_fast_tables(file)
    differing = [token for token in vocab.keys() & other_vocab.keys() if vocab[token] != other_vocab[token]]
    if differing or merges != other_merges:
        what = f"the id of {min(differing)!r} differs from that" if differing else "the merges differ from those"
        raise ExportError(f"{file}: {what} in {VOCAB} and {MERGES}; copy all tokenizer files of one model")


def _read_merges(file: Path) -> list[tuple[str, str]]:
    refuse_pointer(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read as text ({reason_of(error)})") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ExportError(f"{file}: line {number} is {line!r:.60}; expected two tokens with a space between")
        merges.append((parts[0], parts[1]))
    return merges


def _read_fast_tables(file: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary and merges of a ``tokenizer.json``; merges are "left right" or, in newer files, [left, right]."""
    document = read_json(file)
    model, cut = _part(document, "model"), _part(document, "pre_tokenizer")
    kinds = (model.get("type"), cut.get("type"), _part(document, "decoder").get("type"))
    plain = not document.get("normalizer") and not cut.get("add_prefix_space") and cut.get("use_regex", True)
    # Another one adds tokens at the ends of texts.
    plain = plain and _part(document, "post_processor").get("type", "ByteLevel") == "ByteLevel"
    if kinds != ("BPE", "ByteLevel", "ByteLevel") or not plain or any(model.get(name) for name in _NOT_PLAIN):
        raise ExportError(f"{file}: not a byte-level BPE tokenizer as Phi-2's; download Phi-2's own tokenizer files")
    vocab, listed = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(listed, list):
        raise ExportError(f"{file}: model has no vocab or no merges; download it again")
    merges = []
    for merge in listed:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ExportError(f"{file}: a merge is {merge!r:.60}; expected two tokens")
        merges.append((parts[0], parts[1]))
    return vocab, merges


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def check_merges(tables: Tables, added: Collection[str]) -> None:
    """Check that every token can come from a text: as a byte, from a merge, or because it was ``added``.

    Raises:
        ExportError: Merges are missing: ids would be right, but not those that the model was trained with.
    """
    made = {left + right for left, right in tables.merges} | set(pre_tokenizers.ByteLevel.alphabet()) | set(added)
    stranded = [token for token in tables.vocab if token not in made and not _MARK.fullmatch(token)]
    if stranded:
        raise ExportError(
            f"{tables.merges_file}: {len(stranded)} tokens of {tables.vocab_file.name}, such as {stranded[0]!r}, "
            f"cannot be made by any of its {len(tables.merges)} merges; it is cut off, or of another model: download "
            "both again"
        )


def optional(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file."""
    return read_json(file) if file.exists() else {}
