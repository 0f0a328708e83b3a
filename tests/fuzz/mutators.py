"""Ways to spoil bytes and JSON, drawn from a random.Random, so that a seed gives the same inputs again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

MOST_CHANGES = 4
ODD_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, -(2**63), 10**30)
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS,
    *(None, True, False, 0.5, -0.0, 1e308, 1e-320, "", " ", "\x00", "\x1b[2J", "a\nb", "é語🎈", "\ud800", [], {}),
    *("x" * 5000, "../../etc/passwd", "<ImageHere>", "{<1><2><3><4>}", [[[[]]]], {"type": "text"}, ["a", 1]),
)


def spoilt_bytes(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One or a few changes; ``other`` is a second input, of which a part may be put in."""
    for _ in range(draw.randint(1, MOST_CHANGES)):
        data = draw.choice(_OF_BYTES)(data, other, draw)
    return data


def _flip(data: bytes, other: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) or 1)
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :] if data else data


def _number(data: bytes, other: bytes, draw: random.Random) -> bytes:
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    value = draw.choice(ODD_NUMBERS) % (1 << 8 * size)
    place = draw.randrange(max(1, len(data) - size))
    return data[:place] + value.to_bytes(size, order) + data[place + size :]  # type: ignore[arg-type]


def _cut(data: bytes, other: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _without(data: bytes, other: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[last:]


def _twice(data: bytes, other: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:last] + data[first:last][:4096] + data[last:]


def _zeros(data: bytes, other: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + bytes(last - first) + data[last:]


def _noise(data: bytes, other: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.randbytes(draw.randint(1, 64)) + data[place:]


def _spliced(data: bytes, other: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


_OF_BYTES: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _flip, _number, _number),
    *(_cut, _without, _twice, _zeros, _noise, _spliced),
)


def spoilt_json(document: Any, draw: random.Random) -> Any:
    """A copy of what json.loads gave, with one or a few values changed, taken out, put in or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, MOST_CHANGES)):
        places = list(_places(document))
        if not places:
            return _odd_value(draw)
        holder, key = draw.choice(places)
        way = draw.randrange(6)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[draw.choice(("", "extra", "__class__", str(key).upper()))] = _odd_value(draw)
        elif way == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif way == 3:
            from_holder, from_key = draw.choice(places)
            if from_holder is not holder and _is_plain(from_holder[from_key]):
                holder[key] = from_holder[from_key]
        else:
            holder[key] = _odd_value(draw)
    return document


def _odd_value(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(ODD_VALUES))  # it may be spoilt in its turn


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _places(document: Any) -> Any:
    """(holder, key) of every value within."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        for key in range(len(holder)) if isinstance(holder, list) else list(holder) if isinstance(holder, dict) else ():
            yield holder, key
            if not _is_plain(holder[key]):
                waiting.append(holder[key])


def as_text(document: Any, draw: random.Random) -> str:
    """As JSON; now and then with its text spoilt, too."""
    text = json.dumps(document, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.1:
        place = draw.randrange(len(text) + 1)
        text = text[:place] + draw.choice(("", "[" * 5000, "NaN", "1e999", '"', "\x00", ",")) + text[place + 1 :]
    return text
