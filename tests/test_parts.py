"""Every part: its graph, its torch twin and the stock classes of the oracle compute the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import computed
from networks import (
    CASES,
    CLIP,
    Networks,
    int8,
    open_decoder,
    random_input,
    random_tensors,
    run_vision,
    together,
    write,
)
from tinygptv.export.cache_rounding import Cache
from tinygptv.export.graph import TAPS
from tinygptv.export.parts import clip
from tinygptv.export.sources.model import Network
from tinygptv.export.verify.oracle import Oracle, StreamedOracle, load, tensors_of
from tinygptv.export.verify.tapped_graph import TappedGraph
from tinygptv.runtime.bundle.manifest import DECODER, PROJECTOR, VISION_ENCODER
from tinygptv.runtime.language.decoder import ALL_LOGITS
from torch import Tensor

TOLERANCE = 2e-5
"""Of the largest difference, in standard deviations of what is expected."""
OUTPUTS = {VISION_ENCODER: "image_features", PROJECTOR: "image_embeds", DECODER: "logits"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Networks]:
    return CASES[request.param]


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


def input_of(graph: str, networks: Networks, batch: int = 1) -> Tensor:
    """Of the decoder a prompt of nine tokens."""
    if graph == DECODER:
        hidden = networks[DECODER].sizes.hidden_size
        return torch.randn(batch, 9, hidden, generator=torch.Generator().manual_seed(2))
    return random_input(networks[graph], batch)


@torch.no_grad()
def oracle_of(graph: str, networks: Networks, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    oracle = Oracle(networks)
    load(oracle, tensors)
    run = {VISION_ENCODER: oracle.image_features, PROJECTOR: oracle.image_embeds, DECODER: oracle.logits}
    oracle.eval()
    return run[graph](x)


def run_graph(folder: Path, graph: str, networks: Networks, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    written = write(folder, networks, graph, tensors)
    if graph != DECODER:
        return run_vision(folder, written, x)
    decoder = open_decoder(folder, written, networks)
    return torch.from_numpy(np.stack([decoder.start().run(row[np.newaxis], ALL_LOGITS) for row in x.numpy()]))


def test_graph_twin_and_oracle(case: tuple[str, Networks], tmp_path: Path) -> None:
    graph, networks = case
    tensors, x = random_tensors(networks), input_of(graph, networks, batch=2)
    twin = computed(networks, tensors, graph, x)
    assert deviation(twin, oracle_of(graph, networks, tensors, x)) < TOLERANCE
    assert deviation(run_graph(tmp_path, graph, networks, tensors, x), twin) < TOLERANCE
    assert twin.shape[1] == (9 if graph == DECODER else networks[graph].sizes.tokens)
    assert deviation(twin[:1], twin[1:]) > 0.1, "the two inputs are different"


def test_every_tensor_counts(case: tuple[str, Networks]) -> None:
    """None of the names that a part reads is one that it does not use; the table is looked up elsewhere."""
    graph, networks = case
    tensors, x = random_tensors(networks), input_of(graph, networks)
    plain = computed(networks, tensors, graph, x)
    network = networks[graph]
    for name, shape in network.part.tensors(network.sizes).items():
        assert tensors[name].shape == shape
        # A key's bias adds the same to a token's products with every other, which softmax takes off again.
        if name == "model.embed_tokens.weight" or name.endswith(".self.key.bias"):
            continue
        # Not a multiple: a norm after it would take that back.
        other = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        changed = computed(networks, tensors | {name: tensors[name] + 0.5 * other}, graph, x)
        assert deviation(changed, plain) > 1e-4, name


@torch.no_grad()
def test_what_verify_compares(case: tuple[str, Networks], tmp_path: Path) -> None:
    """Rows by rows: each is noted in the graph, in the order of computation, and is the oracle's tensor."""
    graph, networks = case
    tensors, x = random_tensors(networks), input_of(graph, networks)
    oracle = StreamedOracle(networks, tensors)
    seen: dict[str, Tensor] = {}

    def watch(part: str, row: str, output: Tensor) -> Tensor:
        assert part == graph
        seen[row] = output
        return output

    oracle.watch = watch
    {VISION_ENCODER: oracle.image_features, PROJECTOR: oracle.image_embeds, DECODER: oracle.logits}[graph](x)
    rows = oracle.rows(graph)
    layers = networks[graph].sizes.num_hidden_layers
    word = "block" if graph == VISION_ENCODER else "layer"
    between = layers - (networks[graph].name == "mlp")
    assert rows == [
        *(["embeddings"] if graph == VISION_ENCODER else []),
        *(f"{word} {i}" for i in range(between)),
        OUTPUTS[graph],
    ]
    assert list(seen) == rows
    written = write(tmp_path, networks, graph, tensors)
    model = onnx.load(tmp_path / written.file, load_external_data=False)
    noted = {entry.key: entry.value for entry in model.metadata_props}
    assert list(json.loads(noted[TAPS])) == rows
    tapped = TappedGraph(tmp_path, written, rows)
    found = tapped.read(x.numpy()) if graph == DECODER else tapped.see(x.numpy())
    assert list(found) == rows
    for row in rows:
        assert deviation(found[row], seen[row]) < TOLERANCE, row


def test_an_oracles_weights_are_the_models(case: tuple[str, Networks]) -> None:
    graph, networks = case
    tensors = random_tensors(networks)
    oracle = Oracle(networks)
    load(oracle, tensors)
    found = tensors_of(oracle)
    assert found.keys() == tensors.keys()
    assert [name for name in tensors if not torch.equal(found[name], tensors[name])] == []
    del tensors[next(iter(networks[graph].part.tensors(networks[graph].sizes)))]
    with pytest.raises(KeyError):
        load(oracle, tensors)


