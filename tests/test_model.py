"""The public API on the golden models: loading, asking, stopping, and what is refused."""

from __future__ import annotations

import gc
import shutil
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUESTION, bundle_with, spoil
from PIL import Image
from tinygptv.runtime import (
    Answer,
    AnswerStream,
    ArgumentError,
    BundleError,
    EncodedImage,
    ImageError,
    TinyGPTV,
    TinyGPTVError,
)
from tinygptv.runtime.boxes import Box, Region
from tinygptv.runtime.bundle.manifest import PROJECTOR, VISION_ENCODER, read_manifest
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.language import kv_cache
from tinygptv.runtime.language.decoder import DecoderState
from tinygptv.runtime.language.kv_cache import KVCache
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.open_sessions import OpenSessions

RED = Path(__file__).parent / "images" / "red_triangle.png"
STOP = "e<in"
"""In the golden text, from the end of one token over the whole of the next to the middle of a third."""
STOP_TOKENS = 4
"""Tokens of the golden answer until it is complete."""
EOS = 294
"""First seen as that fourth token."""


# Loading


@pytest.fixture
def copied(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "bundle"))


def zeroed(data: bytes) -> bytes:
    return bytes(min(len(data), 64)) + data[64:]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)

    def damage(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", zeroed),
        ("tokenizer.json", replaced(b'"BPE"', b'"BPP"')),
        ("tokenizer.json", lambda data: data[:-2] + b"  "),
        ("vision_encoder.onnx", zeroed),
        ("projector.onnx", zeroed),
        ("decoder.onnx", zeroed),
        ("decoder.onnx", lambda data: data[:2000] + bytes(100) + data[2100:]),
        ("decoder.onnx", replaced(b"GroupQueryAttention", b"GroupQueryAttentiom")),
        ("decoder.onnx", replaced(b"GroupQueryAttention", b"GroupQueryAttentio\xff")),  # quoted in the message
        ("decoder.onnx", replaced(b"seqlens_k", b"seqlens_q")),  # another contract
        ("embed_tokens.npy", zeroed),
        ("embed_tokens.npy", replaced(b"(320, 120), }", b"(320, 120),  ")),
        ("embed_tokens.npy", replaced(b"(320, 120)", b"(321, 120)")),
        ("embed_tokens.npy", replaced(b"(320, 120)", b"(120, 320)")),
        ("embed_tokens.npy", replaced(b"<f2", b"<i2")),
        ("embed_tokens.npy", replaced(b"\x93NUMPY", b"PK\x03\x04\x00\x00")),
    ],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_file_of_the_right_size_is_named(
    copied: Path, name: str, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    """By whatever reads it, where its hash did not give it away."""
    spoil(copied, name, damage)
    with pytest.raises(BundleError) as raised:
        TinyGPTV.load(copied)
    assert str(copied / name) in str(raised.value)
    assert "SHA-256" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().out == ""  # stdout belongs to answers
    gc.collect()  # a file left open would be an error now


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is not a folder; expected a bundle"):
        TinyGPTV.load(tmp_path / "nowhere")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json; expected a bundle"):
        TinyGPTV.load(tmp_path)


def test_a_file_that_is_no_bundle(photo: Path) -> None:
    with pytest.raises(BundleError, match=r"été\.png is not a folder"):
        TinyGPTV.load(photo)


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data", "embed_tokens.npy", "tokenizer.json"])
def test_missing_and_cut_files_are_named(copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"{name} has {len(data) - 1:,} bytes; the manifest says {len(data):,}"):
        TinyGPTV.load(copied)
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        TinyGPTV.load(copied)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(golden_bundle: Callable[[int, str], Path], threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; expected at least 1"):
        TinyGPTV.load(golden_bundle(3, "int8"), threads=threads)


def test_more_threads_than_there_are_cores(golden_bundle: Callable[[int, str], Path]) -> None:
    with pytest.warns(RuntimeWarning, match="threads is 100000, and this machine has") as told:
        TinyGPTV.load(golden_bundle(3, "int8"), threads=100_000).close()
    assert told[0].filename == __file__


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "many"])
def test_threads_of_the_environment_are_checked(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPTV_THREADS", threads)
    with pytest.raises(ArgumentError, match=rf"^TINYGPTV_THREADS is '{threads}'; expected a number of threads"):
        TinyGPTV.load()


def test_threads_of_the_environment_are_used_where_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPTV_THREADS", "100000")
    with pytest.warns(RuntimeWarning, match="threads is 100000, and this machine has"):
        TinyGPTV.load().close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TinyGPTV.load(threads=1).close()


def test_the_number_of_threads_does_not_change_the_answer(
    golden_bundle: Callable[[int, str], Path], photo: Path
) -> None:
    answers = []
    for threads in (1, 2):
        with TinyGPTV.load(str(golden_bundle(3, "fp32")), threads=threads) as model:  # a path may be a str
            answers.append(model.ask(photo, QUESTION, max_new_tokens=24).token_ids)
    assert answers[0] == answers[1]


def test_manifest(speaking_model: TinyGPTV, golden_bundle: Callable[[int, str], Path]) -> None:
    assert speaking_model.manifest == read_manifest(golden_bundle(3, "fp32"))
    assert speaking_model.manifest.stage == 3


def test_a_closed_model_says_so(golden_bundle: Callable[[int, str], Path], photo: Path) -> None:
    with TinyGPTV.load(golden_bundle(3, "int8")) as model:
        assert isinstance(model, TinyGPTV)
        encoded = model.encode_image(photo)
        embeds = model.embed_prompt(encoded, QUESTION)
        running = model.stream(encoded, QUESTION, max_new_tokens=12)
        wanted = model.ask(encoded, QUESTION, max_new_tokens=12).text
    for use in (
        lambda: model.encode_image(photo),
        lambda: model.generate_ids(embeds, 3),
        lambda: model.stream(encoded, QUESTION),
        lambda: model.ask(photo, QUESTION),
    ):
        with pytest.raises(TinyGPTVError, match="this model was closed"):
            use()
    assert running.answer.text == wanted  # what was running keeps what it needs
    model.close()  # once more is no error


def test_an_error_inside_the_context_closes_the_model_and_passes(golden_bundle: Callable[[int, str], Path]) -> None:
    with pytest.raises(KeyError), TinyGPTV.load(golden_bundle(3, "int8")) as model:
        raise KeyError
    with pytest.raises(TinyGPTVError, match="closed"):
        model.encode_image(b"")


# Images


def test_an_image_may_be_a_path_bytes_a_picture_or_encoded(speaking_model: TinyGPTV, photo: Path) -> None:
    encoded = speaking_model.encode_image(photo)
    assert (encoded.width, encoded.height) == (60, 40)
    assert encoded.embeds.dtype == np.float32
    assert encoded.embeds.shape == (8, 120)
    assert min(encoded.preprocess_seconds, encoded.encode_seconds, encoded.project_seconds) > 0
    assert speaking_model.encode_image(encoded) is encoded
    with Image.open(photo) as picture:
        sources = (str(photo), photo.read_bytes(), picture, encoded)
        wanted = speaking_model.ask(photo, QUESTION, max_new_tokens=12)
        for source in sources:
            assert np.array_equal(speaking_model.encode_image(source).embeds, encoded.embeds)
            answer = speaking_model.ask(source, QUESTION, max_new_tokens=12)
            assert (answer.text, answer.token_ids) == (wanted.text, wanted.token_ids)


def test_the_answer_depends_on_the_image(speaking_model: TinyGPTV, photo: Path) -> None:
    black = speaking_model.encode_image(Image.new("RGB", (60, 40)))
    assert not np.array_equal(black.embeds, speaking_model.encode_image(photo).embeds)
    answers = {speaking_model.ask(image, QUESTION, max_new_tokens=24).token_ids for image in (black, photo)}
    assert len(answers) == 2


def test_a_reused_image_costs_nothing(speaking_model: TinyGPTV, photo: Path) -> None:
    timings = speaking_model.ask(speaking_model.encode_image(photo), QUESTION, max_new_tokens=3).timings
    assert (timings.preprocess, timings.image_encode, timings.projector) == (0, 0, 0)
    assert timings.time_to_first_token == timings.prefill > 0


def test_an_image_of_another_model(speaking_model: TinyGPTV, golden_model: TinyGPTV, photo: Path) -> None:
    with pytest.raises(ValueError, match=r"embeds are \(8, 160\); expected \(tokens, 120\)"):
        speaking_model.ask(golden_model.encode_image(photo), QUESTION)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_batch_of_two_images_is_two_images(golden_bundle: Callable[[int, str], Path], precision: str) -> None:
    """The graphs' batch axis, which this runtime does not use but others may."""
    folder = golden_bundle(4, precision)
    manifest = read_manifest(folder)
    sessions = {name: open_session(folder, manifest.graphs[name], threads=1) for name in (VISION_ENCODER, PROJECTOR)}
    vision = OpenSessions(sessions.__getitem__, manifest, low_memory=True).vision
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    features = vision.image_features(pixel_values)
    embeds = vision.image_embeds(features)
    assert features.shape == (2, 17, 96)
    assert embeds.shape == (2, 8, 160)
    for i in range(2):
        alone = vision.image_features(pixel_values[i : i + 1])
        # In int8 a difference in the last bit can send an activation to its next level.
        close = 1e-4 if precision == "fp32" else 0.03
        assert np.abs(features[i] - alone[0]).max() < close * alone.std()
        alone = vision.image_embeds(alone)
        assert np.abs(embeds[i] - alone[0]).max() < close * alone.std()
    assert np.abs(embeds[0] - embeds[1]).max() > 0.1 * embeds.std()


# Answers


def test_pieces_joined_are_the_answer(speaking_model: TinyGPTV, photo: Path) -> None:
    stream = speaking_model.stream(photo, QUESTION, max_new_tokens=30)
    assert isinstance(stream, AnswerStream)
    pieces = list(stream)
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=30)
    assert isinstance(answer, Answer)
    assert len(pieces) > 5 and all(pieces)
    assert "".join(pieces) == stream.answer.text == answer.text
    assert stream.answer.token_ids == answer.token_ids
    assert stream.answer.prompt_tokens == answer.prompt_tokens == 35
    assert stream.answer is stream.answer
    assert list(stream) == []


