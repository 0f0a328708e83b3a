"""A loaded bundle: encodes images, builds prompts, and generates answers."""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .answer import Answer, AnswerStream, AnswerWriter
from .bundle.manifest import Manifest
from .cancel import Cancellation
from .errors import ContextOverflowError
from .language.detokenize import Detokenizer
from .language.embeddings import TokenEmbeddings, assemble, check_images
from .language.generate import check_room, decode
from .language.prefix_cache import CachedSequence, CacheStore, ConversationCache, PrefixCache, positions_of
from .language.prompt import Prompt, Turn, closing_tokens
from .language.sampling import sampler
from .open_sessions import OpenSessions
from .options import DEFAULT_MAX_NEW_TOKENS, AnswerOptions
from .system.process import return_freed_memory
from .vision.cache import ImageCache, pixel_key
from .vision.encoded import EncodedImage
from .vision.fit import view_of
from .vision.image import DRAFT_OVERSIZE, ImageSource, name_of, open_picture, preprocess

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """A prompt that fits in the context, with the options of its answer."""

    segments: list[list[int]]
    """Token ids, split at the images."""
    shared_tokens: int
    """Number of first tokens that every question about the same images shares."""
    writer: AnswerWriter
    options: AnswerOptions

    def sampler(self) -> Callable[[Float32Array], int]:
        """A function that samples the answer's tokens, one after the other, from logits, float32 [vocabulary]."""
        options, count = self.options, self.options.top_logprobs
        record = None if count is None else functools.partial(self.writer.record, count=count)
        processor = None if options.logits_processor is None else options.logits_processor()
        return sampler(options.sampling, processor, record)


