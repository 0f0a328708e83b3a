"""The bundle's manifest, the contract between exporter and runtime; only this module reads and writes it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, BundleError, reason_of
from ..system.files import sha256_of
from .contract import DECODER as DECODER  # graphs are part of a manifest, and imported from here
from .contract import GRAPHS as GRAPHS
from .contract import PROJECTOR as PROJECTOR
from .contract import VISION_ENCODER as VISION_ENCODER
from .contract import Axis as Axis
from .contract import Contract as Contract
from .contract import Graph as Graph
from .contract import Quantization as Quantization
from .contract import TensorSpec as TensorSpec
from .contract import read_contract
from .typed_json import from_json
from .version1 import upgraded

FORMAT_VERSION, FORMAT_MINOR = 2, 0
"""Major and minor version. A reader ignores unknown fields, and uses the defaults of fields added by later minor
versions; it refuses a newer major version. So a change of the computed numbers needs a value that older readers
refuse (such as a new word for ``fit``, or a new input of a graph), or else a new major version."""
FILE_NAME = "manifest.json"
EMBEDDINGS = "embed_tokens.npy"
TOKENIZER = "tokenizer.json"
HASHED_BYTES = 16 << 20
"""Files up to this size are hashed whenever a bundle is loaded: the graphs, the tokenizer, all of the demo model."""
FITS, RESAMPLES = ("squash", "pad", "crop"), ("bicubic",)


@dataclass(frozen=True)
class ImagePreprocessing:
    """How an RGB picture becomes pixel_values: brought to a square, divided by 255, normalised."""

    image_size: int
    """Side of the square, in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    """``bicubic``: Pillow's filter (with antialiasing), on uint8; other resizers give other numbers."""
    fit: str
    """``squash``: resized straight to the square. ``pad``: pasted onto a square of the longer side, at offset
    floor((side - length) / 2), then resized. ``crop``: the shorter side resized to the square's (the longer one to
    int(image_size * longer / shorter)), then the middle cut out, at offset floor((length - image_size) / 2)."""
    pad_color: tuple[int, int, int] | None = None
    """RGB colour of the padding for ``pad``."""


