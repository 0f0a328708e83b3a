"""The whole model: the one module that knows every stage, and the public API of the package."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .answer import Answer, AnswerStream, AnswerWriter, EncodedImage
from .batch import greedy_batch
from .decoder import Decoder, check_embeds
from .detokenize import Detokenizer
from .embeds import TokenEmbeddings, assemble
from .errors import ArgumentError, BundleError, TinyGPTVError
from .generate import check_room, greedy
from .graphs import Graphs, open_graph
from .image import ImageSource, open_image, preprocess
from .manifest import EMBEDDINGS, TOKENIZER, Manifest, read_manifest
from .prompt import encode_segments, render
from .session import import_onnxruntime
from .tuned import find_tuned
from .tuning import tune_if_possible
from .vision import Vision

DEMO_BUNDLE = Path(__file__).parent / "demo"
"""The small trained model that comes with the package."""
DEFAULT_MAX_NEW_TOKENS = 300
"""As in the released demo."""
DEFAULT_BATCH_SIZE = 8

MemoryMode = Literal["default", "low"]
Float32Array = NDArray[np.float32]
Part = TypeVar("Part")


class TinyGPTV:
    """A loaded bundle. Immutable, and may be shared by threads: each generation owns its state.

    Example:
        >>> with TinyGPTV.load("bundle") as model:
        ...     image = model.encode_image("photo.jpg")
        ...     answer = model.ask(image, "What is this?").text
    """

    def __init__(self, manifest: Manifest, graphs: Graphs, table: TokenEmbeddings, tokenizer: Tokenizer) -> None:
        """Put together from loaded parts; :meth:`load` is the usual way."""
        self.manifest = manifest
        self._graphs: Graphs | None = graphs
        self._table = table
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        memory: MemoryMode = "default",
        tune: bool = False,
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
                written. Where it is impossible, a warning says why. Otherwise nothing is ever written.

        Raises:
            BundleError: The bundle or its tuned copy is missing, damaged or of another format; names the file.
            ArgumentError: ``threads`` is less than 1, or ``memory`` another word.
        """
        if threads is not None and threads < 1:
            raise ArgumentError(f"threads is {threads}; expected at least 1")
        if memory not in get_args(MemoryMode):
            raise ArgumentError(f"memory is {memory!r}; expected one of {', '.join(get_args(MemoryMode))}")
        folder = DEMO_BUNDLE if path is None else Path(path)
        manifest = read_manifest(folder)
        import_onnxruntime()
        if tune:
            tuned = tune_if_possible(folder, manifest, cache=folder == DEMO_BUNDLE)
        else:
            tuned = find_tuned(folder, manifest)
        opened = partial(open_graph, folder, manifest, threads=threads, tuned=tuned)
        with ThreadPoolExecutor(max_workers=1) as pool:
            graphs = pool.submit(Graphs, opened, manifest, memory == "low")
            table = TokenEmbeddings(folder / EMBEDDINGS, manifest.architecture.language)
            tokenizer = _read_tokenizer(folder / TOKENIZER)
        return cls(manifest, graphs.result(), table, tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights; a generation that is running keeps them until it ends."""
        self._graphs = None

    @property
    def _vision(self) -> Vision:
        return _still_open(self._graphs).vision

    @property
    def _decoder(self) -> Decoder:
        return _still_open(self._graphs).decoder()

    def encode_image(self, image: ImageSource | EncodedImage) -> EncodedImage:
        """Show the model an image, once for many questions.

        Args:
            image: A path, the bytes of a file, a PIL image, or one encoded before, which is returned as it is.

        Raises:
            ImageError: It cannot be read.
        """
        if isinstance(image, EncodedImage):
            return image
        vision = self._vision
        started = time.perf_counter()
        picture = open_image(image)
        pixel_values = preprocess(picture, self.manifest.image)
        prepared = time.perf_counter()
        features = vision.image_features(pixel_values)
        encoded = time.perf_counter()
        embeds = vision.image_embeds(features)[0]
        return EncodedImage(
            embeds=embeds,
            width=picture.width,
            height=picture.height,
            preprocess_seconds=prepared - started,
            encode_seconds=encoded - prepared,
            project_seconds=time.perf_counter() - encoded,
        )

    def embed_prompt(self, image: EncodedImage, question: str, *, template: str | None = None) -> Float32Array:
        """The decoder's input for one question: the published prompt with the image in its slot.

        Args:
            image: An encoded image.
            question: May begin with a task tag such as ``[vqa]`` or ``[caption]``.
            template: Name of a prompt template of the bundle; its default one if None.

        Returns:
            inputs_embeds, float32 [1, sequence, hidden].
        """
        return assemble(self._table, self._segments(question, template), [image.embeds])

    def generate_ids(self, inputs_embeds: Float32Array, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS) -> Iterator[int]:
        """Decode greedily: token ids as they come, until end of text.

        Args:
            inputs_embeds: float32 [1, sequence, hidden].
            max_new_tokens: At most so many ids; at least 1.

        Raises:
            ContextOverflowError: Prompt and new tokens do not fit in the context; raised before anything is computed.
            ArgumentError: The shape is another one, or ``max_new_tokens`` is less than 1.
        """
        graphs = _still_open(self._graphs)
        sizes = self.manifest.architecture.language
        check_embeds(inputs_embeds, sizes)
        check_room(inputs_embeds.shape[1], max_new_tokens, sizes.max_position_embeddings)

        def ids() -> Iterator[int]:
            # The decoder may have to be opened: that is part of what a prompt takes.
            state = graphs.decoder().start()
            yield from greedy(state, inputs_embeds, self._embed_token, max_new_tokens, self.manifest.eos_token_ids)

        return ids()

    def stream(
        self,
        image: ImageSource | EncodedImage,
        question: str,
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
    ) -> AnswerStream:
        """Ask about an image and get the answer's text as it comes.

        Args:
            image: A path, bytes, a PIL image, or an :class:`EncodedImage`.
            question: May begin with a task tag such as ``[vqa]`` or ``[caption]``.
            max_new_tokens: At most so many tokens. If None, 300 or what the context has room for.
            template: Name of a prompt template of the bundle; its default one if None.

        Returns:
            An iterator of pieces of text; its ``answer`` is the whole, with token ids and timings.

        Raises:
            ImageError: The image cannot be read.
            ContextOverflowError: Prompt and new tokens do not fit in the context.
            ArgumentError: The question is empty, or another argument out of range.
        """
        # What is wrong with the question should not cost the seconds that an image takes.
        segments, writer = self._prepare(question, max_new_tokens, template)
        encoded = self.encode_image(image)
        inputs_embeds = assemble(self._table, segments, [encoded.embeds])
        ids = self.generate_ids(inputs_embeds, writer.max_new_tokens)
        return AnswerStream(ids, writer, encoded if encoded is not image else None)

    def ask(
        self,
        image: ImageSource | EncodedImage,
        question: str,
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
    ) -> Answer:
        """Ask about an image and wait for the whole answer; arguments and errors as for :meth:`stream`."""
        return self.stream(image, question, max_new_tokens=max_new_tokens, template=template).answer

    def ask_many(
        self,
        questions: Iterable[tuple[ImageSource | EncodedImage, str]],
        *,
        max_new_tokens: int | None = None,
        template: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> list[Answer]:
        """Ask many questions at once: more answers a minute than one by one, each of them later.

        Up to ``batch_size`` answers are written in step; where one ends, the next question begins. An image is
        encoded when its turn comes, and anew for each question: pass an :class:`EncodedImage` to ask it twice.

        In int8, onnxruntime rounds the products of several rows other than those of one: where two words are almost
        equally probable, an answer may differ from the one that :meth:`ask` gives.

        Args:
            questions: (image, question) pairs; arguments otherwise as for :meth:`stream`.
            max_new_tokens: As for :meth:`stream`, of each answer.
            template: As for :meth:`stream`.
            batch_size: Answers written in step, at least 1. Each keeps its own KV cache.

        Returns:
            The answers, in the questions' order. A prompt's ``prefill`` is its own; ``decode`` passes while the others
            of the batch are decoded too.

        Raises:
            ArgumentError: As for :meth:`stream`, before anything is computed, or ``batch_size`` is less than 1.
            ImageError: An image cannot be read; what was answered until then is lost.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size is {batch_size}; expected at least 1")
        graphs = _still_open(self._graphs)
        images: list[ImageSource | EncodedImage] = []
        prepared = []
        for image, question in questions:
            images.append(image)
            prepared.append(self._prepare(question, max_new_tokens, template))

        # With little memory, graphs don't take turns: all images first, then all text.
        early = [self.encode_image(image) for image in images] if graphs.low_memory else None

        def prompt(number: int) -> Float32Array:
            segments, writer = prepared[number]
            encoded = early[number] if early is not None else self.encode_image(images[number])
            writer.begin(encoded if encoded is not images[number] else None)
            return assemble(self._table, segments, [encoded.embeds])

        def wants_more(number: int, token_id: int) -> bool:
            writer = prepared[number][1]
            writer.push(token_id)
            return not writer.complete

        greedy_batch(
            graphs.decoder(),
            [partial(prompt, number) for number in range(len(prepared))],
            self._table.rows,
            wants_more,
            self.manifest.eos_token_ids,
            min(batch_size, max(1, len(prepared))),
        )
        return [writer.finish()[1] for _, writer in prepared]

    def _prepare(
        self, question: str, max_new_tokens: int | None, template: str | None
    ) -> tuple[list[list[int]], AnswerWriter]:
        """The prompt's segments, and what writes its answer down."""
        sizes = self.manifest.architecture
        segments = self._segments(question, template)
        prompt_tokens = sum(map(len, segments)) + sizes.qformer.num_query_tokens
        context = sizes.language.max_position_embeddings
        if max_new_tokens is None:
            max_new_tokens = max(1, min(DEFAULT_MAX_NEW_TOKENS, context - prompt_tokens))
        check_room(prompt_tokens, max_new_tokens, context)
        detokenizer = Detokenizer(self._tokenizer, self.manifest.stop_strings)
        return segments, AnswerWriter(detokenizer, prompt_tokens, max_new_tokens)

    def _segments(self, question: str, template: str | None) -> list[list[int]]:
        """Token ids of the prompt for one question, cut where the image goes."""
        prompt = render(self.manifest.template(template), [(question, None)])
        return encode_segments(self._tokenizer, prompt)

    def _embed_token(self, token_id: int) -> Float32Array:
        return self._table.rows([token_id])


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again") from error


def _still_open(part: Part | None) -> Part:
    if part is None:
        raise TinyGPTVError("this model was closed; load the bundle again")
    return part
