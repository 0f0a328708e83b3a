"""Runs bundle and oracle side by side, and compares them layer by layer.

Each layer of the oracle gets two inputs at once, stacked as one batch: its own, which shows how errors add up from
the photo on, and the bundle's, which shows what this one layer adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tinygptv.runtime.bundle.manifest import DECODER, EMBEDDINGS, PROJECTOR, VISION_ENCODER, Manifest
from tinygptv.runtime.language.embeddings import TokenEmbeddings, assemble
from tinygptv.runtime.system.process import return_freed_memory
from torch import Tensor

from ..sources.model import Model
from .agreement import Agreement, LayerTally, LogitsTally
from .oracle import StreamedOracle
from .prompts import Prompt
from .tapped_graph import Named, TappedGraph

PHOTOS_AT_ONCE = 4
"""Photos per pass over the vision weights; at the published sizes they need 0.9 GB for comparison."""
PROMPTS_AT_ONCE = 8

Array = NDArray[np.float32]
Step = Callable[[str], object]


class Comparison:
    """A bundle and the oracle; ``on_step`` is called with what was done, step by step.

    Call :meth:`see`, then :meth:`read`.
    """

    def __init__(self, folder: Path, manifest: Manifest, model: Model, on_step: Step) -> None:
        self._folder, self._manifest, self._on_step = folder, manifest, on_step
        self._contract = manifest.contract
        self._oracle = StreamedOracle(model.networks, model)
        self._tallies: dict[tuple[str, str], LayerTally] = {}
        self._logits = LogitsTally()

    def count_steps(self, photos: int, prompts: int) -> int:
        """The number of calls of ``on_step``."""
        seen = len(self._oracle.rows(VISION_ENCODER)) + len(self._oracle.rows(PROJECTOR))
        return (
            2 * photos
            + len(_parts(photos, PHOTOS_AT_ONCE)) * seen
            + prompts
            + len(_parts(prompts, PROMPTS_AT_ONCE)) * len(self._oracle.rows(DECODER))
        )

    @torch.no_grad()
    def see(self, pixel_values: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        """Show photos, each float32 [1, 3, size, size], to the vision encoders and projectors.

        Returns:
            The bundle's image embeds of each, [image tokens, hidden], and the oracle's.
        """
        bundle: list[Tensor] = []
        reference: list[Tensor] = []
        for part in _parts(len(pixel_values), PHOTOS_AT_ONCE):
            pixels = torch.from_numpy(np.concatenate(pixel_values[part]))
            found = self._bundle_sees(VISION_ENCODER, pixels)
            theirs, ours = self._compare(VISION_ENCODER, self._oracle.image_features, pixels, pixels, found)
            found = self._bundle_sees(PROJECTOR, ours)
            theirs, ours = self._compare(PROJECTOR, self._oracle.image_embeds, theirs, ours, found)
            bundle += ours.unbind()
            reference += theirs.unbind()
        return bundle, reference

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt], bundle: Sequence[Tensor], reference: Sequence[Tensor]) -> Agreement:
        """Feed prompts, with what :meth:`see` gave, to the decoders; returns how far apart the two are in all."""
        table = TokenEmbeddings(self._folder / EMBEDDINGS, self._contract)
        token_ids = sorted({token_id for prompt in prompts for segment in prompt.segments for token_id in segment})
        rows = dict(zip(token_ids, self._oracle.embed(torch.tensor(token_ids)), strict=True))
        for part in _parts(len(prompts), PROMPTS_AT_ONCE):
            self._read_some(prompts[part], table, rows, bundle, reference)
        return self._logits.result(tuple(tally.result(*key) for key, tally in self._tallies.items()))

    def _read_some(
        self,
        prompts: Sequence[Prompt],
        table: TokenEmbeddings,
        rows: dict[int, Tensor],
        bundle: Sequence[Tensor],
        reference: Sequence[Tensor],
    ) -> None:
        ours = [self._bundle_embeds(table, prompt, bundle) for prompt in prompts]
        theirs = [self._fit(_reference_embeds(rows, prompt, reference)) for prompt in prompts]
        own = [self._fit(_reference_embeds(rows, prompt, bundle)) for prompt in prompts]
        for arrays in zip(ours, theirs, own, strict=True):
            self._tally(DECODER, "inputs_embeds").add(*arrays)
        found = self._bundle_reads(ours)
        texts = [self._text_positions(prompt, len(embeds)) for prompt, embeds in zip(prompts, ours, strict=True)]
        lengths = [torch.arange(len(embeds)) for embeds in ours]
        # Padding on the right is never seen by what stands before it.
        their_logits, our_logits = self._compare(
            DECODER, self._oracle.logits, _padded(theirs), _padded(ours), found, lengths, texts
        )
        for text, *logits in zip(texts, our_logits, their_logits, strict=True):
            self._logits.add(*(values[text] for values in logits))

    def _compare(
        self,
        graph: str,
        run: Callable[[Tensor], Tensor],
        theirs: Tensor,
        ours: Tensor,
        found: Named,
        counted: Sequence[Tensor] | None = None,
        last_counted: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run a part of the oracle beside what the bundle found.

        Args:
            graph: The graph whose taps are compared.
            run: The part of the oracle.
            theirs: Its input, [batch, ...].
            ours: The bundle's input.
            found: Each tensor of the bundle that is compared, [batch, tokens, width]; they are taken out.
            counted: For each row of the batch, the tokens that count; all if not given.
            last_counted: Like ``counted``, for the last tap.

        Returns:
            Output of the oracle and of the bundle.
        """
        pending = self._oracle.rows(graph)

        def watch(part: str, row: str, output: Tensor) -> Tensor:
            if pending[:1] != [row]:  # post_layernorm's second run, over one token
                return output
            pending.pop(0)
            expected, own = output.chunk(2)
            mine = found.pop(row)
            which = counted if pending else last_counted
            for i in range(len(mine)):
                tokens = slice(None) if which is None else which[i]
                self._tally(graph, row).add(mine[i, tokens], expected[i, tokens], own[i, tokens])
            self._on_step(f"{graph} {row}, oracle")
            return torch.cat((expected, mine))

        self._oracle.watch = watch
        expected, mine = run(torch.cat((theirs, ours))).chunk(2)
        self._oracle.watch = lambda part, row, output: output
        assert not pending
        return expected, mine

    def _tally(self, graph: str, row: str) -> LayerTally:
        return self._tallies.setdefault((graph, row), LayerTally())

    def _bundle_sees(self, graph: str, inputs: Tensor) -> Named:
        tapped = self._tapped(graph)
        return _stacked(self._counted(graph, (tapped.see(row[np.newaxis]) for row in inputs.numpy())))

    def _bundle_reads(self, inputs_embeds: Sequence[Tensor]) -> Named:
        tapped = self._tapped(DECODER)
        return _stacked(self._counted(DECODER, (tapped.read(embeds.numpy()[np.newaxis]) for embeds in inputs_embeds)))

    def _tapped(self, graph: str) -> TappedGraph:
        # Loading a graph is when the most memory is in use.
        return_freed_memory()
        return TappedGraph(self._folder, self._manifest.graphs[graph], self._oracle.rows(graph))

    def _counted(self, graph: str, runs: Iterable[Named]) -> list[Named]:
        done: list[Named] = []
        for found in runs:
            done.append(found)
            self._on_step(f"{graph}, bundle")
        return done

    def _bundle_embeds(self, table: TokenEmbeddings, prompt: Prompt, images: Sequence[Tensor]) -> Tensor:
        shown = [] if prompt.photo is None else [images[prompt.photo].numpy()]
        return self._fit(torch.from_numpy(assemble(table, prompt.segments, shown)[0]))

    def _fit(self, embeds: Tensor) -> Tensor:
        """The part of a prompt that fits in the context."""
        return embeds[: self._contract.context]

    def _text_positions(self, prompt: Prompt, length: int) -> Tensor:
        """Positions of a prompt's text; image tokens are excluded, as the model was never trained to continue them."""
        text = torch.ones(length, dtype=torch.bool)
        if prompt.photo is not None:
            start = len(prompt.segments[0])
            text[start : start + self._contract.image_tokens] = False
        return text.nonzero()[:, 0]


def _reference_embeds(rows: dict[int, Tensor], prompt: Prompt, images: Sequence[Tensor]) -> Tensor:
    """A prompt's inputs_embeds [sequence, hidden], from the oracle's token embeddings."""
    texts = [[rows[token_id] for token_id in segment] for segment in prompt.segments]
    shown = [] if prompt.photo is None else images[prompt.photo].unbind()
    return torch.stack([*texts[0], *shown, *(row for text in texts[1:] for row in text)])


def _stacked(found: Sequence[Named]) -> Named:
    """Tensors [1, tokens, width] of several runs, which are taken out of them, as one [batch, tokens, width]."""
    return {name: _padded([run.pop(name)[0] for run in found]) for name in list(found[0])}


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """[tokens, width] each as one [batch, tokens, width], zeros after the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
