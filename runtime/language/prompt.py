"""Questions to token ids: the published conversation formats, and the prompt split at its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from ..bundle.manifest import PromptTemplate
from ..errors import ArgumentError
from .tokenizer import panics_told

IMAGE_SLOT = "<ImageHere>"
"""Marks where a picture's image tokens are inserted into a prompt; it never reaches the tokenizer."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer; the last turn has no answer yet."""

    question: str
    answer: str | None = None
    token_ids: tuple[int, ...] | None = None
    """Token ids of the answer as the model generated it, which the tokenizer may split differently; None if only the
    text is known."""


class Prompt:
    """A conversation in one of the published formats, as token ids; its oldest turns can be left out.

    The tokens that keys and values were computed for remain the beginning of the next prompt: answers with token ids
    keep these. All other text is tokenised as in the published code, each piece once.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: Tokenizer,
        turns: Sequence[Turn],
        image_count: int,
        system: str | None = None,
    ) -> None:
        """
        Args:
            template: The conversation format.
            tokenizer: The bundle's tokenizer.
            turns: The turns, oldest first.
            image_count: Number of pictures before the first question, whichever turn that is; 0 for text only.
            system: See :class:`.AnswerOptions`; blank is the same as None.

        Raises:
            TypeError: See :func:`render`.
            ArgumentError: See :func:`render`; or the template has another number of slots than there are images.
        """
        _check(turns, image_count)
        self._system = system if system and system.strip() else ""
        _check_text("system", self._system)
        beginning = "".join(part for part in _parts(template, [Turn("?")], image_count) if isinstance(part, str))
        _check_slots(template, beginning.count(IMAGE_SLOT), image_count)
        self._template = template
        self._tokenizer = tokenizer
        self._turns = turns
        self._image_count = image_count
        self._tokenised: dict[str, list[int]] = {}

    def segments(self, first: int = 0) -> list[list[int]]:
        """Token ids of the turns from ``first`` on, split at the images: one list more than there are images.

        Raises:
            ArgumentError: With these turns, the template has another number of slots.
        """
        segments: list[list[int]] = [[]]
        for part in _parts(self._template, self._turns[first:], self._image_count, self._system):
            if isinstance(part, str):
                beginning, *rest = part.split(IMAGE_SLOT)
                segments[-1] += self._tokens(beginning)
                segments += ([*self._tokens(text)] for text in rest)
            else:
                segments[-1] += part
        _check_slots(self._template, len(segments) - 1, self._image_count)
        return segments

    def oldest(self, tokens: int, longest: int) -> int:
        """The index of the first turn that may fit together with all later ones, estimated from text lengths.

        Args:
            tokens: Number of tokens that there is room for.
            longest: Length of the tokenizer's longest token in bytes.

        Returns:
            Index of the turn; the number of turns if not even the last one fits.
        """
        tokens -= len(self._system) // longest
        for number in reversed(range(len(self._turns))):
            turn = self._turns[number]
            texts = len(turn.question) + (len(turn.answer or "") if turn.token_ids is None else 0)
            # A turn without text has at least a token: of the template.
            tokens -= max(1, texts // longest + len(turn.token_ids or ()))
            if tokens < 0:
                return number + 1
        return 0

    def _tokens(self, text: str) -> list[int]:
        if text not in self._tokenised:
            (self._tokenised[text],) = encode_segments(self._tokenizer, text)
        return self._tokenised[text]


def render(template: PromptTemplate, turns: Sequence[tuple[str, str | None]], image_count: int = 1) -> str:
    """Write a conversation as the prompt the model was trained on.

    Args:
        template: The conversation format.
        turns: (question, answer) pairs, oldest first. The last answer is None where the model is to give it. The
            question of an answer that nobody asked for, such as a greeting, is an empty string.
        image_count: Pictures before the first question; 0 for a conversation about text alone.

    Returns:
        The prompt, with one ``<ImageHere>`` for each picture, for :func:`encode_segments`.

    Raises:
        TypeError: A question or answer is not a string.
        ArgumentError: There are no turns, ``image_count`` is negative, a question is blank or the last one empty, an
            earlier answer is None, or a text holds lone surrogates or an ``<ImageHere>``, which would take a picture's
            place.
    """
    conversation = [Turn(question, answer) for question, answer in turns]
    _check(conversation, image_count)
    (prompt,) = _parts(template, conversation, image_count)
    assert isinstance(prompt, str)
    _check_slots(template, prompt.count(IMAGE_SLOT), image_count)
    return prompt


def encode_segments(tokenizer: Tokenizer, prompt: str) -> list[list[int]]:
    """Split a prompt at each ``<ImageHere>`` and tokenise the pieces separately, as the published code does.

    Args:
        tokenizer: The bundle's tokenizer.
        prompt: The result of :func:`render`.

    Returns:
        The pieces' token ids, one list more than there are pictures; no special tokens are added.
    """
    with panics_told("the bundle's tokenizer.json"):
        return [tokenizer.encode(segment, add_special_tokens=False).ids for segment in prompt.split(IMAGE_SLOT)]


def closing_tokens(template: PromptTemplate, tokenizer: Tokenizer) -> int:
    """The number of tokens after the last image that all questions about the images share, such as those of ``</Img>``.

    White space at the end of the template's text is not counted: it may become one token with the question's.
    """
    *_, closing = encode_segments(tokenizer, template.image.rstrip())
    return len(closing)


def _parts(
    template: PromptTemplate, turns: Sequence[Turn], image_count: int, system: str = ""
) -> Iterator[str | tuple[int, ...]]:
    """The parts of a prompt that are tokenised separately: text, or an answer's own token ids."""
    text, before = template.system, ""
    if system and text:
        text = system.rstrip() + text[len(text.rstrip()) :]
    elif system:
        before = f"{system}\n"
    first = next((number for number, turn in enumerate(turns) if turn.question), 0)
    for number, turn in enumerate(turns):
        images = image_count if number == first else 0
        question = turn.question.strip() if images and template.strip_question else turn.question
        if number == first:
            question = before + question
        text += f"{template.user}{template.image * images}{question}{template.assistant}"
        if turn.token_ids is not None:
            yield text
            yield turn.token_ids
            text = template.after_answer
        elif turn.answer is not None:
            text += f"{template.before_answer}{turn.answer}{template.after_answer}"
    yield text


