"""A bundle's tokenizer: reads it, checks that prompts can use it, and turns its panics into errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import BundleError


@contextmanager
def panics_told(where: object) -> Iterator[None]:
    """Raise BundleError for a panic in Rust, which is not an Exception and would otherwise end the thread."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BundleError(
            f"{where} makes the tokenizers library fail ({error!s:.200}); copy the bundle again"
        ) from None


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Read ``tokenizer.json``.

    Args:
        path: The file.
        vocab_size: Vocabulary size of the model: all ids must be below it.

    Raises:
        BundleError: The file cannot be read, or the tokenizer changes texts before or after tokenising: by a
            normaliser, by padding or by truncation, which the exporter never writes.
    """
    try:
        with panics_told(path):
            tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except BundleError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{path} cannot be read ({error!s:.200}); copy the bundle again") from error
    for what, found in (
        ("a normalizer", tokenizer.normalizer),
        ("padding", tokenizer.padding),
        ("truncation", tokenizer.truncation),
    ):
        if found is not None:
            raise BundleError(f"{path} has {what}, which would change what is asked; export the model again")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise BundleError(
            f"{path} has ids up to {largest}, and the model {vocab_size} tokens; copy the bundle again, or export the "
            "model again"
        )
    return tokenizer
