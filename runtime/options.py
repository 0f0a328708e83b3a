"""How an answer is to be written: the options of every call that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypedDict

from .errors import ArgumentError
from .language.generate import check_max_new_tokens
from .language.sampling import GREEDY, LogitsProcessor, Sampling

DEFAULT_MAX_NEW_TOKENS = 300
"""The default of the released demo."""
MOST_TOP_LOGPROBS = 20
"""Maximum of ``top_logprobs``, as in OpenAI's API."""


@dataclass(frozen=True)
class AnswerOptions:
    """Options of an answer.

    Calls take it as ``options``, or its fields as keywords: ``model.ask(image, question, max_new_tokens=40)`` is
    ``model.ask(image, question, options=AnswerOptions(max_new_tokens=40))``. Where both are given, keywords replace
    fields of ``options``.

    Raises:
        TypeError: ``stop`` is not a sequence of strings, or another value is of another type.
        ArgumentError: A value is out of range.
    """

    max_new_tokens: int | None = None
    """The answer ends after this many tokens; at least 1. If None, 300, or as many as the context has room for; in a
    conversation, the oldest turns make room for 300."""
    template: str | None = None
    """Name of a prompt template of the bundle; its default one if None. In a chat, the chat's own."""
    sampling: Sampling = GREEDY
    """How tokens are sampled; greedily if not given, which gives the same answer each time."""
    stop: Sequence[str] = ()
    """Texts that end the answer and are not part of it, in addition to the bundle's own; none of them empty."""
    clamp: bool = False
    """If ``max_new_tokens`` do not fit in the context, take the room that there is instead of raising an error. The
    oldest turns of a conversation then make room for no more than 300 tokens."""
    system: str | None = None
    """What the model is told before the conversation. It replaces the system text of the prompt template; if the
    template has none, it goes on a line before the first question. The same for all questions of a conversation."""
    top_logprobs: int | None = None
    """If given, the answer's ``logprobs`` say how probable each of its tokens was, with this many of the most probable
    tokens at its position, 0 to 20."""
    logits_processor: Callable[[], LogitsProcessor] | None = None
    """Called when an answer begins, it returns a function for this answer: called before each token is sampled, with
    the ids so far and the logits, float32 [vocabulary], it returns the logits to sample from. Minus infinity rules a
    token out."""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_max_new_tokens(self.max_new_tokens)
        if not isinstance(self.template, str | None):
            raise TypeError(f"template is {self.template!r}; expected a template's name, or None")
        if not isinstance(self.sampling, Sampling):
            raise TypeError(f"sampling is {self.sampling!r}; expected a Sampling")
        if not isinstance(self.clamp, bool):
            raise TypeError(f"clamp is {self.clamp!r}; expected True or False")
        if not isinstance(self.system, str | None):
            raise TypeError(f"system is {self.system!r}; expected a string, or None")
        if not isinstance(self.top_logprobs, int | None) or isinstance(self.top_logprobs, bool):
            raise TypeError(f"top_logprobs is {self.top_logprobs!r}; expected an int, or None")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise ArgumentError(f"top_logprobs is {self.top_logprobs}; expected 0 to {MOST_TOP_LOGPROBS}")
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise TypeError(f"logits_processor is {self.logits_processor!r}; expected a function that returns one")
        # One string is most likely meant as one, not as its letters.
        stop = (None,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) for text in stop):
            raise TypeError(f"stop is {self.stop!r}; expected a sequence of strings")
        if "" in stop:
            raise ArgumentError("stop holds an empty string, which would end every answer before it began")
        object.__setattr__(self, "stop", stop)


class AnswerKeywords(TypedDict, total=False):
    """The fields of :class:`AnswerOptions`, as keywords of a call: ``**keywords: Unpack[AnswerKeywords]``."""

    max_new_tokens: int | None
    template: str | None
    sampling: Sampling
    stop: Sequence[str]
    clamp: bool
    system: str | None
    top_logprobs: int | None
    logits_processor: Callable[[], LogitsProcessor] | None


def merged(options: AnswerOptions | None, keywords: AnswerKeywords) -> AnswerOptions:
    """Options with the fields that were given as keywords.

    Raises:
        TypeError: A keyword is not a field, or as :class:`AnswerOptions`.
        ArgumentError: As :class:`AnswerOptions`.
    """
    if options is not None and not isinstance(options, AnswerOptions):
        raise TypeError(f"options is {options!r}; expected AnswerOptions")
    names = [field.name for field in fields(AnswerOptions)]
    if unknown := [name for name in keywords if name not in names]:
        raise TypeError(f"unknown keyword {', '.join(unknown)}; an answer's options are {', '.join(names)}")
    return replace(options or AnswerOptions(), **keywords)