def _check(turns: Sequence[Turn], image_count: int) -> None:
    if not turns:
        raise ArgumentError("turns is empty; expected at least one question")
    if image_count < 0:
        raise ArgumentError(f"image_count is {image_count}; expected 0 or more")
    for number, turn in enumerate(turns, start=1):
        _check_text(f"question {number}", turn.question)
        unasked = turn.question == "" and number < len(turns)
        if not unasked and not turn.question.strip():
            raise ArgumentError(f"question {number} is {turn.question!r}; expected some text")
        if turn.token_ids is not None:
            continue  # its text is not tokenised
        if turn.answer is not None:
            _check_text(f"answer {number}", turn.answer)
        elif number < len(turns):
            raise ArgumentError(f"answer {number} of {len(turns)} is None; only the last one may be")


def _check_slots(template: PromptTemplate, slots: int, image_count: int) -> None:
    if slots != image_count:
        raise ArgumentError(
            f"template {template.name!r} gives {slots} {IMAGE_SLOT} for {image_count} images; expected one each"
        )


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is of type {type(text).__name__}; expected a string")
    check_plain(name, text)


def check_plain(name: str, text: str) -> None:
    """Raise ArgumentError if a text cannot be put into a prompt; ``name`` is what messages call it."""
    if IMAGE_SLOT in text:
        raise ArgumentError(f"{name} holds {IMAGE_SLOT}, the mark where a picture is put in: write it another way")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name} is not valid Unicode; expected text without lone surrogates") from error