def test_the_answer_of_a_stream_read_halfway_is_the_whole(speaking_model: TinyGPTV, photo: Path) -> None:
    stream = speaking_model.stream(photo, QUESTION, max_new_tokens=30)
    for _ in range(3):
        next(stream)
    assert stream.answer.text == speaking_model.ask(photo, QUESTION, max_new_tokens=30).text


def test_text_comes_as_it_is_decoded(speaking_model: TinyGPTV, photo: Path, fed: list[int]) -> None:
    stream = speaking_model.stream(photo, QUESTION, max_new_tokens=30)
    assert fed == []
    next(stream)
    assert 1 <= len(fed) <= 3


def test_the_prompt_is_that_of_the_template(speaking_model: TinyGPTV, photo: Path) -> None:
    encoded = speaking_model.encode_image(photo)
    names = ("human_assistant", "human_assistant_with_system", "inst")
    prompts = {name: speaking_model.embed_prompt(encoded, QUESTION, template=name) for name in names}
    assert len({prompt.tobytes() for prompt in prompts.values()}) == 3
    assert speaking_model.manifest.default_template == "human_assistant"
    for name in (None, *names):
        prompt = prompts[name or "human_assistant"]
        answer = speaking_model.ask(encoded, QUESTION, max_new_tokens=4, template=name)
        assert answer.prompt_tokens == prompt.shape[1]
        assert list(answer.token_ids) == list(speaking_model.generate_ids(prompt, 4))


