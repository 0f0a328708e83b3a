"""The whole model: the one module that knows every stage, and the public API of the package."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .answer import Answer, AnswerStream, EncodedImage
from .astream import AsyncAnswerStream
from .cancel import Cancellation
from .chat import Chat
from .engine import DEFAULT_MAX_NEW_TOKENS, Engine, Request, Turn
from .errors import ArgumentError, CancellationError, TinyGPTVError
from .language.decoder import Decoder, check_embeds
from .language.embeddings import assemble
from .language.generate import check_room, decode
from .language.sampling import GREEDY, Sampling
from .loading import DEMO_BUNDLE, MemoryMode, load_engine
from .many import answer_each
from .vision.encoder import Vision
from .vision.image import ImageSource

DEFAULT_BATCH_SIZE = 8

Float32Array = NDArray[np.float32]
Picture = ImageSource | EncodedImage
Pictures = Picture | Sequence[Picture] | None
"""One image, several in a list or tuple, or none."""


class TinyGPTV:
    """A loaded bundle. Immutable, and may be shared by threads: each generation owns its state.

    Example:
        >>> with TinyGPTV.load("bundle") as model:
        ...     image = model.encode_image("photo.jpg")
        ...     answer = model.ask(image, "What is this?").text
    """

    def __init__(self, engine: Engine) -> None:
        """Put together from loaded parts; :meth:`load` is the usual way."""
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
    ) -> Self:
        """Load a bundle that ``tinygptv-export`` wrote.

        A copy that was tuned to this machine is used where there is one (``tinygptv tune``): its weights are mapped
        from the disk, and checked while they are.

        Args:
            path: The bundle's folder; the built-in demo model's if None.
            threads: Threads that compute; one a physical core if None.
            memory: ``default`` keeps all three graphs open. ``low`` opens each when it is needed and closes it when
                another one is: less memory, and seconds more for every change between images and text.
            tune: Tune the bundle now if it is not: in its folder, or the user's cache folder where that cannot be
                written. Where it is impossible, a warning says why.
            image_cache: Folder that remembers encoded images beyond this process, 0.3 MB each at the published sizes;
                the last 64 are always remembered in memory. Without these two, nothing is ever written.

        Raises:
            BundleError: The bundle or its tuned copy is missing, damaged or of another format; names the file.
            ArgumentError: ``threads`` is less than 1, ``memory`` another word, or ``image_cache`` cannot be made.
        """
        return cls(load_engine(DEMO_BUNDLE if path is None else Path(path), threads, memory, tune, image_cache))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights; a generation that is running keeps them until it ends."""
        self._open = None

    @property
    def _engine(self) -> Engine:
        if self._open is None:
            raise TinyGPTVError("this model was closed; load the bundle again")
        return self._open

    @property
    def _vision(self) -> Vision:
        return self._engine.graphs.vision

    @property
    def _decoder(self) -> Decoder:
        return self._engine.graphs.decoder()

    def encode_image(self, image: Picture, *, cancellation: Cancellation | None = None) -> EncodedImage:
        """Show the model an image, once for many questions.

        One that was seen before (to the pixel, at the size that the encoder sees) is not encoded again.

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

    def generate_ids(self, inputs_embeds: Float32Array, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS) -> Iterator[int]:
        """Decode greedily: token ids as they come, until end of text.

        Args:
            inputs_embeds: float32 [1, sequence, hidden].
            max_new_tokens: At most so many ids; at least 1.

        Raises:
            ContextOverflowError: Prompt and new tokens do not fit in the context; raised before anything is computed.
            ArgumentError: The shape is another one, or ``max_new_tokens`` is less than 1.
        """
        engine = self._engine
        sizes = engine.manifest.architecture.language
        check_embeds(inputs_embeds, sizes)
        check_room(inputs_embeds.shape[1], max_new_tokens, sizes.max_position_embeddings)

        def ids() -> Iterator[int]:
            # The decoder may have to be opened: that is part of what a prompt takes.
            state = engine.graphs.decoder().start()
            embed = lambda token: engine.table.rows([token])  # noqa: E731
            yield from decode(state, inputs_embeds, embed, max_new_tokens, engine.manifest.eos_token_ids)

        return ids()

    def stream(
        self,
        image: Pictures,
        question: str,
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        cancellation: Cancellation | None = None,
    ) -> AnswerStream:
        """Ask about an image and get the answer's text as it comes.

        Another question about the same images need not compute their part of the prompt again: the last two answers'
        keys and values are kept for that.

        Args:
            image: A path, bytes, a PIL image, or an :class:`EncodedImage`; a list of several, which come before the
                question in this order; or None to ask without any.
            question: May begin with a task tag such as ``[vqa]`` or ``[caption]``.
            max_new_tokens: At most so many tokens. If None, 300 or what the context has room for.
            template: Name of a prompt template of the bundle; its default one if None.
            sampling: How tokens are chosen; greedily if not given, which gives the same answer each time.
            stop: Texts that end the answer and are not part of it.
            cancellation: Ends it from another thread, within one operator, image encoding and prefill included: the
                answer's ``finish_reason`` is then ``cancelled``.

        Returns:
            An iterator of pieces of text; its ``answer`` is the whole, with token ids and timings.

        Raises:
            ImageError: The image cannot be read.
            ContextOverflowError: Prompt and new tokens do not fit in the context.
            ArgumentError: The question is empty, or another argument out of range.
        """
        engine, pictures = self._engine, _several(image)
        # What is wrong with the question should not cost the seconds that an image takes.
        request = Request(max_new_tokens, template, sampling, stop)
        prepared = engine.prepare([Turn(question)], len(pictures), request)
        cancellation = cancellation or Cancellation()
        try:
            images = [engine.encode_image(picture, cancellation) for picture in pictures]
        except CancellationError:
            return AnswerStream(iter(()), prepared.writer, (), cancellation)
        encoded = [image for image, picture in zip(images, pictures, strict=True) if image is not picture]
        return engine.answer(prepared, images, encoded, cancellation)

    def ask(
        self,
        image: Pictures,
        question: str,
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        cancellation: Cancellation | None = None,
    ) -> Answer:
        """Ask about an image and wait for the whole answer; arguments and errors as for :meth:`stream`."""
        return self.stream(
            image,
            question,
            max_new_tokens=max_new_tokens,
            template=template,
            sampling=sampling,
            stop=stop,
            cancellation=cancellation,
        ).answer

    def astream(
        self,
        image: Pictures,
        question: str,
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> AsyncAnswerStream:
        """The same for asyncio programs: ``async for piece in model.astream(...)``; arguments as for :meth:`stream`.

        What :meth:`stream` raises, the first piece raises here.
        """
        return AsyncAnswerStream(
            lambda cancellation: self.stream(
                image,
                question,
                max_new_tokens=max_new_tokens,
                template=template,
                sampling=sampling,
                stop=stop,
                cancellation=cancellation,
            )
        )

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
                text, which the model may have spelt otherwise: then later answers may differ from a live chat's.
            template: Name of a prompt template of the bundle; its default one if None.
            cancellation: Ends the encoding from another thread.

        Raises:
            ImageError: An image cannot be read.
            CancellationError: It was cancelled.
            ArgumentError: The bundle has no such template, or a question of ``turns`` is empty.
        """
        self.manifest.template(template)
        engine, pictures = self._engine, _several(image)
        said = [Turn(question, answer) for question, answer in turns]
        if said:
            engine.segments(said, len(pictures), template)  # raises, before an image takes its seconds
        images = [engine.encode_image(picture, cancellation) for picture in pictures]
        return Chat(engine, images, template, said)

    def ask_each(
        self,
        questions: Iterable[tuple[Picture, str]],
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cancellation: Cancellation | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Ask many questions at once: more answers a minute than one by one, each of them later.

        Up to ``batch_size`` answers are written in step; where one ends, the next begins. Answers come as they become
        whole, which need not be the questions' order; what is no longer read for is no longer computed.

        In int8, onnxruntime rounds the products of several rows other than those of one: where two words are almost
        equally probable, an answer may differ from the one that :meth:`ask` gives.

        Args:
            questions: (image, question) pairs, as many as there are: each is taken, and its image encoded, when there
                is room for it. With little memory, 32 images are encoded ahead.
            max_new_tokens: As for :meth:`stream`, of each answer.
            template: As for :meth:`stream`.
            batch_size: Answers written in step, at least 1. Each keeps its own KV cache.
            cancellation: Ends it from another thread, within one operator.

        Returns:
            An iterator of (the question's number, from 0; its answer). A prompt's ``prefill`` is its own; ``decode``
            passes while the others of the batch are decoded too.

        Raises:
            ArgumentError: As for :meth:`stream`, or ``batch_size`` is less than 1. What is wrong with one question
                or image is raised when its turn comes, and so is :class:`CancellationError`; answers that were not
                whole by then are lost.
        """
        _check_batch_size(batch_size)
        engine, request = self._engine, Request(max_new_tokens, template)
        engine.prepare([Turn("?")], 1, request)  # raises at once what would be wrong with every question
        asked = ((image, engine.prepare([Turn(question)], 1, request)) for image, question in questions)
        return answer_each(engine, asked, batch_size, cancellation or Cancellation())

    def ask_many(
        self,
        questions: Iterable[tuple[Picture, str]],
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cancellation: Cancellation | None = None,
    ) -> list[Answer]:
        """Ask many questions at once, and wait for all answers, which come in the questions' order.

        Arguments and errors as for :meth:`ask_each`, but what is wrong with any question is raised before anything is
        computed.
        """
        _check_batch_size(batch_size)
        engine, request = self._engine, Request(max_new_tokens, template)
        asked = [(image, engine.prepare([Turn(question)], 1, request)) for image, question in questions]
        answers = dict(answer_each(engine, asked, batch_size, cancellation or Cancellation()))
        return [answers[number] for number in range(len(asked))]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}; expected at least 1")


def _several(image: Pictures) -> Sequence[Picture]:
    if image is None:
        return ()
    return image if isinstance(image, list | tuple) else (image,)
