"""Questions to token ids: the published conversation formats, and the prompt cut where image tokens go."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ..bundle.manifest import PromptTemplate
from ..errors import ArgumentError

IMAGE_SLOT = "<ImageHere>"
"""Where a prompt is cut and one picture's image tokens are put in; it never reaches the tokenizer."""

_IMAGE = f"<Img>{IMAGE_SLOT}</Img> "

PUBLISHED_TEMPLATES = (
    PromptTemplate(name="human_assistant", system="", user="###Human: ", assistant="###Assistant: ", image=_IMAGE),
    PromptTemplate(
        name="human_assistant_with_system",
        system="Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it "
        "to you. Please answer my questions.",
        user="###Human: ",
        assistant="###Assistant: ",
        image=_IMAGE,
    ),
    PromptTemplate(name="inst", system="", user="<s>[INST] ", assistant=" [/INST]", image=_IMAGE),
)
"""Of stages 1 to 3 and all released evaluations, of stages 1 to 3's demo, and of stage 4's (DLYuanGod/TinyGPT-V)."""


def render(template: PromptTemplate, turns: Sequence[tuple[str, str | None]], image_count: int = 1) -> str:
    """Write a conversation as the prompt the model was trained on.

    Args:
        template: The conversation format.
        turns: (question, answer) pairs, oldest first. The last answer is None where the model is to speak; a text
            there is what it has already said.
        image_count: Pictures before the first question; 0 for a conversation about text alone.

    Returns:
        The prompt, with one ``<ImageHere>`` for each picture, for :func:`encode_segments`.

    Raises:
        TypeError: A question or answer is not a string.
        ArgumentError: There are no turns, ``image_count`` is negative, a question is empty or blank, an earlier answer
            is None, or a text holds lone surrogates or an ``<ImageHere>``, which would take a picture's place.
    """
    if not turns:
        raise ArgumentError("turns is empty; expected at least one question")
    if image_count < 0:
        raise ArgumentError(f"image_count is {image_count}; expected 0 or more")
    parts = [template.system]
    for number, (question, answer) in enumerate(turns, start=1):
        _check_text("question", number, question)
        if not question.strip():
            raise ArgumentError(f"question {number} is {question!r}; expected some text")
        if answer is None and number < len(turns):
            raise ArgumentError(f"answer {number} of {len(turns)} is None; only the last one may be")
        parts.append(render_question(template, question, image_count if number == 1 else 0))
        if answer is not None:
            _check_text("answer", number, answer)
            parts.append(answer)
    prompt = "".join(parts)
    slots = prompt.count(IMAGE_SLOT)
    if slots != image_count:
        raise ArgumentError(
            f"template {template.name!r} gives {slots} {IMAGE_SLOT} for {image_count} images; expected one each"
        )
    return prompt


def render_question(template: PromptTemplate, question: str, image_count: int = 0) -> str:
    """Write one question, with the images before it, up to where its answer begins; both must have been checked."""
    return f"{template.user}{template.image * image_count}{question}{template.assistant}"


def encode_segments(tokenizer: Tokenizer, prompt: str) -> list[list[int]]:
    """Cut a prompt at each ``<ImageHere>`` and tokenise the pieces, each on its own, as the published code does.

    Args:
        tokenizer: The bundle's tokenizer.
        prompt: What :func:`render` gave.

    Returns:
        The pieces' token ids, one list more than there are pictures; no special tokens are added.
    """
    return [tokenizer.encode(segment, add_special_tokens=False).ids for segment in prompt.split(IMAGE_SLOT)]


def _check_text(role: str, number: int, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{role} {number} is of type {type(text).__name__}; expected a string")
    if IMAGE_SLOT in text:
        raise ArgumentError(
            f"{role} {number} holds {IMAGE_SLOT}, the mark where a picture is put in: write it another way"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{role} {number} is not valid Unicode ({error}); expected text without lone surrogates"
        ) from error
