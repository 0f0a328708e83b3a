"""The bundle's manifest: the one contract between exporter and runtime, read and written here and nowhere else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..architecture import Architecture
from ..errors import ArgumentError, BundleError

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
VISION_ENCODER, PROJECTOR, DECODER = "vision_encoder", "projector", "decoder"
GRAPHS = (VISION_ENCODER, PROJECTOR, DECODER)
EMBEDDINGS = "embed_tokens.npy"
TOKENIZER = "tokenizer.json"
HASHED_BYTES = 16 << 20
"""Files up to this size are hashed whenever a bundle is loaded: the graphs, the tokenizer, all of the demo model."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """How an RGB picture becomes pixel_values: resized straight to a square, divided by 255, normalised."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str = "bicubic"
    """Pillow's bicubic filter (with antialiasing); other resizers give other numbers."""


@dataclass(frozen=True)
class PromptTemplate:
    """One published conversation format: system, then for each turn user + question + assistant + answer."""

    name: str
    system: str
    user: str
    assistant: str
    image: str
    """What stands before the first question's text for each picture; image tokens go where ``<ImageHere>`` is."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor: a fixed size, or the name of one that varies."""

    name: str
    size: int | None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A name with ``{i}`` stands once for every layer."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    note: str = ""


@dataclass(frozen=True)
class Quantization:
    """How some of a graph's weight matrices are stored."""

    bits: int
    block_size: int | None
    """Weights of one output that share a scale; None: all of them."""
    symmetric: bool
    operator: str
    layers: int
    """How many matrices are stored so; q, k and v are three."""


@dataclass(frozen=True)
class Graph:
    """One ONNX graph: its file, its weights' file, its precision and its contract."""

    file: str
    data: str
    precision: str
    quantization: tuple[Quantization, ...]
    """Empty in a float32 graph."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one of the bundle's files."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """One file the bundle was made from."""

    role: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know about a bundle before it opens any other file of it."""

    format_version: int
    name: str
    exporter: str
    stage: int
    architecture: Architecture
    image: ImagePreprocessing
    templates: tuple[PromptTemplate, ...]
    default_template: str
    stop_strings: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    graphs: dict[str, Graph]
    sources: tuple[Source, ...]
    files: tuple[FileRecord, ...]

    def template(self, name: str | None = None) -> PromptTemplate:
        """The template called ``name``, or the default one.

        Raises:
            ArgumentError: No template has that name.
        """
        wanted = self.default_template if name is None else name
        for template in self.templates:
            if template.name == wanted:
                return template
        raise ArgumentError(
            f"no prompt template {wanted!r}; this bundle has {', '.join(t.name for t in self.templates)}"
        )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into ``folder``."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle, and that its files are there and whole.

    Sizes are checked of all files, contents of those up to :data:`HASHED_BYTES`: hashing the weights of a full-size
    model would read gigabytes at each start. Packed weights may follow the weights (:func:`tuning_mark`); they are
    none of the bundle's.

    Raises:
        BundleError: As :func:`parse_manifest`, or a file is absent, of another size or damaged.
    """
    manifest = parse_manifest(folder)
    for record in manifest.files:
        check_size(folder, manifest, record)
        path = folder / record.name
        if record.size <= HASHED_BYTES and _sha256(path, record.size) != record.sha256:
            raise BundleError(f"{path} is damaged (its SHA-256 is not the manifest's); copy the bundle again")
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` itself; of the other files, only that it lists those that are needed.

    Raises:
        BundleError: The folder is no bundle, or its manifest is unreadable, of another format version, has missing or
            unknown fields, or does not list a file.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; expected a bundle that tinygptv-export wrote")
    if not path.is_file():
        raise BundleError(f"{folder} has no {FILE_NAME}; expected a bundle that tinygptv-export wrote")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {version!r}; this tinygptv reads {FORMAT_VERSION}: export the model again"
        )
    manifest = _from_json(Manifest, document, str(path))
    assert isinstance(manifest, Manifest)
    if set(manifest.graphs) != set(GRAPHS):
        raise BundleError(f"{path}: graphs are {sorted(manifest.graphs)}; expected {sorted(GRAPHS)}")
    listed = {record.name for record in manifest.files}
    needed = {EMBEDDINGS, TOKENIZER, *(name for g in manifest.graphs.values() for name in (g.file, g.data))}
    if needed - listed:
        raise BundleError(f"{path} does not list {', '.join(sorted(needed - listed))}")
    for name in listed:
        if Path(name).name != name:
            raise BundleError(f"{path} lists {name!r}; expected plain file names")
    return manifest


def check_size(folder: Path, manifest: Manifest, record: FileRecord) -> None:
    """See that a file is there, in the size that the manifest says, packed weights aside.

    Raises:
        BundleError: It is not.
    """
    path = folder / record.name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the whole bundle again")
    size = path.stat().st_size
    weights = {graph.data for graph in manifest.graphs.values()}
    grown = size > record.size and record.name in weights and _has_mark(path, record)
    if size != record.size and not grown:
        raise BundleError(f"{path} has {size:,} bytes; the manifest says {record.size:,}: copy the bundle again")


def tuning_mark(record: FileRecord) -> bytes:
    """What follows a weights file's own bytes where tuning has appended packed weights, which come next."""
    return b"\ntinygptv packed weights of " + record.sha256.encode() + b"\n"


def _has_mark(path: Path, record: FileRecord) -> bool:
    mark = tuning_mark(record)
    with path.open("rb") as file:
        file.seek(record.size)
        return file.read(len(mark)) == mark


def _sha256(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def _from_json(kind: Any, value: Any, where: str) -> Any:
    """Build ``kind`` (dataclasses, tuples, dicts, unions, scalars) from JSON, rejecting what does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where}: found {type(value).__name__}; expected an object")
        hints = typing.get_type_hints(kind)
        unknown, missing = set(value) - set(hints), set(hints) - set(value)
        if unknown or missing:
            problems = [*(f"unknown field {n}" for n in sorted(unknown)), *(f"no field {n}" for n in sorted(missing))]
            raise BundleError(f"{where}: {', '.join(problems)}")
        fields = {name: _from_json(hint, value[name], f"{where}: {name}") for name, hint in hints.items()}
        return typing.cast(Any, kind)(**fields)
    if origin is types.UnionType:
        return None if value is None else _from_json(next(a for a in arguments if a is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _from_json(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_from_json(a, item, where) for a, item in zip(arguments, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise BundleError(f"{where}: found {value!r:.80}; expected {getattr(kind, '__name__', kind)}")
