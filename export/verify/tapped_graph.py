"""Runs a bundle's graphs with additional outputs: the tensors between their layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tinygptv.runtime.bundle.manifest import Graph
from tinygptv.runtime.bundle.sessions import open_session
from tinygptv.runtime.errors import BundleError
from tinygptv.runtime.language.decoder import ALL_LOGITS
from torch import Tensor

from ..graph import TAPS

Array = NDArray[np.float32]
Named = dict[str, Tensor]


class TappedGraph:
    """One graph of a bundle, loaded with further outputs.

    Args:
        folder: The bundle.
        graph: The graph to load.
        rows: What it is to give: names that its exporter noted in it.

    Raises:
        BundleError: The graph has no such row, or onnxruntime cannot load it.
    """

    def __init__(self, folder: Path, graph: Graph, rows: Sequence[str]) -> None:
        path = folder / graph.file
        model = onnx.load(path, load_external_data=False)
        noted = {entry.key: entry.value for entry in model.metadata_props}
        taps: dict[str, str] = json.loads(noted.get(TAPS, "{}"))
        if missing := [row for row in rows if row not in taps]:
            raise BundleError(
                f"{path} does not say which tensor is {missing[0]!r}; export the model again with this version of "
                "tinygptv"
            )
        self._tensors = {row: taps[row] for row in rows}
        given = {output.name for output in model.graph.output}
        added = [name for name in self._tensors.values() if name not in given]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
        self._dtypes = {name: spec.dtype for spec in graph.inputs for name in spec.names()}
        self._session = open_session(folder.absolute(), graph, threads=None, model=model.SerializeToString())

    def see(self, array: Array) -> Named:
        """Run a vision graph, which has one input; returns each row, float32 [batch, ...]."""
        return self._run({self._session.get_inputs()[0].name: array})

    def read(self, inputs_embeds: Array) -> Named:
        """Feed the decoder a prompt, float32 [1, sequence, hidden]; logits are of every position."""
        sequence = inputs_embeds.shape[1]
        feeds: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": inputs_embeds,
            "position_ids": np.arange(sequence, dtype=np.int64)[np.newaxis],
            "seqlens_k": np.array([sequence - 1], np.int32),
            "total_sequence_length": np.array(sequence, np.int32),
            "num_logits_to_keep": np.array(ALL_LOGITS, np.int64),
        }
        for past in self._session.get_inputs():
            if past.name not in feeds:
                _, heads, _, head_dim = past.shape
                feeds[past.name] = np.zeros((1, heads, 0, head_dim), self._dtypes[past.name])
        return self._run(feeds)

    def _run(self, feeds: dict[str, NDArray[np.generic]]) -> Named:
        outputs = self._session.run(list(self._tensors.values()), feeds)
        return {row: torch.from_numpy(output).float() for row, output in zip(self._tensors, outputs, strict=True)}
