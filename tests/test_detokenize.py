"""Streaming text from token ids, against the tokenizer's own decoding of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.runtime.language.detokenize import Detokenizer
from tokenizers import AddedToken, Tokenizer, models

HERE = Path(__file__).parent
TOKENIZER = build_tokenizer(HERE / "tokenizer", 51200)
BYTES = st.integers(0, 255)  # GPT-2's first 256 ids are the single bytes
IDS = st.lists(BYTES | st.integers(0, 51199) | st.sampled_from([21017, 2, 220, 50256, 50286, 50294, 447]), max_size=40)
STOPS = st.lists(
    st.sampled_from(["###", "##", "#", "###Human", "\n", "aab", "aabaaac", "ab", "bc", "abcd", "\ufffd", "é", " "])
    | st.text(min_size=1, max_size=4),
    max_size=3,
)


def decoded(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def cut(text: str, stop_strings: list[str]) -> tuple[str, bool]:
    """``text`` before the stop string completed first, the longest of those, and whether there is one."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stop_strings if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def streamed(ids: list[int], stop_strings: list[str]) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(TOKENIZER, stop_strings)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    return [*pieces, detokenizer.finish()], detokenizer.stopped


def ids_of(text: str, data: st.DataObject) -> list[int]:
    """Ids for ``text``, in some pieces of BPE and some of single bytes."""
    ids = []
    while text:
        size = data.draw(st.integers(1, len(text)))
        piece, text = text[:size], text[size:]
        whole = TOKENIZER.encode(piece).ids
        ids += whole if data.draw(st.booleans()) else [BYTE_IDS[byte] for byte in piece.encode()]
    return ids


BYTE_IDS = {(33 + i if i < 94 else 161 + i - 94): i for i in range(94 + 12)}  # ! to ~, then ¡ to ¬
BYTE_IDS |= {174 + i: 106 + i for i in range(82)}  # ® to ÿ
BYTE_IDS |= {byte: 188 + n for n, byte in enumerate(b for b in range(256) if b not in BYTE_IDS)}


def test_the_first_256_ids_are_the_bytes() -> None:
    assert [decoded([BYTE_IDS[ord(letter)]]) for letter in "aZ #~"] == ["a", "Z", " ", "#", "~"]
    assert decoded([BYTE_IDS[byte] for byte in "🦙é¬".encode()]) == "🦙é¬"
    assert sorted(BYTE_IDS.values()) == list(range(256))


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=500)
@given(IDS)
def test_any_ids_join_to_their_decoding(ids: list[int]) -> None:
    pieces, stopped = streamed(ids, [])
    assert "".join(pieces) == decoded(ids)
    assert not stopped


@settings(deadline=None, max_examples=500)
@given(st.lists(BYTES, max_size=24))
def test_any_bytes_join_to_their_decoding(ids: list[int]) -> None:
    assert "".join(streamed(ids, [])[0]) == decoded(ids)


@settings(deadline=None, max_examples=500)
@given(IDS, STOPS, st.data())
def test_cut_at_the_first_stop_string(ids: list[int], stop_strings: list[str], data: st.DataObject) -> None:
    text = decoded(ids)
    if text and data.draw(st.booleans(), "a stop string that is surely there"):
        start = data.draw(st.integers(0, len(text) - 1))
        stop_strings = [*stop_strings, text[start : start + data.draw(st.integers(1, 5))]]
    pieces, stopped = streamed(ids, stop_strings)
    assert ("".join(pieces), stopped) == cut(text, stop_strings)


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.sampled_from("ab#é🦙\n"), max_size=30),
    st.lists(st.text("ab#é", min_size=1, max_size=5), max_size=3),
    st.data(),
)
def test_tokens_boundaries_do_not_matter(text: str, stop_strings: list[str], data: st.DataObject) -> None:
    pieces, stopped = streamed(ids_of(text, data), stop_strings)
    assert ("".join(pieces), stopped) == cut(text, stop_strings)


@settings(deadline=None, max_examples=300)
@example([BYTE_IDS[0xED], BYTE_IDS[0xA1]], [])
@given(IDS, STOPS)
def test_shows_as_much_as_is_safe_and_no_more(ids: list[int], stop_strings: list[str]) -> None:
    detokenizer = Detokenizer(TOKENIZER, stop_strings)
    shown = ""
    for count, token_id in enumerate(ids, start=1):
        shown += detokenizer.push(token_id)
        text = decoded(ids[:count])
        if detokenizer.stopped:
            assert shown == cut(text, stop_strings)[0]
            return
        assert text.startswith(shown)
        held = text[len(shown) :]
        possible = [""] + [stop[:size] for stop in stop_strings for size in range(1, len(stop))]
        # A character that more bytes may complete; after half a surrogate (ED A0 to ED BF) Python waits for one more
        # byte, although none would make it valid.
        half_surrogate = len(pending := detokenizer._utf8.getstate()[0]) == 2 and pending.startswith(b"\xed")
        incomplete = held.removesuffix("\ufffd" * (2 if half_surrogate else 1))
        assert held in possible or incomplete in possible


@settings(deadline=None, max_examples=300)
@given(IDS, STOPS, st.sampled_from([" ", "  ", "###", "é ", "aab"]), st.data())
def test_a_prefix_is_taken_off_once(ids: list[int], stop_strings: list[str], prefix: str, data: st.DataObject) -> None:
    if data.draw(st.booleans(), "the prefix is surely there"):
        ids = ids_of(prefix, data) + ids
    detokenizer = Detokenizer(TOKENIZER, stop_strings, prefix)
    shown = "".join(map(detokenizer.push, ids))
    text, stopped = cut(decoded(ids).removeprefix(prefix), stop_strings)
    assert text.startswith(shown)
    assert (shown + detokenizer.finish(), detokenizer.stopped) == (text, stopped)


