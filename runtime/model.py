"""A loaded model, the public API of the package: ids, text as it is generated, complete answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .answer import Answer, AnswerStream
from .astream import AsyncAnswerStream
from .cancel import Cancellation
from .chat import Chat
from .engine import Engine, Prepared
from .errors import ArgumentError, CancellationError, TinyGPTVError
from .language.decoder import Decoder, check_embeds
from .language.embeddings import assemble
from .language.generate import check_room, decode
from .language.prefix_cache import CacheStore
from .language.prompt import Turn
from .loading import DEMO_BUNDLE, MemoryMode, load_engine
from .many import answer_each
from .options import DEFAULT_MAX_NEW_TOKENS, AnswerKeywords, AnswerOptions, merged
from .vision.encoded import EncodedImage
from .vision.encoder import Vision
from .vision.image import ImageSource

DEFAULT_BATCH_SIZE = 8

Float32Array = NDArray[np.float32]
Picture = ImageSource | EncodedImage
Pictures = Picture | Sequence[Picture] | None
"""One image, several in a list or tuple, or none."""


class TinyGPTV:
    """A loaded bundle. Immutable, and may be shared by threads: each generation owns its state.

    Three layers: :meth:`generate_ids` yields token ids, :meth:`stream` yields text, :meth:`ask` returns the answer.

    Example:
        >>> with TinyGPTV.load("bundle") as model:
        ...     image = model.encode_image("photo.jpg")
        ...     answer = model.ask(image, "What is this?").text
    """

    def __init__(self, engine: Engine) -> None:
        """Create a model from loaded parts; :meth:`load` is the usual way."""
        self.manifest = engine.manifest
        self._open: Engine | None = engine

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        memory: MemoryMode = "default",
        tune: bool = False,
        image_cache: str | os.PathLike[str] | None = None,
        background: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> Self:
        """Load a bundle that ``tinygptv-export`` wrote.

        A copy that was tuned to this machine is used where there is one (``tinygptv tune``): its weights are mapped
        from the disk, and checked at each load.

        Args:
            path: The bundle's folder; the built-in demo model's if None.
            threads: Threads to compute with; if None, as many as ``TINYGPTV_THREADS`` says, or one for each physical
                core. Never more than there are cores; a warning says so.
            memory: ``default`` keeps all three graphs open. ``low`` opens each when it is needed and closes it when
                another one is: less memory, and seconds more for every change between images and text.
            tune: Tune the bundle now if it is not: in its folder, or the user's cache folder where that cannot be
                written. Where it is impossible, a warning says why.
            image_cache: Folder that keeps encoded images for later processes: 0.33 MB each with TinyGPT-V, 7.5 MB with
                729 tokens (4 bytes times the image tokens times the hidden size). The last ones, up to 64 MB, are
                always kept in memory. Without this and ``tune``, nothing is written.
            background: Return before the graphs are open. Other threads open them, and whatever needs one waits for
                it: so an image is encoded while the language model is still being loaded. A graph that cannot be
                opened is reported there, as the BundleError that would be raised here. Changes nothing with ``low``.
            progress: Callback with the share of the weights that is ready, each time that one of the three graphs is
                open; 1.0 is the last. Called from other threads, one call at a time. What it raises, ``load`` raises.
                With ``low``, graphs are opened later, and so it is called later.

        Raises:
            BundleError: The bundle or its tuned copy is missing, damaged or of another format; names the file.
            MemoryShortageError: There is not enough memory, as estimated or as found; says what would help. Also raised
                while answering.
            ArgumentError: ``threads`` is less than 1, ``memory`` is another word, or ``image_cache`` cannot be created.
        """
        folder = DEMO_BUNDLE if path is None else Path(path)
        return cls(load_engine(folder, threads, memory, tune, image_cache, background, progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights; a generation that is running keeps them until it ends.

        A graph that other threads are still opening is released as soon as it is open, and Python waits for that when
        it exits.
        """
        self._open = None

    @property
    def _engine(self) -> Engine:
        if self._open is None:
            raise TinyGPTVError("this model was closed; load the bundle again")
        return self._open

    @property
    def _vision(self) -> Vision:
        return self._engine.sessions.vision

    @property
    def _decoder(self) -> Decoder:
        return self._engine.sessions.decoder(Cancellation())

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's, of the tokenizers library: turns the ids of :meth:`generate_ids` into text."""
        return self._engine.tokenizer

    def encode_image(self, image: Picture, *, cancellation: Cancellation | None = None) -> EncodedImage:
        """Encode an image once, for many questions.

        An image with the same pixels, at the size that the encoder takes, is not encoded again.

        Args:
            image: A path, the bytes of a file, a PIL image, or one encoded before, which is returned as it is.
            cancellation: Ends it from another thread.

        Raises:
            ImageError: It cannot be read.
            CancellationError: It was cancelled.
        """
        return self._engine.encode_image(image, cancellation)

    def embed_prompt(self, image: EncodedImage, question: str, *, template: str | None = None) -> Float32Array:
        """The decoder's input for one question: the published prompt with the image in its slot.

        Args:
            image: An encoded image.
            question: May begin with a task tag such as ``[vqa]`` or ``[caption]``.
            template: Name of a prompt template of the bundle; its default one if None.

        Returns:
            inputs_embeds, float32 [1, sequence, hidden].
        """
        engine = self._engine
        return assemble(engine.table, engine.segments([Turn(question)], 1, template), [image.embeds])

    def generate_ids(
        self, inputs_embeds: Float32Array, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    ) -> Generator[int, None, None]:
        """Decode greedily: token ids as they come, until end of text.

        Args:
            inputs_embeds: float32 [1, sequence, hidden].
            max_new_tokens: At most so many ids; at least 1.

        Returns:
            A generator. Its KV cache lives until its last id: call its ``close()`` to leave earlier.

        Raises:
            ContextOverflowError: Prompt and new tokens do not fit in the context; raised before anything is computed.
            ArgumentError: The shape is wrong, or ``max_new_tokens`` is less than 1.
        """
        engine = self._engine
        contract = engine.manifest.contract
        check_embeds(inputs_embeds, contract)
        check_room(inputs_embeds.shape[1], max_new_tokens, contract.context)

        def ids() -> Generator[int, None, None]:
            # The decoder may have to be opened: that is part of what a prompt takes.
            state = engine.sessions.decoder(Cancellation()).start()
            embed = lambda token: engine.table.rows([token])  # noqa: E731
            yield from decode(state, inputs_embeds, embed, max_new_tokens, engine.manifest.eos_token_ids)

        return ids()

    def stream(
        self,
        image: Pictures,
        question: str,
        *,
        turns: Sequence[tuple[str, str]] = (),
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> AnswerStream:
        """Ask about an image and get the answer's text as it is generated.

        Another question about the same images need not compute their part of the prompt again: the last two answers'
        keys and values are kept for that. With ``turns``, those of the prompt are kept for the conversation's next
        question, until another conversation takes their place: 0.33 MB a token at the published sizes.

        Args:
            image: A path, bytes, a PIL image, or an :class:`EncodedImage`; a list of several, which come before the
                first question in this order; or None to ask without any.
            question: May begin with a task tag such as ``[vqa]`` or ``[caption]``.
            turns: (question, answer) pairs that came before, oldest first, for programs that keep conversations
                themselves. Answers are tokenised from their text, so the same arguments always mean the same prompt
                (a :class:`Chat` keeps the tokens of its own answers). If not all turns fit in the context, the oldest
                are left out.
            options: Options of the answer.
            cancellation: Ends it from another thread, within one operator, image encoding and prefill included: the
                answer's ``finish_reason`` is then ``cancelled``.
            keywords: Fields of :class:`AnswerOptions`, such as ``max_new_tokens=40``; they replace those of
                ``options``.

        Returns:
            An iterator of pieces of text; its ``answer`` is the complete one, with token ids and timings.

        Raises:
            ImageError: The image cannot be read.
            ContextOverflowError: Prompt and new tokens do not fit in the context.
            ArgumentError: The question is empty, or an option is out of range.
            TypeError: A keyword is not a field of :class:`AnswerOptions`, or an argument is of another type.
        """
        pictures = _several(image)
        prepared = self._prepare(pictures, question, turns, merged(options, keywords))
        return self._begin(pictures, prepared, bool(turns), cancellation or Cancellation())

    def ask(
        self,
        image: Pictures,
        question: str,
        *,
        turns: Sequence[tuple[str, str]] = (),
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> Answer:
        """Ask about an image and wait for the complete answer; arguments and errors as for :meth:`stream`."""
        chosen = merged(options, keywords)
        return self.stream(image, question, turns=turns, options=chosen, cancellation=cancellation).answer

    def astream(
        self,
        image: Pictures,
        question: str,
        *,
        turns: Sequence[tuple[str, str]] = (),
        options: AnswerOptions | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> AsyncAnswerStream:
        """The same for asyncio programs: ``async for piece in model.astream(...)``; arguments as for :meth:`stream`.

        The first piece raises errors about an image; the call raises all others.
        """
        pictures = _several(image)
        prepared = self._prepare(pictures, question, turns, merged(options, keywords))
        return AsyncAnswerStream(lambda cancellation: self._begin(pictures, prepared, bool(turns), cancellation))

    def chat(
        self,
        image: Pictures,
        *,
        turns: Sequence[tuple[str, str]] = (),
        template: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Chat:
        """Begin a conversation about an image, several, or none, or go on with one.

        Args:
            image: As for :meth:`stream`; encoded now.
            turns: What was said before, (question, answer) pairs from the oldest on. Answers are tokenised from their
                text, which may give other tokens than the model generated: then later answers may differ from a live
                chat's.
            template: Name of a prompt template of the bundle; its default one if None.
            cancellation: Ends the encoding from another thread.

        Raises:
            ImageError: An image cannot be read.
            CancellationError: It was cancelled.
            ArgumentError: The bundle has no such template, or a question of ``turns`` is empty.
        """
        self.manifest.template(template)
        engine, pictures = self._engine, _several(image)
        said = _turns(turns)
        if said:
            engine.check_turns(said, len(pictures), template)  # before an image takes its seconds
        images = [engine.encode_image(picture, cancellation) for picture in pictures]
        return Chat(engine, images, template, said)

    def ask_each(
        self,
        questions: Iterable[tuple[Picture, str]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> Generator[tuple[int, Answer], None, None]:
        """Ask many questions, batched: more answers a minute than one by one, but each takes longer.

        Up to ``batch_size`` answers are decoded as one batch; where one ends, the next begins. Answers come as soon as
        they are complete, in any order. If you stop reading, the rest is not computed.

        The sampling of an answer does not depend on the batch: with a seed, the same question gets the same
        draws here and from :meth:`ask`. In int8, onnxruntime rounds batched products differently:
        where two tokens are almost equally probable, an answer may differ from the one that :meth:`ask` gives.

        Args:
            questions: (image, question) pairs, as many as there are: each is taken, and its image encoded, when there
                is room for it. With little memory, 32 images are encoded ahead.
            batch_size: Answers decoded at a time, at least 1. Each keeps its own KV cache.
            options: Options of each answer.
            cancellation: Ends it from another thread, within one operator.
            keywords: Fields of :class:`AnswerOptions`, as for :meth:`stream`.

        Returns:
            A generator of (the question's number, from 0; its answer). A prompt's ``prefill`` is its own; ``decode``
            passes while the others of the batch are decoded too. Its memory lives until the last answer: call its
            ``close()`` to leave earlier.

        Raises:
            ArgumentError: As for :meth:`stream`, or ``batch_size`` is less than 1. What is wrong with one question
                or image is raised when its turn comes, and so is :class:`CancellationError`; answers that were not
                complete by then are lost.
            TypeError: As for :meth:`stream`.
        """
        chosen = merged(options, keywords)
        _check_batch_size(batch_size)
        engine = self._engine
        engine.prepare([Turn("?")], 1, chosen)  # raises at once what would be wrong with every question
        asked = ((image, engine.prepare([Turn(question)], 1, chosen)) for image, question in questions)
        return answer_each(engine, asked, batch_size, cancellation or Cancellation())

    def ask_many(
        self,
        questions: Iterable[tuple[Picture, str]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        options: AnswerOptions | None = None,
        cancellation: Cancellation | None = None,
        **keywords: Unpack[AnswerKeywords],
    ) -> list[Answer]:
        """Ask many questions at once, and wait for all answers, which come in the questions' order.

        Arguments and errors as for :meth:`ask_each`, but what is wrong with any question is raised before anything is
        computed.
        """
        chosen = merged(options, keywords)
        _check_batch_size(batch_size)
        engine = self._engine
        asked = [(image, engine.prepare([Turn(question)], 1, chosen)) for image, question in questions]
        answers = dict(answer_each(engine, asked, batch_size, cancellation or Cancellation()))
        return [answers[number] for number in range(len(asked))]

    def _prepare(
        self, pictures: Sequence[Picture], question: str, turns: Sequence[tuple[str, str]], options: AnswerOptions
    ) -> Prepared:
        """Build the prompt before images are encoded, so that errors in the question are reported immediately."""
        return self._engine.prepare([*_turns(turns), Turn(question)], len(pictures), options)

    def _begin(
        self, pictures: Sequence[Picture], prepared: Prepared, goes_on: bool, cancellation: Cancellation
    ) -> AnswerStream:
        engine = self._engine
        store: CacheStore = engine.conversations if goes_on else engine.prefixes
        try:
            images = [engine.encode_image(picture, cancellation) for picture in pictures]
        except CancellationError:
            return AnswerStream(_no_ids(), prepared.writer, (), (), cancellation)
        encoded = [image for image, picture in zip(images, pictures, strict=True) if image is not picture]
        return engine.answer(prepared, images, encoded, cancellation, store)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}; expected at least 1")


def _several(image: Pictures) -> Sequence[Picture]:
    if image is None:
        return ()
    return image if isinstance(image, list | tuple) else (image,)


def _no_ids() -> Generator[int, None, None]:
    yield from ()


def _turns(turns: Sequence[tuple[str, str]]) -> list[Turn]:
    return [Turn(question, answer) for question, answer in turns]
