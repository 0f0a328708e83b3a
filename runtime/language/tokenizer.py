"""A bundle's tokenizer: read, seen to be of the form that prompts need, and asked without bringing a program down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import BundleError


@contextmanager
def panics_told(where: object) -> Iterator[None]:
    """What ends a thread of Rust becomes a BundleError: it is no Exception, so nothing else would catch it."""
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
        vocab_size: Of the model: no id may be beyond.

    Raises:
        BundleError: It cannot be read, or changes texts before or after they are cut into tokens: by a normaliser, by
            padding or by truncation, which the exporter writes none of.
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
