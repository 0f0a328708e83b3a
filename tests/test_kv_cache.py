"""The cache's buffers: room made in steps, contents kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygptv.runtime.bundle.contract import Contract
from tinygptv.runtime.language import kv_cache
from tinygptv.runtime.language.kv_cache import KVCache

CONTEXT = 50
CONTRACT = Contract(
    image_size=28,
    image_tokens=4,
    hidden_size=12,
    vocab_size=10,
    layers=2,
    heads=3,
    head_dim=4,
    context=CONTEXT,
    cache_dtype="float32",
)


def append(cache: KVCache, positions: int, random: np.random.Generator) -> np.ndarray:
    """Write new positions as the graph does; returns them, [buffers, heads, positions, head_dim]."""
    new = random.standard_normal((len(cache.buffers), 3, positions, 4)).astype(np.float32)
    for buffer, values in zip(cache.buffers, new, strict=True):
        buffer[0, :, cache.length : cache.length + positions] = values
    cache.length += positions
    return new


def test_an_empty_cache_takes_no_memory() -> None:
    cache = KVCache(CONTRACT)
    assert (cache.length, cache.capacity, cache.nbytes) == (0, 0, 0)
    assert [buffer.shape for buffer in cache.buffers] == [(1, 3, 0, 4)] * 4


@given(steps=st.lists(st.integers(1, 20)), growth=st.integers(1, 2 * CONTEXT))
def test_room_grows_in_steps_and_contents_stay(steps: list[int], growth: int) -> None:
    random = np.random.default_rng(0)
    cache = KVCache(CONTRACT)
    written = np.zeros((4, 3, 0, 4), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "GROWTH", growth)
        for positions in steps:
            if cache.length + positions > CONTEXT:
                break
            before, room = list(cache.buffers), cache.capacity
            grown = cache.reserve(positions)
            same = [new is old for new, old in zip(cache.buffers, before, strict=True)]
            needed = cache.length + positions
            assert grown == (needed > room)
            assert same == [not grown] * 4
            if grown:
                # The least multiple of the step that suffices, but never more than the context.
                assert cache.capacity == min(CONTEXT, next(n for n in range(growth, 999, growth) if n >= needed))
            written = np.concatenate([written, append(cache, positions, random)], axis=2)
            assert np.array_equal(np.stack(cache.buffers)[:, 0, :, : cache.length], written)
            assert cache.nbytes == 4 * 3 * cache.capacity * 4 * 4


def test_more_than_the_context_is_refused_and_changes_nothing() -> None:
    cache = KVCache(CONTRACT)
    cache.reserve(CONTEXT - 1)
    written = append(cache, CONTEXT - 1, np.random.default_rng(0))
    before = list(cache.buffers)
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} positions do not fit in a context of {CONTEXT}"):
        cache.reserve(2)
    assert all(new is old for new, old in zip(cache.buffers, before, strict=True))
    assert np.array_equal(np.stack(before)[:, 0, :, : CONTEXT - 1], written)
    assert not cache.reserve(1)  # the last place is still free


@pytest.mark.parametrize(("length", "capacity"), [(39, 40), (21, 40), (20, 20), (0, 0)])
def test_room_is_given_back_where_that_is_half_of_it(
    length: int, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of most of a long prompt's cache would take more than it gives back while both are held."""
    monkeypatch.setattr(kv_cache, "GROWTH", 10)
    cache = KVCache(CONTRACT)
    cache.reserve(39)
    written = append(cache, 39, np.random.default_rng(0))
    cache.rewind(length)
    cache.shrink()
    assert cache.capacity == capacity
    assert np.array_equal(np.stack(cache.buffers)[:, 0, :, :length], written[:, :, :length])


def test_a_step_is_what_the_documentation_says() -> None:
    phi2 = replace(CONTRACT, layers=32, heads=32, head_dim=80, context=2048, cache_dtype="float16")
    assert round(kv_cache.GROWTH * phi2.cache_bytes_per_position / 1e6) == 42
    assert round(kv_cache.GROWTH * replace(phi2, cache_dtype="int8").cache_bytes_per_position / 1e6) == 21


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_the_contract_says_what_a_position_takes(dtype: str) -> None:
    contract = replace(CONTRACT, cache_dtype=dtype)
    cache = KVCache(contract)
    cache.reserve(7)
    assert {str(buffer.dtype) for buffer in cache.buffers} == {dtype}
    assert cache.nbytes == cache.capacity * contract.cache_bytes_per_position
