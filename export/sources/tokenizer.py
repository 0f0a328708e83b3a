"""Phi-2's tokenizer from its folder: byte-level BPE (GPT-2's) and the tokens that CodeGen added for runs of whitespace.

Built afresh from what the folder's files say rather than taken over, so that all bundles hold the same kind of
tokenizer.json, and so that its ids are those of the slow tokenizer that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinygptv.runtime.errors import ExportError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..documents import Config
from .tokenizer_tables import FAST_TOKENIZER, Tables, check_merges, optional, read_tables

ADDED_TOKENS = "added_tokens.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
END_OF_TEXT = "<|endoftext|>"
CLASSES = (
    *(f"{name}{kind}" for name in ("CodeGenTokenizer", "GPT2Tokenizer") for kind in ("", "Fast")),
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
"""Classes of ``transformers`` that split texts like Phi-2's tokenizer, or that follow tokenizer.json."""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def build_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Make the tokenizer of a Phi-2 folder.

    ``vocab.json`` and ``merges.txt`` are read where both are there, else ``tokenizer.json``. Added tokens come from
    ``tokenizer_config.json`` and ``tokenizer.json``, in a folder of the older kind also from ``added_tokens.json``.
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
    config = optional(folder / CONFIG)
    settings = Config(str(folder / CONFIG), config)
    settings.expect("tokenizer_class", None, *CLASSES)
    for name in ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"):
        settings.expect(name, None, False)
    tables = read_tables(folder)
    special = set(_special_tokens(folder, config))
    added = _read_added_tokens(folder, config, special)
    for content in special & tables.vocab.keys():
        added.setdefault(tables.vocab[content], AddedToken(content, normalized=False, special=True))
    _check_ids(tables, added, vocab_size, folder)
    check_merges(tables, {token.content for token in added.values()})

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
        if (token := _content(optional(file).get("eos_token"), file)) is not None
    ]
    token = named[0] if named else END_OF_TEXT
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ExportError(f"{folder}: eos_token {token!r} is not in the vocabulary; copy all tokenizer files of Phi-2")
    return token_id


def _read_added_tokens(folder: Path, config: dict[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Tokens added to the vocabulary, by id; those in ``special`` are special whatever their own entry says.

    ``transformers`` takes what tokenizer_config.json lists and what tokenizer.json lists, and added_tokens.json only
    where the first has no list. So no list hides another's tokens here, and added_tokens.json may have none of its own.
    """
    file = folder / FAST_TOKENIZER
    added: dict[int, AddedToken] = {}
    for fields in optional(file).get("added_tokens") or []:
        token_id = fields.get("id") if isinstance(fields, dict) else None
        _join(added, *_added_token(token_id, fields, special, file), file)
    file = folder / ADDED_TOKENS
    older = dict(_added_token(token_id, {"content": text}, special, file) for text, token_id in optional(file).items())
    if "added_tokens_decoder" not in config:
        return older | added
    file, listed = folder / CONFIG, config["added_tokens_decoder"]
    if not isinstance(listed, dict):
        raise ExportError(f"{file}: added_tokens_decoder is {listed!r:.60}; expected an object of ids")
    for token_id, fields in listed.items():
        _join(added, *_added_token(token_id, fields, special, file), file)
    for token_id, token in older.items():
        if token_id not in added or added[token_id].content != token.content:
            raise ExportError(
                f"{folder / ADDED_TOKENS}: added token {token.content!r} has id {token_id}, but {CONFIG}'s "
                "added_tokens_decoder says otherwise; copy all tokenizer files of the model"
            )
    return added


def _join(added: dict[int, AddedToken], token_id: int, token: AddedToken, file: Path) -> None:
    """Add a token of ``file`` to those of other files, which must not contradict it."""
    flags = ("content", "single_word", "lstrip", "rstrip")
    same_id, same_text = added.get(token_id), [other for other in added.values() if other.content == token.content]
    if (same_text and same_text != [same_id]) or (
        same_id is not None and any(getattr(same_id, flag) != getattr(token, flag) for flag in flags)
    ):
        raise ExportError(
            f"{file}: added token {token.content!r} with id {token_id} differs in {FAST_TOKENIZER}; "
            "copy all tokenizer files of the model"
        )
    if same_id is None or token.special:
        added[token_id] = token


def _added_token(token_id: object, fields: object, special: set[str], file: Path) -> tuple[int, AddedToken]:
    content = fields.get("content") if isinstance(fields, dict) else None
    if not str(token_id).isdecimal() or not isinstance(fields, dict) or not isinstance(content, str) or not content:
        raise ExportError(
            f"{file}: added token {token_id!r} is {fields!r:.60}; expected an id from 0 up and its content"
        )
    flags = {name: fields.get(name) is True for name in ("single_word", "lstrip", "rstrip")}
    is_special = fields.get("special") is True or content in special
    # The text is never normalised, but those that would be looked for in normalised text are looked for second: what
    # takes the spaces around it takes them from a token of spaces, too.
    normalized = fields.get("normalized", not is_special) is True
    return int(str(token_id)), AddedToken(content, normalized=normalized, special=is_special, **flags)


def _check_ids(tables: Tables, added: dict[int, AddedToken], vocab_size: int, folder: Path) -> None:
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
    for file, names in ((folder / CONFIG, config), (folder / SPECIAL_TOKENS, optional(folder / SPECIAL_TOKENS))):
        additional = names.get("additional_special_tokens") or []
        if not isinstance(additional, list):
            raise ExportError(f"{file}: additional_special_tokens is {additional!r:.60}; expected a list")
        for value in [*(names.get(name) for name in _SPECIAL_NAMES), *additional]:
            content = _content(value, file)
            if content is not None:
                yield content


def _content(value: object, file: Path) -> str | None:
    """The text of a special token, which is written as a string, or as an object with its ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    raise ExportError(f"{file}: a special token is {value!r:.60}; expected a string or an object with content")
