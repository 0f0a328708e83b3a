"""Phi-2's tokenizer from its folder: byte-level BPE (GPT-2's) and the tokens that CodeGen added for runs of whitespace.

Built afresh from what the folder's files say rather than taken over, so that all bundles hold the same kind of
tokenizer.json, and so that its ids are those of the slow tokenizer that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygptv.runtime.errors import ExportError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..documents import read_json

VOCAB = "vocab.json"
MERGES = "merges.txt"
ADDED_TOKENS = "added_tokens.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FAST_TOKENIZER = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class _Tables:
    """What defines a byte-level BPE tokenizer, with the file to blame for its vocabulary and for its merges."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    vocab_file: Path
    merges_file: Path


def build_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Make the tokenizer of a Phi-2 folder.

    ``vocab.json`` and ``merges.txt`` are read where both are there, else ``tokenizer.json``. Added tokens come from
    ``tokenizer_config.json``, or in a folder of the older kind from ``added_tokens.json`` and ``tokenizer.json``.
    Tokens that any file names as special are special if they are in the vocabulary, and ignored if they are not.

    Args:
        folder: The Phi-2 folder.
        vocab_size: Rows of the model's embedding table; every token's id must be below it.

    Returns:
        A tokenizer that adds nothing to a text and neither truncates nor pads.

    Raises:
        ExportError: A file is missing, cannot be read, contradicts another or is not Phi-2's kind of tokenizer; a merge
            names a token that is not in the vocabulary; or the vocabulary is larger than the model's.
    """
    config = _optional(folder / CONFIG)
    if config.get("add_prefix_space"):
        raise ExportError(f"{folder / CONFIG}: add_prefix_space is true; expected false, as in Phi-2's tokenizer")
    tables = _read_tables(folder)
    special = set(_special_tokens(folder, config))
    added = _read_added_tokens(folder, config, special)
    for content in special & tables.vocab.keys():
        added.setdefault(tables.vocab[content], AddedToken(content, normalized=False, special=True))
    _check_ids(tables, added, vocab_size, folder)

    tokenizer = Tokenizer(models.BPE(vocab=tables.vocab, merges=tables.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([token for _, token in sorted(added.items())])
    for token_id, token in added.items():
        if tokenizer.token_to_id(token.content) != token_id:
            raise ExportError(
                f"{folder}: added token {token.content!r} has id {token_id}, which leaves a gap after the vocabulary's "
                f"{len(tables.vocab)} tokens; expected consecutive ids, as in Phi-2's folder"
            )
    return tokenizer


def eos_token_id(folder: Path, tokenizer: Tokenizer) -> int:
    """The id that ends a text, from the folder's ``eos_token``; ``<|endoftext|>`` where it names none.

    Raises:
        ExportError: That token is not in the tokenizer's vocabulary.
    """
    named = [
        token
        for file in (folder / CONFIG, folder / SPECIAL_TOKENS)
        if (token := _content(_optional(file).get("eos_token"), file)) is not None
    ]
    token = named[0] if named else END_OF_TEXT
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ExportError(f"{folder}: eos_token {token!r} is not in the vocabulary; copy all tokenizer files of Phi-2")
    return token_id


def _read_tables(folder: Path) -> _Tables:
    missing = [name for name in (VOCAB, MERGES) if not (folder / name).is_file()]
    if not missing:
        vocab_file, merges_file = folder / VOCAB, folder / MERGES
        vocab, merges = read_json(vocab_file), _read_merges(merges_file)
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
    return _Tables(vocab, merges, vocab_file, merges_file)


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read as text ({error})") from error
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
    if kinds != ("BPE", "ByteLevel", "ByteLevel") or not plain:
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


def _read_added_tokens(folder: Path, config: dict[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Tokens added to the vocabulary, by id; those in ``special`` are special whatever their own entry says."""
    if "added_tokens_decoder" in config:
        file, listed = folder / CONFIG, config["added_tokens_decoder"]
        if not isinstance(listed, dict):
            raise ExportError(f"{file}: added_tokens_decoder is {listed!r:.60}; expected an object of ids")
        return dict(_added_token(token_id, fields, special, file) for token_id, fields in listed.items())
    file = folder / ADDED_TOKENS
    added = dict(
        _added_token(token_id, {"content": token}, special, file) for token, token_id in _optional(file).items()
    )
    file = folder / FAST_TOKENIZER
    for fields in _optional(file).get("added_tokens") or []:
        token_id, token = _added_token(fields.get("id") if isinstance(fields, dict) else None, fields, special, file)
        added[token_id] = token
    return added


def _added_token(token_id: object, fields: object, special: set[str], file: Path) -> tuple[int, AddedToken]:
    content = fields.get("content") if isinstance(fields, dict) else None
    if not str(token_id).isdecimal() or not isinstance(fields, dict) or not isinstance(content, str) or not content:
        raise ExportError(
            f"{file}: added token {token_id!r} is {fields!r:.60}; expected an id from 0 up and its content"
        )
    flags = {name: fields.get(name) is True for name in ("single_word", "lstrip", "rstrip")}
    is_special = fields.get("special") is True or content in special
    # The text is never normalised, so all added tokens are looked for in one pass, the longest first.
    return int(str(token_id)), AddedToken(content, normalized=False, special=is_special, **flags)


def _check_ids(tables: _Tables, added: dict[int, AddedToken], vocab_size: int, folder: Path) -> None:
    tokens = {token_id: token for token, token_id in tables.vocab.items()}
    if len(tokens) < len(tables.vocab):
        raise ExportError(f"{tables.vocab_file}: two tokens have the same id; download it again")
    for token_id, token in added.items():
        there = tokens.get(token_id, token.content)
        if there != token.content or tables.vocab.get(token.content, token_id) != token_id:
            raise ExportError(
                f"{folder}: added token {token.content!r} has id {token_id}, but {tables.vocab_file.name} says "
                "otherwise; both must be from the same model"
            )
    largest = max({**tokens, **added})
    if largest >= vocab_size:
        raise ExportError(
            f"{folder}: the tokenizer has ids up to {largest}, the model's vocab_size is {vocab_size}; "
            "tokenizer files and weights must be from the same model"
        )


def _special_tokens(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Contents of the tokens that the folder's files call special, and the one that CodeGen's tokenizer always has."""
    yield END_OF_TEXT
    for file, names in ((folder / CONFIG, config), (folder / SPECIAL_TOKENS, _optional(folder / SPECIAL_TOKENS))):
        additional = names.get("additional_special_tokens") or []
        if not isinstance(additional, list):
            raise ExportError(f"{file}: additional_special_tokens is {additional!r:.60}; expected a list")
        for value in [*(names.get(name) for name in _SPECIAL_NAMES), *additional]:
            content = _content(value, file)
            if content is not None:
                yield content


def _content(value: object, file: Path) -> str | None:
    """A special token's text: it is written as a string, or as an object with its ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    raise ExportError(f"{file}: a special token is {value!r:.60}; expected a string or an object with content")


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}