@dataclass(frozen=True)
class PromptTemplate:
    """One published conversation format.

    A prompt is ``system``, then for each turn ``user``, the question, ``assistant``, and where the answer is known
    ``before_answer``, the answer, ``after_answer``.
    """

    name: str
    system: str
    user: str
    assistant: str
    image: str
    """Text before the first question's text for each picture; image tokens replace ``<ImageHere>``."""
    before_answer: str = ""
    """Text that the model itself generates at the beginning of an answer, and that is not part of the answer."""
    after_answer: str = ""
    strip_question: bool = False
    """Whether white space is stripped from both ends of a question with a picture."""


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
    """Format version of the file that was read; 1 if it was upgraded to the present version."""
    format_minor: int
    name: str
    exporter: str
    family: str
    """The model family: ``tinygpt-v``, ``llava-phi``, ``mipha``, ``tinyllava`` or ``bunny``."""
    parts: dict[str, dict[str, Any]]
    """Sizes of each network, for people and for ``tinygptv-export verify``; no other program needs them."""
    image: ImagePreprocessing
    templates: tuple[PromptTemplate, ...]
    default_template: str
    stop_strings: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    caption_question: str
    """The question that asks for a caption."""
    tasks: tuple[str, ...]
    """Tags such as ``[vqa]`` that a question may begin with; empty if the model was trained without tags."""
    boxes: bool
    """Whether answers may contain boxes, ``{<x1><y1><x2><y2>}`` in hundredths of the picture's width and height."""
    graphs: dict[str, Graph]
    sources: tuple[Source, ...]
    files: tuple[FileRecord, ...]
    stage: int | None = None
    """Training stage of TinyGPT-V; None for the other families."""

    @cached_property
    def contract(self) -> Contract:
        """The sizes that follow from the graphs.

        Raises:
            BundleError: The graphs contradict each other; a manifest from :func:`read_manifest` was checked for that.
        """
        return read_contract(self.graphs, self.name)

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
    """Write ``manifest.json`` into ``folder``, in the present version."""
    document = dataclasses.asdict(manifest) | {"format_version": FORMAT_VERSION, "format_minor": FORMAT_MINOR}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle, and check that all its files exist with the listed sizes.

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
        if record.size <= HASHED_BYTES and sha256_of(path, record.size) != record.sha256:
            raise BundleError(f"{path} is damaged (its SHA-256 is not the manifest's); copy the bundle again")
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` itself; of the other files, only that the required ones are listed.

    Raises:
        BundleError: The folder is no bundle, or its manifest is unreadable, of a newer format version, lacks a field,
            asks for something that this version cannot do, or does not list a file.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; expected a bundle that tinygptv-export wrote")
    if not path.is_file():
        raise BundleError(f"{folder} has no {FILE_NAME}; expected a bundle that tinygptv-export wrote")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({reason_of(error)}); copy the bundle again") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        remedy = "update tinygptv" if newer else "copy the bundle again, or export the model again"
        raise BundleError(
            f"{path} has format_version {version!r}; this version of tinygptv reads 1 to {FORMAT_VERSION}: {remedy}"
        )
    if version == 1:
        document = upgraded(document, str(path))
    manifest: Manifest = from_json(Manifest, document, str(path))
    _check(manifest, str(path))
    return manifest


def _check_names(manifest: Manifest, where: str) -> None:
    """Check that texts for errors and tables are printable: terminals interpret control characters."""
    specs = [spec for graph in manifest.graphs.values() for spec in (*graph.inputs, *graph.outputs)]
    names = [
        ("name", manifest.name),
        ("family", manifest.family),
        ("exporter", manifest.exporter),
        *((f"name of template {number}", template.name) for number, template in enumerate(manifest.templates)),
        *((f"name of file {number}", record.name) for number, record in enumerate(manifest.files)),
        *((f"file of {name}", file) for name, graph in manifest.graphs.items() for file in (graph.file, graph.data)),
        *(("name or dtype of a tensor", text) for spec in specs for text in (spec.name, spec.dtype)),
        *((f"name of an axis of {spec.name}", axis.name) for spec in specs for axis in spec.axes),
    ]
    for what, name in names:
        if not name.isprintable():
            raise BundleError(f"{where}: {what} is {name!r:.80}; expected printable characters")


def _check(manifest: Manifest, where: str) -> None:
    """Check that a manifest is consistent, and that this version supports everything in it."""
    if set(manifest.graphs) != set(GRAPHS):
        raise BundleError(f"{where}: graphs are {sorted(manifest.graphs)}; expected {sorted(GRAPHS)}")
    _check_names(manifest, where)
    listed = {record.name for record in manifest.files}
    needed = {EMBEDDINGS, TOKENIZER, *(name for g in manifest.graphs.values() for name in (g.file, g.data))}
    if needed - listed:
        raise BundleError(f"{where} does not list {', '.join(sorted(needed - listed))}; copy the bundle again")
    for name in listed:
        if Path(name).name != name:
            raise BundleError(f"{where} lists {name!r}; expected plain file names")
    if manifest.default_template not in {template.name for template in manifest.templates}:
        raise BundleError(f"{where}: there is no template {manifest.default_template!r}, the default one")
    image = manifest.image
    if image.fit not in FITS or image.resample not in RESAMPLES:
        raise BundleError(
            f"{where}: images are prepared by fit {image.fit!r} and resample {image.resample!r}; this version of "
            f"tinygptv knows {', '.join(FITS)} and {', '.join(RESAMPLES)}: update it"
        )
    if (image.fit == "pad") != (image.pad_color is not None) or not all(0 <= n <= 255 for n in image.pad_color or ()):
        raise BundleError(
            f"{where}: pad_color is {image.pad_color} with fit {image.fit!r}; expected three levels from 0 to 255 for "
            "pad, and null for the others: export the model again"
        )
    if not all(deviation > 0 for deviation in image.std):
        raise BundleError(f"{where}: std is {image.std}; expected numbers above 0: export the model again")
    contract = read_contract(manifest.graphs, where)
    if not all(0 <= token < contract.vocab_size for token in manifest.eos_token_ids):
        raise BundleError(
            f"{where}: eos_token_ids are {manifest.eos_token_ids!r:.80}; expected ids of {contract.vocab_size} tokens"
        )
    if contract.image_tokens >= contract.context:
        raise BundleError(
            f"{where}: an image takes {contract.image_tokens} positions, and the context has {contract.context}; "
            "export the model again"
        )
    if contract.image_size != image.image_size:
        raise BundleError(
            f"{where}: image_size is {image.image_size}, but pixel_values are {contract.image_size} x "
            f"{contract.image_size}; export the model again"
        )


def check_size(folder: Path, manifest: Manifest, record: FileRecord) -> None:
    """Check that a file exists with the size in the manifest, not counting packed weights.

    Raises:
        BundleError: The file is missing or has another size.
    """
    path = folder / record.name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the complete bundle again")
    size = path.stat().st_size
    weights = {graph.data for graph in manifest.graphs.values()}
    grown = size > record.size >= 0 and record.name in weights and _has_mark(path, record)
    if size != record.size and not grown:
        raise BundleError(f"{path} has {size:,} bytes; the manifest says {record.size:,}: copy the bundle again")


def tuning_mark(record: FileRecord) -> bytes:
    """The marker after a weights file's own bytes if tuning has appended packed weights, which follow it."""
    return b"\ntinygptv packed weights of " + record.sha256.encode() + b"\n"


def _has_mark(path: Path, record: FileRecord) -> bool:
    mark = tuning_mark(record)
    with path.open("rb") as file:
        file.seek(record.size)
        return file.read(len(mark)) == mark