class Counted(Mapping[str, Tensor]):
    """Tensors whose reading is counted."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.read: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        self.read[name] += 1
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def test_a_graph_reads_each_tensor_once(case: tuple[str, Networks], tmp_path: Path) -> None:
    """They are read from files of several GB."""
    graph, networks = case
    tensors = Counted(random_tensors(networks))
    write(tmp_path, networks, graph, tensors)
    wanted = dict.fromkeys(networks[graph].part.tensors(networks[graph].sizes), 1)
    wanted.pop("model.embed_tokens.weight", None)
    assert tensors.read == wanted


@pytest.mark.parametrize("name", [name for name, (graph, _) in CASES.items() if graph == DECODER])
def test_positions_one_by_one_are_those_at_once(name: str, tmp_path: Path) -> None:
    """Through the KV cache, float16 as in int8 bundles too."""
    graph, networks = CASES[name]
    tensors, x = random_tensors(networks), input_of(graph, networks).numpy()
    for dtype, tolerance in (("float32", TOLERANCE), ("float16", 0.02)):
        folder = tmp_path / dtype
        folder.mkdir()
        decoder = open_decoder(folder, write(folder, networks, graph, tensors, cache=Cache(dtype)), networks, dtype)
        whole = torch.from_numpy(decoder.start().run(x, ALL_LOGITS).copy())
        state = decoder.start()
        state.run(x[:, :4])
        steps = [torch.from_numpy(state.run(x[:, i : i + 1]).copy()) for i in range(4, x.shape[1])]
        assert deviation(torch.cat(steps), whole[4:]) < tolerance


# int8


def test_int8_is_close(case: tuple[str, Networks], tmp_path: Path) -> None:
    graph, networks = case
    tensors, x = random_tensors(networks), input_of(graph, networks)
    wanted = computed(networks, tensors, graph, x)
    written = write(tmp_path, networks, graph, tensors, int8(graph, 16, networks[graph].part.EXACT))
    if graph == DECODER:
        found = torch.from_numpy(open_decoder(tmp_path, written, networks).start().run(x.numpy(), ALL_LOGITS))[None]
    else:
        found = run_vision(tmp_path, written, x)
    error = float((found - wanted).norm() / wanted.norm())
    assert 1e-4 < error < 0.05
    assert written.precision == "int8"


def kernels(folder: Path, file: str) -> dict[str, str]:
    """The operator of each linear layer's products, loops' bodies included, by the node's name."""

    def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from nodes(attribute.g)

    model = onnx.load(folder / file, load_external_data=False)
    products = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat")
    return {node.name: node.op_type for node in nodes(model.graph) if node.op_type in products}


@pytest.mark.parametrize("name", [name for name, (graph, _) in CASES.items() if graph == VISION_ENCODER])
def test_exact_layers_stay_float32(name: str, tmp_path: Path) -> None:
    """The first product of CLIP's and SigLIP's towers; of EVA-CLIP none."""
    graph, networks = CASES[name]
    network = networks[graph]
    expected = set() if network.name == "eva_clip" else {"visual.blocks.0.attn.qkv"}
    assert expected == network.part.EXACT
    written = write(tmp_path, networks, graph, random_tensors(networks), int8(graph, 16, network.part.EXACT))
    found = kernels(tmp_path, written.file)
    floats = {name.removesuffix(".product").rpartition(".")[0] for name, kind in found.items() if kind == "MatMul"}
    assert floats == expected
    (quantised,) = written.quantization
    assert len(found) == 6 * network.sizes.num_hidden_layers == quantised.layers + 3 * len(expected)


# Sizes


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("eva_clip", 10),
        ("clip, patch", 9),
        ("clip, cls_patch", 10),
        ("siglip, first patch kept", 9),
        ("siglip, first patch dropped", 8),
    ],
)
def test_tokens(name: str, tokens: int) -> None:
    _, networks = CASES[name]
    assert networks[VISION_ENCODER].sizes.tokens == tokens


def test_pixels_beyond_the_last_patch_are_not_looked_at() -> None:
    graph, networks = CASES["siglip, first patch kept"]
    tensors, x = random_tensors(networks), input_of(graph, networks)
    plain = computed(networks, tensors, graph, x)
    x[:, :, 42:], x[:, :, :, 42:] = 9.0, 9.0
    assert torch.equal(computed(networks, tensors, graph, x), plain)


def test_the_token_that_is_dropped_is_the_first() -> None:
    """Of CLIP the class token, of SigLIP a patch: the others are what they are with it."""
    for kept, dropped in (
        ("clip, cls_patch", "clip, patch"),
        ("siglip, first patch kept", "siglip, first patch dropped"),
    ):
        graph, networks = CASES[kept]
        tensors, x = random_tensors(networks), input_of(graph, networks)
        whole = computed(networks, tensors, graph, x)
        assert torch.equal(computed(CASES[dropped][1], tensors, graph, x), whole[:, 1:])


def test_blocks_past_the_chosen_hidden_state_are_no_part_of_it() -> None:
    networks = together(Network(clip, CLIP))
    deeper = together(Network(clip, replace(CLIP, stored_layers=9)))
    part, sizes = networks[VISION_ENCODER].part, networks[VISION_ENCODER].sizes
    assert part.tensors(sizes) == part.tensors(deeper[VISION_ENCODER].sizes)
    assert max(int(name.split(".")[2]) for name in part.tensors(sizes) if ".blocks." in name) == 2
