"""What a model is asked to measure it, and the figures that come of its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pictures import Split
from questions import box_text, caption, group_of

_BOX = re.compile(r"\{<(\d+)><(\d+)><(\d+)><(\d+)>\}")


@dataclass(frozen=True)
class Item:
    """One question to ask of one picture."""

    picture: int
    """Row of the picture in its split."""
    group: str
    """``open``, ``yes``, ``no``, ``negated yes``, ``negated no``, ``caption``, ``refer`` or ``detection``."""
    question: str
    expected: str


def package_items(split: Split, tags: Sequence[str] = ("[vqa] ",)) -> list[Item]:
    """Lists the package's questions of a split, put behind each of the tags in turn."""
    rows = {name: row for row, name in enumerate(split.paths)}
    return [
        Item(
            picture=rows[question.picture],
            group=group_of(question.text, question.answer),
            question=tags[index % len(tags)] + question.text,
            expected=question.answer,
        )
        for index, question in enumerate(split.questions)
    ]


def derived_items(split: Split) -> list[Item]:
    """Lists a caption and two boxes to ask for of each picture of a split."""
    items = []
    for row, scene in enumerate(split.scenes):
        name = f"{scene.colour} {scene.shape}"
        items += [
            Item(row, "caption", "[caption] describe the image", caption(scene)),
            Item(row, "refer", f"[refer] give me the location of the {name}", box_text(scene)),
            Item(row, "detection", f"[detection] {scene.shape}", f"<p>{name}</p> {box_text(scene)}"),
        ]
    return items


def score(items: Sequence[Item], answers: Sequence[str]) -> dict[str, float]:
    """Gives accuracies (0 to 1) of the package's questions and captions, and the boxes' mean overlap.

    Only the same text is right. A box's overlap is intersection over union, 0 where an answer has no box.
    """
    right: dict[str, list[bool]] = {}
    overlaps: dict[str, list[float]] = {"refer": [], "detection": []}
    for item, answer in zip(items, answers, strict=True):
        if item.group in overlaps:
            overlaps[item.group].append(box_overlap(answer, item.expected))
            continue
        groups = [item.group]
        if item.group != "caption":
            groups.append("overall")
        if item.group not in ("caption", "open"):
            groups.append("yes/no")
            if item.group.startswith("negated"):
                groups.append("negated")
        for group in groups:
            right.setdefault(group, []).append(answer == item.expected)
    names = ("overall", "yes/no", "negated", "open", "caption")
    figures = {name: sum(right[name]) / len(right[name]) for name in names if name in right}
    figures |= {f"{name} iou": sum(found) / len(found) for name, found in overlaps.items() if found}
    return figures


def box_overlap(answer: str, expected: str) -> float:
    """Gives the intersection over union of the boxes in two answers."""
    found, true = _BOX.search(answer), _BOX.search(expected)
    if found is None or true is None:
        return 0.0
    return intersection_over_union([int(edge) for edge in found.groups()], [int(edge) for edge in true.groups()])


def intersection_over_union(first: Sequence[float], second: Sequence[float]) -> float:
    """Gives the overlap of two boxes (left, top, right, bottom), 0 to 1; a box turned inside out overlaps nothing."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (first, second)]
    return common / (sum(areas) - common) if common else 0.0