class Engine:
    """Encodes images and generates answers. Safe for concurrent use: every answer has a KV cache of its own."""

    def __init__(
        self,
        manifest: Manifest,
        sessions: OpenSessions,
        table: TokenEmbeddings,
        tokenizer: Tokenizer,
        images: ImageCache,
        telling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            manifest: The bundle's manifest.
            sessions: The bundle's graphs.
            table: The bundle's token embeddings.
            tokenizer: The bundle's tokenizer.
            images: Cache of encoded images.
            telling: Context manager that turns memory errors into one that says what would help.
        """
        self.telling = telling
        self.manifest = manifest
        self.sessions = sessions
        self.table = table
        self.tokenizer = tokenizer
        self.prefixes = PrefixCache()
        """Cache for other questions about the same images."""
        self.conversations = ConversationCache(self.prefixes)
        """Cache for the next question of a conversation whose turns are passed in."""
        self._closing_tokens = {each.name: closing_tokens(each, tokenizer) for each in manifest.templates}
        self._images = images

    def encode_image(self, image: ImageSource | EncodedImage, cancellation: Cancellation | None = None) -> EncodedImage:
        """Encode a picture, or take its embeddings from the cache."""
        if isinstance(image, EncodedImage):
            return image
        cancellation = cancellation or Cancellation()
        started = time.perf_counter()
        picture = open_picture(image, DRAFT_OVERSIZE * self.manifest.image.image_size)
        cancellation.check()  # a large one may have taken a second
        pixel_values = preprocess(picture, self.manifest.image, name_of(image))
        prepared = time.perf_counter()
        cancellation.check()
        width, height = picture.original_size
        del picture  # hundreds of MB, if it was large
        key = pixel_key(pixel_values)
        embeds = self._images.find(key)
        encoded = time.perf_counter()
        if embeds is None:
            with self.telling():
                vision = self.sessions.vision
                features = vision.image_features(pixel_values, cancellation)
                encoded = time.perf_counter()
                embeds = vision.image_embeds(features, cancellation)[0]
            self._images.add(key, embeds)
            return_freed_memory()
        return EncodedImage(
            embeds=embeds,
            width=width,
            height=height,
            preprocess_seconds=prepared - started,
            encode_seconds=encoded - prepared,
            project_seconds=time.perf_counter() - encoded,
            view=view_of(width, height, self.manifest.image),
        )

    def segments(self, turns: Sequence[Turn], image_count: int, template: str | None) -> list[list[int]]:
        """Token ids of a conversation, split at the images; see :class:`.Prompt`."""
        return self._prompt(turns, image_count, template)[0].segments()

    def check_turns(self, turns: Sequence[Turn], image_count: int, template: str | None) -> None:
        """Raise an error if the turns are invalid; their length is not checked, as the oldest can be left out."""
        Prompt(self.manifest.template(template), self.tokenizer, turns, image_count)

    def _prompt(
        self, turns: Sequence[Turn], image_count: int, template: str | None, system: str | None = None
    ) -> tuple[Prompt, int]:
        """Build a prompt, and find the first of its turns that may fit with those after it.

        Raises:
            ContextOverflowError: The last question is so long that tokenising it would take gigabytes of memory.
            ArgumentError: A question is empty, or the template does not exist.
        """
        prompt = Prompt(self.manifest.template(template), self.tokenizer, turns, image_count, system)
        context = self.manifest.contract.context
        oldest = prompt.oldest(context, self._longest_token)
        if oldest == len(turns):
            what = "question and system text have" if system else "the question has"
            raise ContextOverflowError(
                f"{what} {len(turns[-1].question) + len(system or ''):,} characters, and cannot fit in the model's "
                f"context of {context} tokens, however it is split into them: shorten it"
            )
        return prompt, oldest

    def prepare(self, turns: Sequence[Turn], image_count: int, options: AnswerOptions) -> Prepared:
        """Build a prompt that fits in the context, leaving out as many of the oldest turns as necessary.

        Raises:
            ContextOverflowError: Not even the last question fits.
            ArgumentError: A question is empty, or the template does not exist.
        """
        context, image_tokens = self.manifest.contract.context, self.manifest.contract.image_tokens
        template = self.manifest.template(options.template)
        prompt, oldest = self._prompt(turns, image_count, options.template, options.system)
        limit = options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        clamp = options.clamp or options.max_new_tokens is None
        reserved = min(limit, DEFAULT_MAX_NEW_TOKENS) if clamp else limit

        def length(first: int) -> int:
            return sum(map(len, prompt.segments(first))) + image_count * image_tokens

        def fits(first: int) -> bool:
            return length(first) + reserved <= context

        last = len(turns) - 1
        first = 0 if not oldest and fits(0) else min(last, bisect_left(range(last), True, lo=max(1, oldest), key=fits))
        segments, prompt_tokens = prompt.segments(first), length(first)
        # The last question takes what room there is; as long as there are older turns, they make room.
        max_new_tokens = max(1, min(limit, context - prompt_tokens)) if clamp else limit
        check_room(prompt_tokens, max_new_tokens, context)
        stops = (*self.manifest.stop_strings, *options.stop)
        detokenizer = Detokenizer(self.tokenizer, stops, template.before_answer)
        shared = sum(map(len, segments[:-1])) + self._closing_tokens[template.name] if image_count else 0
        writer = AnswerWriter(detokenizer, prompt_tokens, max_new_tokens, first, self.manifest.boxes)
        return Prepared(segments, shared, writer, options)

    @functools.cached_property
    def _longest_token(self) -> int:
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    def answer(
        self,
        prepared: Prepared,
        images: Sequence[EncodedImage],
        encoded: Sequence[EncodedImage],
        cancellation: Cancellation,
        store: CacheStore,
        callback: Callable[[Answer], object] = lambda answer: None,
    ) -> AnswerStream:
        """Generate the answer to a prompt.

        Args:
            prepared: The prompt.
            images: One image for each of its slots.
            encoded: Those that were encoded for this answer.
            cancellation: Ends it from another thread.
            store: Supplies its KV cache, and takes it back.
            callback: Called with the complete answer.

        Raises:
            ArgumentError: An image was encoded by another model.
        """
        check_images(self.table, prepared.segments, [image.embeds for image in images])
        ids = self._ids(prepared, images, cancellation, store)
        return AnswerStream(ids, prepared.writer, images, encoded, cancellation, callback)

    def _ids(
        self, prepared: Prepared, images: Sequence[EncodedImage], cancellation: Cancellation, store: CacheStore
    ) -> Generator[int, None, None]:
        """Generate token ids. The cache is taken from the store before the first token, and put back at the end."""
        with self.telling():
            yield from self._decoded(prepared, images, cancellation, store)

    def _decoded(
        self, prepared: Prepared, images: Sequence[EncodedImage], cancellation: Cancellation, store: CacheStore
    ) -> Generator[int, None, None]:
        # The decoder may have to be opened: that is part of what a prompt takes.
        decoder = self.sessions.decoder(cancellation)
        embeds = [image.embeds for image in images]
        positions = positions_of(prepared.segments, [(image.key, len(image.embeds)) for image in images])
        sequence = store.take(positions) or CachedSequence(decoder.new_cache(), [])
        generated: list[int] = []
        try:
            cached = sequence.common_prefix(positions)
            sequence.rewind(cached)
            prepared.writer.cached_tokens = cached
            tokens = decode(
                decoder.start(sequence.cache),
                assemble(self.table, prepared.segments, embeds, start=cached),
                lambda token: self.table.rows([token]),
                prepared.writer.max_new_tokens,
                self.manifest.eos_token_ids,
                prepared.sampler(),
                cancellation,
            )
            with closing(tokens):
                for token in tokens:
                    generated.append(token)
                    yield token
        finally:
            sequence.positions = [*positions, *generated][: sequence.cache.length]
            sequence.prompt_length = len(positions)
            sequence.shared_length = prepared.shared_tokens + sum(map(len, embeds))
            store.put(sequence)

    def text_token_ids(self, answer: Answer, template: str | None) -> tuple[int, ...] | None:
        """Token ids of an answer's text, without those of a stop string; None if one token contains both."""
        ids = answer.token_ids
        if answer.finish_reason != "stop":
            return ids
        prefix = self.manifest.template(template).before_answer
        for count in range(len(ids), -1, -1):
            text = self.tokenizer.decode(ids[:count], skip_special_tokens=True)
            if text.removeprefix(prefix) == answer.text:
                return ids[:count]
        return None
