"""``memory="low"``: each graph open only while it is needed, with the same answers, from any number of threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import QUESTION
from PIL import Image
from tinygptv.runtime import ArgumentError, TinyGPTV, TinyGPTVError, open_sessions
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER

TAGGED = "[caption] what?"


class Sessions:
    """Which sessions were opened, and which of them are alive."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._alive: dict[int, weakref.ref[object]] = {}
        self.most_alive = 0

    def note(self, name: str, session: object) -> None:
        self.opened.append(name)
        self._alive[len(self.opened)] = weakref.ref(session)
        self.most_alive = max(self.most_alive, len(self.alive()))

    def alive(self) -> list[str]:
        gc.collect()
        return [self.opened[number - 1] for number, reference in self._alive.items() if reference() is not None]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    seen = Sessions()
    opened = open_sessions.open_session

    def noting(folder, graph, *arguments):
        session = opened(folder, graph, *arguments)
        seen.note(graph.file.removesuffix(".onnx"), session)
        return session

    monkeypatch.setattr(open_sessions, "open_session", noting)
    return seen


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path]) -> Path:
    return golden_bundle(3, "fp32")


@pytest.fixture
def model(bundle: Path, sessions: Sessions) -> Iterator[TinyGPTV]:
    with TinyGPTV.load(bundle, memory="low") as model:
        yield model


@pytest.fixture
def another(photo: Path) -> Image.Image:
    """Another picture."""
    with Image.open(photo) as picture:
        return picture.transpose(Image.Transpose.ROTATE_180)


def test_one_graph_at_a_time(
    model: TinyGPTV, sessions: Sessions, photo: Path, another: Image.Image, speaking_model: TinyGPTV
) -> None:
    assert sessions.opened == []  # loading opens none
    image = model.encode_image(photo)
    assert sessions.opened == [VISION_ENCODER, PROJECTOR]
    assert sessions.alive() == [PROJECTOR]
    answer = model.ask(image, QUESTION, max_new_tokens=12)
    assert sessions.opened == [VISION_ENCODER, PROJECTOR, DECODER]
    assert sessions.alive() == [DECODER]
    assert answer.token_ids == speaking_model.ask(photo, QUESTION, max_new_tokens=12).token_ids
    model.ask(image, TAGGED, max_new_tokens=3)
    assert sessions.opened.count(DECODER) == 1  # it stays for the next question
    model.ask(photo, QUESTION, max_new_tokens=3)
    assert sessions.opened == [VISION_ENCODER, PROJECTOR, DECODER]  # nor is the same image encoded twice
    model.ask(another, QUESTION, max_new_tokens=3)
    assert sessions.opened == [VISION_ENCODER, PROJECTOR, DECODER] * 2
    assert sessions.most_alive == 1


def test_opening_is_part_of_what_it_is_opened_for(
    model: TinyGPTV, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_sessions.open_session

    def slow(*arguments):
        threading.Event().wait(0.2)
        return opened(*arguments)

    monkeypatch.setattr(open_sessions, "open_session", slow)
    timings = model.ask(photo, QUESTION, max_new_tokens=3).timings
    assert min(timings.image_encode, timings.projector, timings.prefill) > 0.2


def test_default_keeps_all_open(bundle: Path, sessions: Sessions, photo: Path) -> None:
    with TinyGPTV.load(bundle) as model:
        assert sorted(sessions.alive()) == sorted([VISION_ENCODER, PROJECTOR, DECODER])
        for _ in range(2):
            model.ask(photo, QUESTION, max_new_tokens=3)
        assert len(sessions.opened) == 3
    assert sessions.alive() == []


def test_an_answer_keeps_its_graph_while_an_image_is_encoded(
    model: TinyGPTV, sessions: Sessions, photo: Path, another: Image.Image, speaking_model: TinyGPTV
) -> None:
    image = model.encode_image(photo)
    stream = model.stream(image, QUESTION, max_new_tokens=12)
    next(stream)
    model.encode_image(another)
    assert sorted(sessions.alive()) == sorted([DECODER, PROJECTOR])
    assert stream.answer.text == speaking_model.ask(photo, QUESTION, max_new_tokens=12).text
    assert sessions.alive() == [PROJECTOR]


def test_many_questions_are_all_seen_before_any_is_answered(
    model: TinyGPTV, sessions: Sessions, photo: Path, speaking_model: TinyGPTV
) -> None:
    questions = [(photo, QUESTION), (photo, TAGGED), (photo, "why?")]
    found = model.ask_many(questions, max_new_tokens=5, batch_size=2)
    wanted = speaking_model.ask_many(questions, max_new_tokens=5, batch_size=2)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert all(answer.timings.image_encode > 0 for answer in found)
    assert sessions.opened.count(DECODER) == 1
    assert sessions.most_alive == 1


def test_threads_share_it(model: TinyGPTV, sessions: Sessions, photo: Path, speaking_model: TinyGPTV) -> None:
    questions = [QUESTION, TAGGED, "why?"] * 3
    wanted = [speaking_model.ask(photo, question, max_new_tokens=6).token_ids for question in questions]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda question: model.ask(photo, question, max_new_tokens=6).token_ids, questions)
        assert list(found) == wanted
    assert len(sessions.alive()) == 1


def test_closed(bundle: Path, sessions: Sessions, photo: Path) -> None:
    with TinyGPTV.load(bundle, memory="low") as model:
        image = model.encode_image(photo)
        running = model.stream(image, QUESTION, max_new_tokens=3)
    for use in (lambda: model.encode_image(photo), lambda: model.ask(image, QUESTION)):
        with pytest.raises(TinyGPTVError, match="this model was closed"):
            use()
    assert running.answer.token_ids
    del running
    assert sessions.alive() == []


@pytest.mark.parametrize("memory", ["Low", "", "high", None, 1])
def test_another_word(bundle: Path, memory: object) -> None:
    with pytest.raises(ArgumentError, match=r"memory is .*; expected one of default, low"):
        TinyGPTV.load(bundle, memory=memory)