# --- examples --------------------------------------------------------------------------------------------------------


def push_bytes(detokenizer: Detokenizer, text: bytes) -> list[str]:
    return [detokenizer.push(BYTE_IDS[byte]) for byte in text]


def test_a_character_split_over_tokens_is_held_back() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert push_bytes(detokenizer, "a🦙é".encode()) == ["a", "", "", "", "🦙", "", "é"]
    assert detokenizer.finish() == ""


def test_bytes_that_become_no_character() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert push_bytes(detokenizer, b"\xff\xf0\x9f\xa6a") == ["\ufffd", "", "", "", "\ufffda"]
    assert push_bytes(detokenizer, b"\xf0\x9f") == ["", ""]
    assert detokenizer.finish() == "\ufffd"


def test_a_stop_string_straddling_tokens() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["###"])
    assert push_bytes(detokenizer, b"no #1##") == ["n", "o", " ", "", "#1", "", ""]
    assert not detokenizer.stopped
    assert push_bytes(detokenizer, b"#Human") == [""] * 6
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_a_stop_string_within_one_token() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["##"])
    assert [detokenizer.push(token_id) for token_id in TOKENIZER.encode("yes###").ids] == ["yes", ""]
    assert detokenizer.stopped


def test_the_beginning_of_a_stop_string_is_given_back_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["###"])
    assert push_bytes(detokenizer, b"a##") == ["a", "", ""]
    assert detokenizer.finish() == "##"
    assert not detokenizer.stopped
    assert detokenizer.finish() == ""


def test_a_beginning_within_a_beginning() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["aab"])
    assert push_bytes(detokenizer, b"aaab") == ["", "", "a", ""]
    assert detokenizer.stopped


def test_the_stop_string_completed_first_wins_and_the_longest_of_those() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["abcd", "bc", "c"])
    assert "".join(push_bytes(detokenizer, b"xabcd")) == "xa"
    assert detokenizer.stopped

    (the,) = TOKENIZER.encode(" the").ids
    for stop_strings, shown in ((["the", "h"], " t"), (["h", "the"], " t"), (["e", "he"], " t"), (["the", "e"], " ")):
        assert "".join(streamed([the], stop_strings)[0]) == shown


def test_a_stop_string_completed_only_by_the_flush() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["\ufffd"])
    assert push_bytes(detokenizer, b"a\xf0") == ["a", ""]
    assert detokenizer.finish() == ""
    assert detokenizer.stopped


def test_a_prefix_is_held_back_no_longer_than_needed() -> None:
    (red,) = TOKENIZER.encode(" red").ids
    detokenizer = Detokenizer(TOKENIZER, ["e"], " ")
    assert detokenizer.push(red) == "r"  # a stop string is looked for behind it
    detokenizer = Detokenizer(TOKENIZER, [" "], " ")
    assert push_bytes(detokenizer, b" ") == [""] and not detokenizer.stopped
    assert push_bytes(detokenizer, b"a ") == ["a", ""] and detokenizer.stopped
    detokenizer = Detokenizer(TOKENIZER, (), "abc")
    assert push_bytes(detokenizer, b"abd") == ["", "", "abd"]
    detokenizer = Detokenizer(TOKENIZER, (), "abc")
    assert push_bytes(detokenizer, b"ab") == ["", ""]
    assert detokenizer.finish() == "ab"
    assert Detokenizer(TOKENIZER, (), " ").finish() == ""


def test_special_tokens_and_ids_beyond_the_vocabulary_have_no_text() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token_id) for token_id in (15496, 50256, 50295, 51199, 995)] == [
        "Hello",
        "",
        "",
        "",
        " world",
    ]


def test_added_tokens_are_literal_text() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens(
        [AddedToken("日本 語"), AddedToken("é")]
    )  # the second reads as a byte: É is what decode makes of it
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push(token_id) for token_id in (50286, 50295, 50294, 50296)) + detokenizer.finish()
    assert text == tokenizer.decode([50286, 50295, 50294, 50296])
    assert text.startswith("  日本 語\t\t")


def test_a_push_after_the_end_is_refused() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    detokenizer.finish()
    with pytest.raises(RuntimeError, match="finished"):
        detokenizer.push(15496)


def test_arguments_are_checked_at_once() -> None:
    with pytest.raises(TypeError, match="'###'"):
        Detokenizer(TOKENIZER, "###")
    with pytest.raises(TypeError, match="sequence of strings"):
        Detokenizer(TOKENIZER, ["###", 3])
    with pytest.raises(ValueError, match="empty"):
        Detokenizer(TOKENIZER, ["###", ""])
    with pytest.raises(ValueError, match="ByteLevel"):
        Detokenizer(Tokenizer(models.BPE()))


def test_each_token_is_looked_up_once_and_nothing_is_decoded_again() -> None:
    class Counting:
        """As much of a tokenizer as may be used: no ``decode``."""

        decoder = TOKENIZER.decoder
        get_added_tokens_decoder = staticmethod(TOKENIZER.get_added_tokens_decoder)
        lookups = 0

        def id_to_token(self, token_id: int) -> str | None:
            self.lookups += 1
            return TOKENIZER.id_to_token(token_id)

    counting = Counting()
    detokenizer = Detokenizer(counting, ["###"])
    longest = 0
    for _ in range(2000):
        detokenizer.push(2)  # "#"
        detokenizer.push(64)  # "a"
        longest = max(longest, len(detokenizer._held))
    assert counting.lookups == 4000
    assert longest <= 2
