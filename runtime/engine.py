"""A loaded bundle at work: images to embeddings, conversations to prompts, prompts to answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .answer import Answer, AnswerStream, AnswerWriter, EncodedImage
from .bundle.manifest import Manifest
from .cancel import Cancellation
from .errors import ContextOverflowError
from .graphs import Graphs
from .language.detokenize import Detokenizer
from .language.embeddings import TokenEmbeddings, assemble
from .language.generate import check_room, decode
from .language.prefix_cache import Fed, Memory, PrefixCache, positions_of
from .language.prompt import IMAGE_SLOT, encode_segments, render, render_question
from .language.sampling import GREEDY, Sampling, chooser
from .vision.cache import ImageCache, key_of
from .vision.image import ImageSource, open_image, preprocess

DEFAULT_MAX_NEW_TOKENS = 300
"""As in the released demo."""
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Turn:
    """A question, and its answer unless the model is to give it."""

    question: str
    answer: str | None = None
    token_ids: tuple[int, ...] | None = None
    """Of the answer as the model spelt it, which its text need not be spelt like; None where only the text is known."""


@dataclass(frozen=True)
class Request:
    """How an answer is to be written."""

    max_new_tokens: int | None = None
    """If None, 300 or what the context has room for."""
    template: str | None = None
    """Name of a prompt template of the bundle; its default one if None."""
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    """Texts that end the answer and are not part of it, besides the bundle's own."""

    def __post_init__(self) -> None:
        # One string is most likely meant as one, not as its letters.
        if isinstance(self.stop, str):
            raise TypeError(f"stop is {self.stop!r}; expected a sequence of strings")


@dataclass(frozen=True)
class Prepared:
    """A prompt that fits, and what its answer is written down with."""

    segments: list[list[int]]
    """Token ids, cut where images go."""
    writer: AnswerWriter
    sampling: Sampling


