"""From a checkpoint to a bundle: the graphs, embeddings, tokenizer and manifest, whole or not at all."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tinygptv.runtime.bundle.manifest import (
    DECODER,
    EMBEDDINGS,
    FILE_NAME,
    FORMAT_VERSION,
    PROJECTOR,
    TOKENIZER,
    VISION_ENCODER,
    FileRecord,
    Graph,
    ImagePreprocessing,
    Manifest,
    Source,
    write_manifest,
)
from tinygptv.runtime.errors import ExportError
from tinygptv.runtime.language.prompt import PUBLISHED_TEMPLATES
from tqdm import tqdm

from .architecture import STAGES
from .calibration import PACKAGED, CalibrationSet, calibrate, find_calibration_set
from .checkpoint import Checkpoint
from .contract import contracts
from .decoder import build_decoder
from .graph import GraphWriter
from .projector import build_projector
from .readers import fingerprint
from .schemes import SchemeOf, schemes
from .smoothing import Smoothed
from .tokenizer import build_tokenizer, eos_token_id
from .vision_encoder import build_vision_encoder

PRECISIONS = ("int8", "fp32")
CACHE_DTYPES = {"int8": "float16", "fp32": "float32"}
"""Of the KV cache: fp16 rounds far finer than int8 weights do, at half the memory."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_BLOCK_SIZE = 64
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STOP_STRINGS = ("###",)
"""Training ended every answer so, in every template."""
DEFAULT_TEMPLATES = {1: "human_assistant", 2: "human_assistant", 3: "human_assistant", 4: "inst"}
TEMPLATE_NAMES = tuple(template.name for template in PUBLISHED_TEMPLATES)


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    path: Path
    files: tuple[FileRecord, ...]
    seconds: float


def export_bundle(
    *,
    phi: str | os.PathLike[str],
    vision: str | os.PathLike[str],
    qformer: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    stage: int,
    output: str | os.PathLike[str],
    architecture: str | os.PathLike[str] | None = None,
    precision: str = "int8",
    block_size: int = DEFAULT_BLOCK_SIZE,
    template: str | None = None,
    calibration: str | os.PathLike[str] | None = PACKAGED,
    overwrite: bool = False,
    progress: bool = False,
) -> Exported:
    """Turn the four published files into a bundle.

    Args:
        phi: Phi-2 folder.
        vision: EVA-CLIP weights, ``eva_vit_g.pth``.
        qformer: BLIP-2 weights, ``blip2_pretrained_flant5xxl.pth``.
        checkpoint: TinyGPT-V weights, ``TinyGPT-V_for_StageN.pth``.
        stage: 1 to 4: which training stage ``checkpoint`` is of.
        output: Folder to make.
        architecture: JSON with what the files don't tell, for models of other than the published sizes.
        precision: ``int8``, or ``fp32`` for exact comparison (four times the size).
        block_size: Weights of the decoder that share an int8 scale: 16, 32, 64, 128 or 256; of its last layer, where
            rounding tells most, 16.
        template: Name of the bundle's default prompt template; that of the stage's released demo if not given.
        calibration: Folder of pictures and .txt files that decide how int8 weights and activations share their range;
            those that come with the exporter if not given, None for no calibration. fp32 needs none.
        overwrite: Replace ``output`` where it is a bundle already.
        progress: Show progress bars on stderr.

    Returns:
        The bundle's path, its files with sizes and hashes, and the time it took.

    Raises:
        ExportError: An input is damaged or does not fit the others, or ``output`` cannot be written. Nothing is left.
        ValueError: An argument is out of range.
    """
    started = time.monotonic()
    for name, value, allowed in (
        ("stage", stage, STAGES),
        ("precision", precision, PRECISIONS),
        ("block_size", block_size, BLOCK_SIZES),
        ("template", template, (None, *TEMPLATE_NAMES)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(str(a) for a in allowed)}")
    target = Path(output).absolute()
    _check_target(target, overwrite)
    calibration_set = None if calibration is None or precision == "fp32" else find_calibration_set(Path(calibration))
    inputs = Checkpoint(
        Path(phi),
        Path(vision),
        Path(qformer),
        Path(checkpoint),
        stage,
        None if architecture is None else Path(architecture),
    )
    _check_space(target.parent, inputs, precision)
    with _staging(target) as folder:
        tokenizer = build_tokenizer(inputs.phi, inputs.architecture.language.vocab_size)
        image = ImagePreprocessing(inputs.architecture.vision.image_size, CLIP_MEAN, CLIP_STD)
        default_template = template or DEFAULT_TEMPLATES[stage]
        scheme_of = schemes(precision, block_size)
        tensors: Mapping[str, torch.Tensor] = inputs
        if calibration_set is not None:
            with tqdm(desc="calibration", unit="group", disable=not progress) as bar:
                prompt = next(known for known in PUBLISHED_TEMPLATES if known.name == default_template)
                smoothings = calibrate(inputs, image, prompt, tokenizer, calibration_set, scheme_of, bar)
            tensors = Smoothed(inputs, smoothings)
        graphs, files = _write_graphs(folder, inputs, tensors, precision, scheme_of, progress)
        tokenizer.save(str(folder / TOKENIZER))
        files.append(_record(folder / TOKENIZER))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=target.name,
            exporter=f"tinygptv {version('tinygptv')}",
            stage=stage,
            architecture=inputs.architecture,
            image=image,
            templates=PUBLISHED_TEMPLATES,
            default_template=default_template,
            stop_strings=STOP_STRINGS,
            eos_token_ids=(eos_token_id(inputs.phi, tokenizer),),
            graphs=graphs,
            sources=tuple(_fingerprints(inputs, calibration_set, progress)),
            files=tuple(files),
        )
        write_manifest(manifest, folder)
        inputs.close()
        _publish(folder, target)
    return Exported(target, manifest.files, time.monotonic() - started)


