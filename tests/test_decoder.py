"""The decoder's graph with its cache: however a sequence is fed, the logits are the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime import RunOptions
from tinygptv.runtime import Cancellation, CancellationError, TinyGPTV
from tinygptv.runtime.bundle.manifest import DECODER, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.language import decoder as decoder_module
from tinygptv.runtime.language import kv_cache
from tinygptv.runtime.language.decoder import ALL_LOGITS, Decoder, DecoderState
from tinygptv.runtime.language.kv_cache import KVCache

CLOSE = 1e-4
"""Largest difference of logits, relative to their standard deviation, in fp32."""
CLOSE_INT8 = 0.05
"""In int8, where a difference in the last bit can send one activation to the next of its 255 levels: less than int8
itself is off by."""
Case = tuple[Decoder, np.ndarray, float]
VARIANTS = [(3, "fp32", CLOSE), (4, "fp32", CLOSE), (4, "int8", CLOSE_INT8), (4, "int8 cache", CLOSE_INT8)]
EVERY_WAY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: f"stage{variant[0]}-{variant[1]}")
def case(
    request: pytest.FixtureRequest,
    golden_bundle: Callable[[int, str], Path],
    expected: Callable[[int], dict[str, np.ndarray]],
) -> Case:
    """A decoder, the golden prompt for it, float32 [1, 22, hidden], and how close its logits must be."""
    stage, precision, close = request.param
    return open_decoder(golden_bundle(stage, precision)), expected(stage)["inputs_embeds"], close


@pytest.fixture(scope="module")
def decoder(golden_bundle: Callable[[int, str], Path]) -> Decoder:
    """Stage 4 in fp32, with a context of 256."""
    return open_decoder(golden_bundle(4, "fp32"))


@pytest.fixture(scope="module")
def prompt(expected: Callable[[int], dict[str, np.ndarray]]) -> np.ndarray:
    """The golden prompt of stage 4."""
    return expected(4)["inputs_embeds"]


def open_decoder(folder: Path) -> Decoder:
    manifest = read_manifest(folder)
    return Decoder(open_session(folder, manifest.graphs[DECODER], threads=1), manifest.contract)


def random_embeds(decoder: Decoder, positions: int, seed: int = 0) -> np.ndarray:
    shape = (1, positions, decoder.contract.hidden_size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray, close: float = CLOSE) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() / wanted.std() < close


@EVERY_WAY
@given(cuts=st.sets(st.integers(1, 21)), growth=st.integers(1, 64))
def test_any_chunking_gives_the_logits_of_the_whole(case: Case, cuts: set[int], growth: int) -> None:
    decoder, prompt, close = case
    whole = decoder.start().run(prompt, ALL_LOGITS)
    state = decoder.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "GROWTH", growth)
        chunks = np.split(prompt, sorted(cuts), axis=1)
        logits = [state.run(chunk, ALL_LOGITS).copy() for chunk in chunks]
    assert_close(np.concatenate(logits), whole, close)


def test_one_by_one_gives_the_logits_of_the_whole(case: Case) -> None:
    decoder, prompt, close = case
    whole = decoder.start().run(prompt, ALL_LOGITS)
    state = decoder.start()
    logits = [state.run(prompt[:, i : i + 1]).copy() for i in range(prompt.shape[1])]
    assert_close(np.concatenate(logits), whole, close)


@EVERY_WAY
@given(piece=st.integers(1, 21))
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(case: Case, piece: int) -> None:
    decoder, prompt, close = case
    whole, pieces = decoder.start(), decoder.start()
    wanted = whole.run(prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_module, "PIECE", piece)
        found = pieces.run(prompt)
    assert_close(found, wanted, close)
    assert pieces.cache.length == prompt.shape[1]
    assert_close(pieces.run(prompt[:, :1]), whole.run(prompt[:, :1]), close)  # what was left in the cache


class Pieces(Cancellation):
    """Notes how long a sequence is when each of its runs begins; cancels itself in the middle of one of them."""

    def __init__(self, state: DecoderState, cancelled: int | None = None) -> None:
        super().__init__()
        self._state, self._cancelled = state, cancelled
        self.begun: list[int] = []

    @contextmanager
    def stopping(self, options: RunOptions) -> Iterator[None]:
        with super().stopping(options):
            self.begun.append(self._state.cache.length)
            if len(self.begun) == self._cancelled:
                self.cancel()
            yield


@pytest.mark.parametrize(
    ("positions", "begun"),
    [(8, [0]), (9, [0, 5]), (17, [0, 6, 12]), (20, [0, 7, 14])],
)
def test_no_piece_is_a_position_alone(
    positions: int, begun: list[int], decoder: Decoder, prompt: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Int8 would round it in another way."""
    monkeypatch.setattr(decoder_module, "PIECE", 8)
    state = decoder.start()
    state.run(prompt[:, :positions], cancellation=(pieces := Pieces(state)))
    assert pieces.begun == begun


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_prompt_cancelled_in_any_of_its_pieces_leaves_the_sequence_as_it_was(
    number: int, decoder: Decoder, prompt: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "PIECE", 8)
    state, undisturbed = decoder.start(), decoder.start()
    for each in (state, undisturbed):
        each.run(prompt)
    pieces = Pieces(state, cancelled=number)
    with pytest.raises(CancellationError):
        state.run(random_embeds(decoder, 20), cancellation=pieces)
    assert len(pieces.begun) == number
    assert state.cache.length == prompt.shape[1]
    assert np.array_equal(state.run(prompt), undisturbed.run(prompt))


