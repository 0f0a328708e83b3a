"""Exports a published model as a bundle: the graphs, embeddings, tokenizer and manifest, complete or not at all."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from tinygptv.runtime.bundle.manifest import (
    DECODER,
    EMBEDDINGS,
    FILE_NAME,
    FORMAT_MINOR,
    FORMAT_VERSION,
    GRAPHS,
    TOKENIZER,
    VISION_ENCODER,
    FileRecord,
    Graph,
    Manifest,
    Source,
    write_manifest,
)
from tinygptv.runtime.errors import ExportError, reason_of
from tinygptv.runtime.system.files import locked, publish_folder, recover_folder, retired_of, sha256_of, staging_folder
from tqdm import tqdm

from .cache_rounding import FLOAT32_CACHE, Cache
from .calibration import PACKAGED, CalibrationSet, calibrate, find_calibration_set
from .contract import Interface, interfaces
from .graph import GraphWriter
from .graph_ops import GraphOps
from .parts import vit
from .precision import Scheme, SchemeOf, candidates, chosen
from .smoothing import Smoothed
from .sources import SourceFiles, open_model
from .sources.families import STAGES, TEMPLATE_NAMES
from .sources.model import Model, Network
from .sources.tokenizer import build_tokenizer, eos_token_id

PRECISIONS = ("int8", "int4", "fp32")
CACHES = {"int8": "int8", "fp16": "float16"}
"""Data types of the KV cache, by their names as options."""
CACHE_DTYPES = {"int8": "float16", "int4": "float16", "fp32": "float32"}
"""Default data type of the KV cache by precision: fp16 rounds far less than int8 weights do, at half the memory."""
ROUNDED = "rounded"
"""Subfolder of the staging folder for weights that calibration has rounded and that are not yet in the graphs."""
GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    files: tuple[FileRecord, ...]
    seconds: float


def export_bundle(
    *,
    output: str | os.PathLike[str],
    precision: str = "int8",
    group_size: int | None = None,
    kv_cache: str | None = None,
    template: str | None = None,
    calibration: str | os.PathLike[str] | None = PACKAGED,
    overwrite: bool = False,
    progress: bool = False,
    **sources: Unpack[SourceFiles],
) -> Exported:
    """Turn published files into a bundle.

    Args:
        output: Folder to make.
        precision: ``int8``; ``int4`` for a decoder of half the size, whose answers are less exact; or ``fp32`` for
            exact comparison (four times the size).
        group_size: Group-wise scales in the decoder, of 16, 32, 64, 128 or 256 weights; of at most 16 in its last
            layer, where rounding changes the answers most. If not given, scales are per-channel where calibration finds
            that exact enough.
        kv_cache: ``int8``, for half of the cache's memory, and faster answers to long prompts that are a little less
            exact; or ``fp16``. If not given, ``fp16``, and float32 with a precision of fp32.
        template: Name of the bundle's default prompt template; that of the released demo if not given.
        calibration: Folder of pictures and .txt files that decide how int8 weights and activations share their range;
            those that come with the exporter if not given, None for no calibration. fp32 needs none but for an int8 KV
            cache.
        overwrite: Replace ``output`` where it is a bundle already.
        progress: Show progress bars on stderr.
        sources: The published files: ``model``, where needed with ``tower`` and ``phi``, for LLaVA-Phi, Mipha,
            TinyLLaVA and Bunny; ``phi``, ``vision``, ``qformer``, ``checkpoint``, ``stage`` and, for other than the
            published sizes, ``architecture`` for TinyGPT-V. See :class:`.sources.SourceFiles`.

    Returns:
        The bundle's path, its files with sizes and hashes, and the time it took.

    Raises:
        ExportError: An input is damaged or does not fit the others, or ``output`` cannot be written. Nothing is left.
        ValueError: An argument is out of range.
    """
    started = time.monotonic()
    for name, value, allowed in (
        ("precision", precision, PRECISIONS),
        ("group_size", group_size, (None, *GROUP_SIZES)),
        ("kv_cache", kv_cache, (None, *CACHES)),
        ("template", template, (None, *TEMPLATE_NAMES)),
        ("stage", sources.get("stage"), (None, *STAGES)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(str(a) for a in allowed)}")
    if precision == "int4" and calibration is None:
        raise ExportError("--precision int4 needs calibration: 4-bit rounding uses the layers' inputs")
    cache = Cache(CACHE_DTYPES[precision] if kv_cache is None else CACHES[kv_cache])
    if cache.dtype == "int8" and calibration is None:
        raise ExportError("--kv-cache int8 needs calibration, which measures its scales")
    target = Path(output).absolute()
    lock, staging = (target.with_name(f".{target.name}.{kind}") for kind in ("lock", "partial"))
    busy = ExportError(f"another export is writing {target}; wait for it, or choose another name")
    if retired_of(target).exists():
        with locked(lock, busy):
            recover_folder(target)
    _check_target(target, overwrite)
    calibration_set = None
    if calibration is not None and (precision != "fp32" or cache.dtype == "int8"):
        calibration_set = find_calibration_set(Path(calibration), precision)
    model = open_model(**sources)
    description = model.description
    templates = {known.name: known for known in description.family.templates}
    default_template = template or description.default_template
    if default_template not in templates:
        raise ExportError(
            f"{description.family.name} has no template {default_template}; it has {', '.join(templates)}"
        )
    tokenizer = build_tokenizer(description.tokenizer, model.networks[DECODER].sizes.vocab_size)
    eos_token = eos_token_id(description.tokenizer, tokenizer)
    _check_space(target.parent, model, precision)
    with _naming(target), locked(lock, busy), staging_folder(staging) as folder:
        # Before all else: hashing also finds what is damaged.
        fingerprints = tuple(_fingerprints(model, calibration_set, progress))
        exact = {name for network in model.networks.values() for name in network.part.EXACT}
        candidates_of = candidates(precision, group_size, exact)
        tensors: Mapping[str, torch.Tensor] = model
        found: Mapping[str, Scheme] = {}
        rounded = folder / ROUNDED
        rounded.mkdir()
        if calibration_set is not None:
            with tqdm(desc="calibration", unit="group", disable=not progress) as bar:
                calibrated = calibrate(
                    model,
                    templates[default_template],
                    tokenizer,
                    calibration_set,
                    candidates_of,
                    rounded,
                    bar,
                    int8_cache=cache.dtype == "int8",
                )
            tensors, found = Smoothed(model, calibrated.smoothings, calibrated.rounded), calibrated.schemes
            cache = Cache(cache.dtype, calibrated.cache_rounding)
        scheme_of = {graph: chosen(of, found) for graph, of in candidates_of.items()}
        graphs, files = _write_graphs(folder, model, tensors, precision, scheme_of, cache, progress)
        shutil.rmtree(rounded)
        (folder / TOKENIZER).write_bytes(tokenizer.to_str(pretty=True).encode())  # its save has errors of no class
        files.append(_record(folder / TOKENIZER))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            format_minor=FORMAT_MINOR,
            name=target.name,
            exporter=f"tinygptv {version('tinygptv')}",
            family=description.family.name,
            parts={network.name: asdict(network.sizes) for network in model.networks.values()},
            image=description.image,
            templates=description.family.templates,
            default_template=default_template,
            stop_strings=description.family.stop_strings,
            eos_token_ids=(eos_token,),
            caption_question=description.family.caption_question,
            tasks=description.family.tasks,
            boxes=description.family.boxes,
            graphs=graphs,
            sources=fingerprints,
            files=tuple(files),
            stage=description.stage,
        )
        write_manifest(manifest, folder)
        model.close()
        publish_folder(folder, target)
    return Exported(target, manifest.files, time.monotonic() - started)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Add the bundle's path to errors of the system: those of a full disk name no file."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{target} was not written: {reason_of(error)}") from error


def _write_graphs(
    folder: Path,
    model: Model,
    tensors: Mapping[str, torch.Tensor],
    precision: str,
    scheme_of: Mapping[str, SchemeOf],
    cache: Cache,
    progress: bool,
) -> tuple[dict[str, Graph], list[FileRecord]]:
    """Write all graphs. ``tensors`` are those of ``model``, smoothed if there was a calibration."""
    eyes, projector, language = (model.networks[name].sizes for name in GRAPHS)
    promised = interfaces(eyes.image_size, (eyes.tokens, eyes.hidden_size), projector.tokens, language, cache.dtype)
    graphs: dict[str, Graph] = {}
    with tqdm(total=model.stored_bytes, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
        model.on_read(bar.update)
        bar.set_description("embeddings")
        files = [_write_embeddings(folder / EMBEDDINGS, model["model.embed_tokens.weight"], precision)]
        for name in GRAPHS:
            network, interface = model.networks[name], promised[name]

            def on_layer(number: int, count: int, name: str = name) -> None:
                bar.set_description(f"{name} layer {number + 1}/{count}")

            graphs[name], records = write_graph(
                folder, name, network, interface, tensors, scheme_of[name], cache, on_layer
            )
            files += records
        bar.set_description("graphs written")
    return graphs, files


def write_graph(
    folder: Path,
    name: str,
    network: Network,
    interface: Interface,
    tensors: Mapping[str, torch.Tensor],
    scheme_of: SchemeOf,
    cache: Cache = FLOAT32_CACHE,
    on_layer: Callable[[int, int], object] = lambda number, count: None,
) -> tuple[Graph, list[FileRecord]]:
    """Write one graph.

    Args:
        folder: Where its two files are written.
        name: Name of the graph, such as ``vision_encoder``.
        network: The network that the graph computes.
        interface: Its inputs, of which the network reads the first, and its outputs, of which it gives the first.
        tensors: The network's tensors by name; float32.
        scheme_of: How each linear layer is quantised.
        cache: How keys and values are stored.
        on_layer: Called with (number, count) before each layer.

    Returns:
        The manifest's entries for the graph and its two files.
    """
    seeing = name == VISION_ENCODER
    with GraphWriter(folder, name) as graph:
        graph.contract(interface.inputs, interface.outputs, vit.working_bytes(network.sizes) if seeing else 0)
        ops = GraphOps(graph, tensors, scheme_of, cache=cache, on_layer=on_layer)
        result, output = network.part.run(ops, network.sizes, interface.inputs[0].name), interface.outputs[0].name
        ops.tap(output, result)
        graph.rename_output(result, output)
        return graph.finish()


def _write_embeddings(path: Path, table: torch.Tensor, precision: str) -> FileRecord:
    """Write the embedding table: in fp16 like the published one, or in float32 for exact comparison."""
    if precision != "fp32":
        largest = float(table.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise ExportError(
                f"model.embed_tokens.weight holds {largest:g}, which is out of fp16's range; use --precision fp32"
            )
        table = table.half()
    array = np.ascontiguousarray(table.numpy())
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)  # np.save would not say why the disk takes no more
    return _record(path)


def _record(path: Path) -> FileRecord:
    return FileRecord(path.name, path.stat().st_size, sha256_of(path))


def _fingerprints(model: Model, calibration: CalibrationSet | None, progress: bool) -> Iterator[Source]:
    files = model.files + [("calibration", file) for file in (calibration.files if calibration else ())]
    total = sum(file.stat().st_size for _, file in files)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
        bar.set_description("hashes of the sources")
        for role, file in files:
            yield Source(role, file.name, file.stat().st_size, model.sha256(file, bar.update))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: no such folder; create it first")
    if not target.exists():
        return
    if not overwrite:
        raise ExportError(f"{target} exists; choose another name or pass --overwrite")
    if not (target / FILE_NAME).is_file():
        raise ExportError(f"{target} exists and is not a bundle, so it is not replaced; choose another name")


def _check_space(folder: Path, model: Model, precision: str) -> None:
    """Check the disk space before hours of work; an int8 weight with its scale takes at most 1.25 bytes."""
    values = sum(math.prod(model.shape(name)) for name in model)
    needed = int(values * (4 if precision == "fp32" else 1.25))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(f"{folder}: {free / 1e6:,.1f} MB free; the bundle takes up to {needed / 1e6:,.1f} MB")
