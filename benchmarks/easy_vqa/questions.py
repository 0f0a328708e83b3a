"""What is asked of a picture in training, and the right answers.

The package's own questions come first: what was asked of one training picture may be asked of every picture with the
same shape and colour. The other tasks of the published model (captions, boxes) and a few everyday wordings are
templates over what a picture shows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pictures import COLOURS, SHAPES, Scene, Split


@dataclass(frozen=True)
class Turn:
    """A question as the user writes it, task tag included, and its answer."""

    question: str
    answer: str


GROUP_SHARES = {"open": 0.2, "yes": 0.15, "no": 0.15, "negated yes": 0.25, "negated no": 0.25}
"""How often each kind of the package's questions is drawn; negated ones take longest to learn."""


class QuestionBank:
    """The package's training questions, by what their picture shows."""

    def __init__(self, split: Split) -> None:
        scenes = dict(zip(split.paths, split.scenes, strict=True))
        found: defaultdict[tuple[str, str, str], set[Turn]] = defaultdict(set)
        for question in split.questions:
            scene = scenes[question.picture]
            turn = Turn(question.text, question.answer)
            found[scene.shape, scene.colour, group_of(question.text, question.answer)].add(turn)
        self._turns = {key: sorted(turns, key=lambda turn: turn.question) for key, turns in found.items()}

    def draw(self, scene: Scene, rng: np.random.Generator) -> Turn:
        """Draws a question of any kind that fits the scene."""
        group = rng.choice(list(GROUP_SHARES), p=list(GROUP_SHARES.values()))
        return _pick(self._turns[scene.shape, scene.colour, str(group)], rng)


def group_of(question: str, answer: str) -> str:
    """Names the kind of one of the package's questions: open, or its yes or no, negated or not."""
    if answer not in ("yes", "no"):
        return "open"
    negated = not {"no", "not"}.isdisjoint(question.split())
    return f"negated {answer}" if negated else answer


def caption(scene: Scene) -> str:
    """Says what a scene shows, such as ``a red circle``."""
    return f"a {scene.colour} {scene.shape}"


def box_text(scene: Scene) -> str:
    """Writes a scene's box as the published model does, such as ``{<25><30><60><70>}``."""
    return "{" + "".join(f"<{edge}>" for edge in scene.percent_box) + "}"


def draw_conversation(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> list[Turn]:
    """Draws one question, or now and then the last one of a chat after one or two others."""
    turns = 1 if rng.random() < 0.93 else int(rng.integers(2, 4))
    return [draw_turn(scene, bank, rng) for _ in range(turns)]


def draw_turn(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    """Draws one question of any task."""
    task = rng.choice(list(_TASKS), p=[share for share, _ in _TASKS.values()])
    return _TASKS[str(task)][1](scene, bank, rng)


_Option = TypeVar("_Option")


def _pick(options: list[_Option], rng: np.random.Generator) -> _Option:
    return options[rng.integers(len(options))]


def _asked(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    turn = bank.draw(scene, rng)
    return Turn(_tagged("[vqa]", turn.question, rng), turn.answer)


def _everyday(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    """Asks the same in other words than the package's, and of shape and colour together."""
    if rng.random() < 0.35:
        answer = _pick([scene.shape, scene.colour], rng)
        question = _pick(_SHAPE_QUESTIONS if answer == scene.shape else _COLOUR_QUESTIONS, rng)
    else:
        # Half the claims are right; a wrong one of both may be wrong in either.
        claims = [
            (colour, shape)
            for colour in (scene.colour, _pick([name for name in COLOURS if name != scene.colour], rng))
            for shape in (scene.shape, _pick([name for name in SHAPES if name != scene.shape], rng))
        ]
        colour, shape = claims[0] if rng.random() < 0.5 else _pick(claims[1:], rng)
        kind = _pick([f"a {colour} {shape}", colour, f"a {shape}"], rng)
        right = (colour == scene.colour or colour not in kind) and (shape == scene.shape or shape not in kind)
        template, negated = _pick(_CLAIM_QUESTIONS if kind.startswith("a ") else _ADJECTIVE_QUESTIONS, rng)
        question = template.format(kind)
        answer = "yes" if right != negated else "no"
    return Turn(_tagged("[vqa]", question, rng), answer)


def _captioned(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    if rng.random() < 0.4:
        return Turn("[caption]", caption(scene))
    return Turn(_tagged("[caption]", _pick(_CAPTION_INSTRUCTIONS, rng), rng), caption(scene))


def _located(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    question = _pick(_LOCATION_REQUESTS, rng).format(_pick(_names(scene), rng))
    tag = "[refer] " if not question.endswith("?") or rng.random() < 0.6 else ""
    return Turn(tag + question, box_text(scene))


def _detected(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    return Turn(f"[detection] {_pick(_names(scene), rng)}", f"<p>{scene.colour} {scene.shape}</p> {box_text(scene)}")


def _grounded(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    question = f"[grounding] {_pick(_CAPTION_INSTRUCTIONS, rng)}"
    return Turn(question, f"<p>{caption(scene)}</p> {box_text(scene)}")


def _identified(scene: Scene, bank: QuestionBank, rng: np.random.Generator) -> Turn:
    question = _pick(["", "what is this ", "what is "], rng) + box_text(scene)
    return Turn(f"[identify] {question}", caption(scene))


def _names(scene: Scene) -> list[str]:
    return [f"{scene.colour} {scene.shape}", scene.shape, f"{scene.colour} shape", "shape"]


def _tagged(tag: str, question: str, rng: np.random.Generator) -> str:
    """Writes a question as people do: with or without its tag, now and then with a capital or no question mark."""
    if rng.random() < 0.1:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.1:
        question = question.removesuffix("?")
    return f"{tag} {question}" if rng.random() < 0.5 else question


_SHAPE_QUESTIONS = ["what shape is this?", "what shape is it?", "which shape is it?", "what kind of shape is this?"]
_COLOUR_QUESTIONS = ["what color is it?", "what color is this?", "what colour is it?", "which color is the shape?"]
_CLAIM_QUESTIONS = [
    ("is it {}?", False),
    ("is this {}?", False),
    ("is there {}?", False),
    ("is there {} in the image?", False),
    ("is the shape {}?", False),
    ("is it not {}?", True),
    ("is this not {}?", True),
]
_ADJECTIVE_QUESTIONS = [
    ("is it {}?", False),
    ("is the shape {}?", False),
    ("is this {}?", False),
    ("is it not {}?", True),
    ("is the shape not {}?", True),
]
_CAPTION_INSTRUCTIONS = [
    "describe the image",
    "describe this image",
    "describe the picture",
    "what is this?",
    "what is in the image?",
    "what is in the picture?",
    "what do you see?",
    "what does the image show?",
    "give a short caption",
]
_LOCATION_REQUESTS = [
    "give me the location of the {}",
    "where is the {}?",
    "the {}",
    "{}",
]

_TASKS = {
    "asked": (0.54, _asked),
    "everyday": (0.11, _everyday),
    "captioned": (0.1, _captioned),
    "located": (0.12, _located),
    "detected": (0.07, _detected),
    "grounded": (0.03, _grounded),
    "identified": (0.03, _identified),
}
"""Each task's share of the questions drawn, and what draws it."""