def _write_graphs(
    folder: Path,
    inputs: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    precision: str,
    scheme_of: Mapping[str, SchemeOf],
    progress: bool,
) -> tuple[dict[str, Graph], list[FileRecord]]:
    """``tensors`` are those of ``inputs``, smoothed where there was a calibration."""
    architecture = inputs.architecture
    cache_dtype = CACHE_DTYPES[precision]
    graphs: dict[str, Graph] = {}
    with tqdm(total=inputs.stored_bytes, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
        inputs.on_read(bar.update)
        bar.set_description("embeddings")
        files = [_write_embeddings(folder / EMBEDDINGS, inputs["model.embed_tokens.weight"], precision)]
        builds: dict[str, Callable[[GraphWriter, SchemeOf, Callable[[int, int], object]], None]] = {
            VISION_ENCODER: lambda *to: build_vision_encoder(to[0], tensors, architecture.vision, *to[1:]),
            PROJECTOR: lambda *to: build_projector(to[0], tensors, architecture.qformer, *to[1:]),
            DECODER: lambda *to: build_decoder(to[0], tensors, architecture.language, cache_dtype, *to[1:]),
        }
        for name, build in builds.items():
            with GraphWriter(folder, name) as graph:
                layers = architecture.language.num_hidden_layers if name == DECODER else 0
                graph.contract(*contracts(architecture, cache_dtype)[name], layers=layers)
                told = lambda i, n, name=name: bar.set_description(f"{name} layer {i + 1}/{n}")  # noqa: E731
                build(graph, scheme_of[name], told)
                graphs[name], records = graph.finish()
            files += records
        bar.set_description("graphs written")
    return graphs, files


def _write_embeddings(path: Path, table: torch.Tensor, precision: str) -> FileRecord:
    """The published table is fp16, so fp16 loses nothing of it; an exact comparison keeps float32."""
    if precision == "int8":
        largest = float(table.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise ExportError(f"model.embed_tokens.weight holds {largest:g}, more than fp16 can; use --precision fp32")
        table = table.half()
    np.save(path, table.numpy())
    return _record(path)


def _record(path: Path) -> FileRecord:
    with path.open("rb") as stream:
        return FileRecord(path.name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def _fingerprints(inputs: Checkpoint, calibration: CalibrationSet | None, progress: bool) -> Iterator[Source]:
    files = inputs.files() + [("calibration", file) for file in (calibration.files if calibration else ())]
    total = sum(file.stat().st_size for _, file in files)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
        bar.set_description("hashes of the sources")
        for role, file in files:
            yield fingerprint(role, file, bar.update)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: no such folder; make it first")
    if not target.exists():
        return
    if not overwrite:
        raise ExportError(f"{target} exists; choose another name or pass --overwrite")
    if not (target / FILE_NAME).is_file():
        raise ExportError(f"{target} exists and is not a bundle, so it is not replaced; choose another name")


def _check_space(folder: Path, inputs: Checkpoint, precision: str) -> None:
    """Refuse what cannot fit before hours of work; an int8 weight with its scale takes at most 1.25 bytes."""
    values = sum(math.prod(inputs.shape(name)) for name in inputs)
    needed = int(values * (1.25 if precision == "int8" else 4))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(f"{folder}: {free / 1e6:,.1f} MB free; the bundle takes up to {needed / 1e6:,.1f} MB")


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target that is gone afterwards, whatever happens, unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's is private; a bundle is shared like any other file
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Rename the finished folder to the target; a bundle that was there is removed once the new one is in its place."""
    if not target.exists():
        folder.rename(target)
        return
    retired = folder.with_suffix(".replaced")
    try:
        target.rename(retired)
        folder.rename(target)
    finally:
        # Wherever an interrupt or an error falls: one of the two bundles is in place, whole.
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(target)