class Engine:
    """May be used by several threads at once: every answer owns its cache while it is written."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: Graphs,
        table: TokenEmbeddings,
        tokenizer: Tokenizer,
        images: ImageCache,
    ) -> None:
        self.manifest = manifest
        self.graphs = graphs
        self.table = table
        self.tokenizer = tokenizer
        self.prefixes = PrefixCache()
        self._images = images

    def encode_image(self, image: ImageSource | EncodedImage, cancellation: Cancellation | None = None) -> EncodedImage:
        """Embeddings of a picture, from the cache where it is known."""
        if isinstance(image, EncodedImage):
            return image
        cancellation = cancellation or Cancellation()
        started = time.perf_counter()
        picture = open_image(image)
        cancellation.check()  # a large one may have taken a second
        pixel_values = preprocess(picture, self.manifest.image)
        prepared = time.perf_counter()
        cancellation.check()
        key = key_of(pixel_values)
        embeds = self._images.find(key)
        encoded = time.perf_counter()
        if embeds is None:
            vision = self.graphs.vision
            features = vision.image_features(pixel_values, cancellation)
            encoded = time.perf_counter()
            embeds = vision.image_embeds(features, cancellation)[0]
            self._images.add(key, embeds)
        return EncodedImage(
            embeds=embeds,
            width=picture.width,
            height=picture.height,
            preprocess_seconds=prepared - started,
            encode_seconds=encoded - prepared,
            project_seconds=time.perf_counter() - encoded,
        )

    def segments(self, turns: Sequence[Turn], image_count: int, template: str | None) -> list[list[int]]:
        """Token ids of a conversation, cut where images go.

        Answers of which the tokens are known keep them, so that what was fed when they were written stays valid; all
        else is tokenised as the published code does.
        """
        chosen = self.manifest.template(template)
        render(chosen, [(turn.question, turn.answer) for turn in turns], image_count)  # checks all of it
        text, segments = chosen.system, [list[int]()]

        def flush(text: str) -> str:
            first, *rest = encode_segments(self.tokenizer, text)
            segments[-1] += first
            segments.extend(rest)
            return ""

        for number, turn in enumerate(turns):
            text += render_question(chosen, turn.question, 0 if number else image_count)
            if turn.token_ids is None:
                text += turn.answer or ""
            else:
                text = flush(text)
                segments[-1] += turn.token_ids
        flush(text)
        return segments

    def prepare(self, turns: Sequence[Turn], image_count: int, request: Request) -> Prepared:
        """A conversation as a prompt; whole turns are left out, the oldest first, until it fits.

        Raises:
            ContextOverflowError: Not even the last question fits.
            ArgumentError: A question is empty, or another argument out of range.
        """
        sizes = self.manifest.architecture
        context = sizes.language.max_position_embeddings
        detokenizer = Detokenizer(self.tokenizer, (*self.manifest.stop_strings, *request.stop))
        for first in range(len(turns)):
            segments = self.segments(turns[first:], image_count, request.template)
            length = sum(map(len, segments)) + image_count * sizes.qformer.num_query_tokens
            only = first == len(turns) - 1
            wanted = request.max_new_tokens
            if wanted is None:
                # One question takes what room there is; a chat rather forgets its oldest turn than to be cut short.
                wanted = max(1, min(DEFAULT_MAX_NEW_TOKENS, context - length)) if only else DEFAULT_MAX_NEW_TOKENS
            try:
                check_room(length, wanted, context)
            except ContextOverflowError:
                if only:
                    raise
                continue
            return Prepared(segments, AnswerWriter(detokenizer, length, wanted, first), request.sampling)
        raise AssertionError("turns is never empty")

    def answer(
        self,
        prepared: Prepared,
        images: Sequence[EncodedImage],
        encoded: Sequence[EncodedImage],
        cancellation: Cancellation,
        memory: Memory | None = None,
        whole: Callable[[Answer], object] = lambda answer: None,
    ) -> AnswerStream:
        """Write the answer to a prompt.

        Args:
            prepared: The prompt.
            images: One for each of its slots.
            encoded: Those of them that were encoded for this answer.
            cancellation: Ends it from another thread.
            memory: Where the keys and values of its beginning may be; those left by earlier answers if None.
            whole: Told the answer once it is whole.
        """
        ids = self._ids(prepared, images, cancellation, memory or self.prefixes)
        return AnswerStream(ids, prepared.writer, encoded, cancellation, whole)

    def _ids(
        self, prepared: Prepared, images: Sequence[EncodedImage], cancellation: Cancellation, memory: Memory
    ) -> Iterator[int]:
        inputs_embeds = assemble(self.table, prepared.segments, [image.embeds for image in images])

        def ids() -> Iterator[int]:
            # The decoder may have to be opened: that is part of what a prompt takes.
            decoder = self.graphs.decoder()
            wanted = positions_of(prepared.segments, [(image.key, len(image.embeds)) for image in images])
            fed = memory.take(wanted) or Fed(decoder.new_cache(), [])
            known = fed.agreement(wanted)
            fed.rewind(known)
            prepared.writer.cached_tokens = known
            written: list[int] = []
            try:
                for token in decode(
                    decoder.start(fed.cache),
                    inputs_embeds[:, known:],
                    lambda token: self.table.rows([token]),
                    prepared.writer.max_new_tokens,
                    self.manifest.eos_token_ids,
                    chooser(prepared.sampling),
                    cancellation,
                ):
                    written.append(token)
                    yield token
            finally:
                fed.positions = [*wanted, *written][: fed.cache.length]
                memory.put(fed, self._shared(prepared.segments, images))

        return ids()

    def spelling(self, answer: Answer) -> tuple[int, ...] | None:
        """The tokens of an answer's text: all but those of a stop string; None where one token holds both."""
        ids = answer.token_ids
        if answer.finish_reason != "stop":
            return ids
        for count in range(len(ids), -1, -1):
            if self.tokenizer.decode(ids[:count], skip_special_tokens=True) == answer.text:
                return ids[:count]
        return None

    def _shared(self, segments: Sequence[Sequence[int]], images: Sequence[EncodedImage]) -> int:
        """Positions of a prompt through ``</Img>``, which every question about the same images begins with."""
        if not images:
            return 0
        closing = self.manifest.template(None).image.split(IMAGE_SLOT)[-1].rstrip()
        closed = len(self.tokenizer.encode(closing, add_special_tokens=False).ids)
        return sum(map(len, segments[:-1])) + sum(len(image.embeds) for image in images) + closed