def test_only_the_last_positions_logits_unless_asked(decoder: Decoder, prompt: np.ndarray) -> None:
    every = decoder.start().run(prompt, ALL_LOGITS)
    assert every.shape == (prompt.shape[1], decoder.contract.vocab_size)
    assert_close(decoder.start().run(prompt), every[-1:])
    assert_close(decoder.start().run(prompt, 3), every[-3:])
    assert_close(decoder.start().run(prompt, 999), every)  # no more than there are


def test_the_cache_keeps_its_content_when_it_grows(
    decoder: Decoder, prompt: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH", 8)
    state = decoder.start()
    capacities = []
    for i in range(prompt.shape[1]):
        before, length = list(state.cache.buffers), state.cache.length
        state.run(prompt[:, i : i + 1])
        capacities.append(state.cache.capacity)
        for old, new in zip(before, state.cache.buffers, strict=True):
            assert np.array_equal(old[:, :, :length], new[:, :, :length])
    assert capacities == [8] * 8 + [16] * 8 + [24] * 6


def test_the_graph_writes_into_the_cache_itself(decoder: Decoder, prompt: np.ndarray) -> None:
    """Past and present share memory: nothing is copied while there is room."""
    state = decoder.start()
    state.run(prompt)
    buffers, length = list(state.cache.buffers), state.cache.length
    before = [buffer.copy() for buffer in buffers]
    state.run(prompt[:, -1:])
    assert state.cache.length == length + 1
    for buffer, now, old in zip(buffers, state.cache.buffers, before, strict=True):
        assert now is buffer
        assert np.array_equal(buffer[:, :, :length], old[:, :, :length])
        assert not old[:, :, length].any() and buffer[:, :, length].all()  # the new position
        assert not buffer[:, :, length + 1 :].any()  # and no other


def test_the_graph_reads_the_cache_itself(decoder: Decoder, prompt: np.ndarray) -> None:
    twins = [decoder.start(), decoder.start()]
    for state in twins:
        state.run(prompt)
    twins[1].cache.buffers[1][:, :, 3] += 1.0  # one position's values in the first layer
    kept, changed = (state.run(prompt[:, -1:]) for state in twins)
    assert np.abs(kept - changed).max() > 100 * CLOSE * kept.std()


def test_the_whole_context_can_be_filled_and_not_a_position_more(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH", 48)  # 256 is no multiple of it
    context = decoder.contract.context
    embeds = random_embeds(decoder, context)
    state = decoder.start()
    state.run(embeds[:, : context - 1])
    assert state.cache.capacity == context
    logits = state.run(embeds[:, context - 1 :]).copy()
    assert_close(logits, decoder.start().run(embeds))
    buffers = list(state.cache.buffers)
    with pytest.raises(ValueError, match=f"{context + 1} positions do not fit in a context of {context}"):
        state.run(embeds[:, :1])
    assert state.cache.length == context
    assert all(now is before for now, before in zip(state.cache.buffers, buffers, strict=True))


def test_a_refused_run_leaves_the_sequence_as_it_was(decoder: Decoder, prompt: np.ndarray) -> None:
    state, undisturbed = decoder.start(), decoder.start()
    state.run(prompt)
    undisturbed.run(prompt)
    with pytest.raises(ValueError, match="do not fit"):
        state.run(random_embeds(decoder, decoder.contract.context))
    with pytest.raises(ValueError, match="inputs_embeds"):
        state.run(prompt[0])
    assert np.array_equal(state.run(prompt[:, :1]), undisturbed.run(prompt[:, :1]))


@pytest.mark.parametrize("shape", [(160,), (22, 160), (2, 3, 160), (1, 3, 159), (1, 0, 160), (1, 1, 3, 160), ()])
def test_bad_shapes(decoder: Decoder, shape: tuple[int, ...]) -> None:
    state = decoder.start()
    with pytest.raises(ValueError, match=r"inputs_embeds .*expected"):
        state.run(np.zeros(shape, np.float32))
    assert state.cache.length == 0


@pytest.mark.parametrize("max_new_tokens", [1, 2, 9])
def test_only_new_positions_are_fed(speaking_model: TinyGPTV, photo: Path, fed: list[int], max_new_tokens: int) -> None:
    """The prompt once, then one position a token: no past token is ever computed again."""
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=max_new_tokens)
    assert len(answer.token_ids) == max_new_tokens
    assert fed == [answer.prompt_tokens] + [1] * (max_new_tokens - 1)
    assert sum(fed) == answer.prompt_tokens + len(answer.token_ids) - 1


def test_a_growing_cache_feeds_nothing_again(
    speaking_model: TinyGPTV, photo: Path, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_piece = speaking_model.ask(photo, QUESTION, max_new_tokens=30)
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    grown: list[int] = []
    original = KVCache._grown

    def counting(cache: KVCache, old: np.ndarray, capacity: int) -> np.ndarray:
        grown.append(capacity)
        return original(cache, old, capacity)

    monkeypatch.setattr(KVCache, "_grown", counting)
    monkeypatch.setattr(KVCache, "shrink", lambda cache: None)
    fed.clear()
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=30)
    assert answer.token_ids == in_one_piece.token_ids
    assert fed == [answer.prompt_tokens] + [1] * 29
    # 35 + 29 positions: the first room is for 36, then four more at a time, each buffer copied once a step.
    assert sorted(set(grown)) == list(range(36, 65, 4))
    assert len(grown) == len(set(grown)) * 2 * speaking_model.manifest.contract.layers


def test_two_sequences_in_turn_do_not_disturb_each_other(case: Case) -> None:
    decoder, prompt, _ = case
    other = random_embeds(decoder, 30)

    def alone(embeds: np.ndarray) -> list[np.ndarray]:
        state = decoder.start()
        return [state.run(embeds[:, start : start + 5]).copy() for start in range(0, 20, 5)]

    wanted = alone(prompt), alone(other)
    states = decoder.start(), decoder.start()
    for i, start in enumerate(range(0, 20, 5)):
        logits = [
            state.run(embeds[:, start : start + 5]) for state, embeds in zip(states, (prompt, other), strict=True)
        ]
        assert np.array_equal(logits[0], wanted[0][i])
        assert np.array_equal(logits[1], wanted[1][i])


def test_two_threads_share_a_model(speaking_model: TinyGPTV, photo: Path) -> None:
    questions = (QUESTION, "how many?", "[caption]", "why")
    alone = {question: speaking_model.ask(photo, question, max_new_tokens=60).token_ids for question in questions}
    assert len(set(alone.values())) == len(questions)
    together: list[tuple[str, tuple[int, ...]]] = []
    start = threading.Barrier(len(questions))

    def ask(question: str) -> None:
        start.wait()
        for _ in range(3):
            together.append((question, speaking_model.ask(photo, question, max_new_tokens=60).token_ids))

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(together) == sorted((question, ids) for question, ids in alone.items() for _ in range(3))