@pytest.mark.parametrize("call", ["stream", "ask"])
def test_arguments_are_checked_at_the_call(speaking_model: TinyGPTV, photo: Path, call: str) -> None:
    method = getattr(speaking_model, call)
    no_picture = photo.with_name("none.png")
    # The question and the template come first: they cost nothing, an image seconds.
    for image in (photo, no_picture):
        with pytest.raises(ValueError, match=r"no prompt template 'chatml'.*human_assistant.*inst"):
            method(image, QUESTION, template="chatml")
        with pytest.raises(ValueError, match="expected some text"):
            method(image, " ")
    with pytest.raises(TypeError, match="NoneType"):
        method(photo, None)
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        method(no_picture, QUESTION)
    with pytest.raises(TypeError, match="not int"):
        method(3, QUESTION)


# Stopping


@pytest.fixture(scope="module")
def stopping(
    golden_bundle: Callable[[int, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TinyGPTV]:
    """The speaking model with another end of text or other stop strings."""

    def load(**changes: object) -> TinyGPTV:
        folder = tmp_path_factory.mktemp("stopping") / "bundle"
        return TinyGPTV.load(bundle_with(golden_bundle(3, "fp32"), folder, **changes), threads=1)

    return load


def test_the_golden_text_is_what_these_tests_take_it_for(speaking_model: TinyGPTV, photo: Path) -> None:
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=24)
    assert answer.text.index(STOP) > 0
    assert STOP not in speaking_model.ask(photo, QUESTION, max_new_tokens=STOP_TOKENS - 1).text
    assert STOP in speaking_model.ask(photo, QUESTION, max_new_tokens=STOP_TOKENS).text
    assert answer.token_ids.index(EOS) == STOP_TOKENS - 1


@pytest.mark.parametrize(
    ("changes", "max_new_tokens", "reason", "tokens", "run_count"),
    [
        pytest.param({"eos_token_ids": (EOS,)}, 24, "stop", STOP_TOKENS - 1, STOP_TOKENS, id="end of text"),
        pytest.param({"eos_token_ids": (EOS,)}, 4, "stop", STOP_TOKENS - 1, STOP_TOKENS, id="end of text as the last"),
        pytest.param({"eos_token_ids": (EOS,)}, 3, "length", 3, 3, id="end of text would be next"),
        pytest.param({"stop_strings": (STOP,)}, 24, "stop", STOP_TOKENS, STOP_TOKENS, id="stop string"),
        pytest.param({"stop_strings": (STOP,)}, 4, "stop", STOP_TOKENS, STOP_TOKENS, id="stop string at the last"),
        pytest.param({"stop_strings": (STOP,)}, 3, "length", 3, 3, id="half a stop string"),
        pytest.param({"stop_strings": ("###", STOP)}, 24, "stop", STOP_TOKENS, STOP_TOKENS, id="one of two"),
        pytest.param({}, 24, "length", 24, 24, id="length"),
    ],
)
def test_why_an_answer_ends(
    stopping: Callable[..., TinyGPTV],
    speaking_model: TinyGPTV,
    photo: Path,
    fed: list[int],
    changes: dict[str, object],
    max_new_tokens: int,
    reason: str,
    tokens: int,
    run_count: int,
) -> None:
    whole = speaking_model.ask(photo, QUESTION, max_new_tokens=24)
    in_full = speaking_model.ask(photo, QUESTION, max_new_tokens=tokens).text
    fed.clear()
    with stopping(**changes) as model:
        stream = model.stream(photo, QUESTION, max_new_tokens=max_new_tokens)
        pieces = list(stream)
    answer = stream.answer
    assert answer.finish_reason == reason
    assert answer.token_ids == whole.token_ids[:tokens]
    assert len(fed) == run_count  # decoding stops there
    assert answer.text == "".join(pieces) == (in_full.split(STOP)[0] if "stop_strings" in changes else in_full)
    if reason == "stop" and "stop_strings" in changes:
        assert answer.text == whole.text[: whole.text.index(STOP)] != in_full


def test_a_whole_answer_keeps_the_images_part_of_its_cache(
    stopping: Callable[..., TinyGPTV], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the next question; neither a stream that is kept for its ``answer`` nor its model keeps all of it."""
    monkeypatch.setattr(kv_cache, "GROWTH", 4)
    caches: list[weakref.ref[KVCache]] = []
    run = DecoderState.run

    def watching(state: DecoderState, *arguments: Any, **named: Any) -> np.ndarray:
        caches.append(weakref.ref(state.cache))
        return run(state, *arguments, **named)

    monkeypatch.setattr(DecoderState, "run", watching)
    with stopping(stop_strings=(STOP,)) as model:
        stream = model.stream(photo, QUESTION, max_new_tokens=24)
        next(stream)
        cache = caches[0]()
        assert cache is not None and cache.length >= stream._writer._prompt_tokens
        assert stream.answer.finish_reason == "stop"
        shared = cache.length
        assert 0 < shared < stream.answer.prompt_tokens
        assert cache.capacity == -(-shared // 4) * 4
        del cache
        model._engine.prefixes._idle.clear()
        gc.collect()
        assert caches[0]() is None


def test_closing_frees_the_graphs_at_once(golden_bundle: Callable[[int, str], Path], photo: Path) -> None:
    """Gigabytes cannot wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        model = TinyGPTV.load(golden_bundle(4, "int8"))
        model.ask(photo, QUESTION, max_new_tokens=2)
        sessions = weakref.ref(model._engine.sessions)
        model.close()
        assert sessions() is None
    finally:
        gc.enable()


# Timings


@pytest.mark.parametrize("max_new_tokens", [1, 2, 24])
def test_timings_add_up(speaking_model: TinyGPTV, photo: Path, max_new_tokens: int) -> None:
    started = time.perf_counter()
    timings = speaking_model.ask(photo, QUESTION, max_new_tokens=max_new_tokens).timings
    elapsed = time.perf_counter() - started
    assert min(timings.preprocess, timings.image_encode, timings.projector, timings.prefill) > 0
    assert timings.time_to_first_token == pytest.approx(
        timings.preprocess + timings.image_encode + timings.projector + timings.prefill
    )
    assert timings.time_to_first_token + timings.decode <= elapsed
    if max_new_tokens == 1:
        assert (timings.decode, timings.decode_tokens_per_second) == (0, 0)
    else:  # n tokens have n - 1 intervals between them
        assert timings.decode > 0
        assert timings.decode_tokens_per_second == pytest.approx((max_new_tokens - 1) / timings.decode)


def test_an_empty_answer_has_timings_too(
    stopping: Callable[..., TinyGPTV], speaking_model: TinyGPTV, photo: Path
) -> None:
    first = speaking_model.ask(photo, QUESTION, max_new_tokens=1).token_ids[0]
    with stopping(eos_token_ids=(first,)) as model:
        answer = model.ask(photo, QUESTION)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "stop")
    assert answer.timings.prefill > 0
    assert (answer.timings.decode, answer.timings.decode_tokens_per_second) == (0, 0)


def test_waiting_before_the_first_piece_is_not_prefill(speaking_model: TinyGPTV, photo: Path) -> None:
    encoded = speaking_model.encode_image(photo)
    assert isinstance(encoded, EncodedImage)
    stream = speaking_model.stream(encoded, QUESTION, max_new_tokens=2)
    time.sleep(0.5)
    assert stream.answer.timings.prefill < 0.5


# Regions


def test_an_answer_carries_its_regions() -> None:
    """In pixels of the one picture, whichever way it was asked about."""
    question, wanted = "[detection] triangle", (Region("red triangle", (Box(16, 5, 39, 25),)),)
    with TinyGPTV.load() as model:
        assert model.ask(RED, question).regions == wanted
        assert model.chat(RED).ask(question).regions == wanted
        assert [answer.regions for answer in model.ask_many([(RED, question), (RED, "[caption]")])] == [wanted, ()]
        assert model.ask([RED, RED], question).regions == ()
        assert model.ask(None, question, max_new_tokens=9).regions == ()
        with model.stream(RED, question) as stream:
            stream.cancel()
            assert stream.answer.regions == ()


def test_a_family_without_boxes_has_no_regions(tmp_path: Path) -> None:
    """Whatever its text looks like."""
    with TinyGPTV.load(bundle_with(DEMO_BUNDLE, tmp_path / "other", boxes=False)) as model:
        answer = model.ask(RED, "[detection] triangle")
        assert "{<" in answer.text and answer.regions == ()
