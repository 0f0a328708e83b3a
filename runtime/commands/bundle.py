"""``tinygptv bundle``: checks that a bundle is complete and undamaged, and shows its contents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.checksums import is_whole
from ..bundle.manifest import GRAPHS, FileRecord, Graph, Manifest, check_size, parse_manifest
from ..errors import BundleError, reason_of
from ..tuning.find import Tuned, homes_of, is_intact, read_index
from .options import EXIT_ERROR, add_bundle, bundle_of, examples
from .terminal import GREEN, RED, paint, progress_bar, status

if TYPE_CHECKING:
    from .options import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bundle",
        help="check that a bundle is complete and undamaged, or show what is in it",
        description="Check that a bundle is complete and undamaged, or show what is in it.",
        epilog=examples("tinygptv bundle verify ~/models/tinygptv", "tinygptv bundle info ~/models/tinygptv --json"),
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    for name, run, text in (
        ("verify", verify, "Compare every file with the manifest: size and SHA-256. Exit status 1 if any differs."),
        ("info", info, "Show what a bundle was made from, its sizes, how it is quantised, and whether it is tuned."),
    ):
        action = actions.add_parser(
            name, help=text, description=text, epilog=examples(f"tinygptv bundle {name} ~/models/tinygptv")
        )
        add_bundle(action)
        action.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        action.set_defaults(run=run)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A file of the bundle, or a tuned copy, and its state."""

    name: str
    whole: bool
    note: str
    """An error message, or else the size."""


def verify(options: argparse.Namespace) -> int:
    """Check every file of a bundle and of its tuned copies, and print which ones are damaged."""
    folder = bundle_of(options.bundle)
    manifest = parse_manifest(folder)
    total = sum(record.size for record in manifest.files)
    found: list[_Found] = []
    with progress_bar("reading", total, "B", unit_scale=True) as bar, ThreadPoolExecutor() as pool:
        checked = pool.map(lambda record: _check(folder, manifest, record), manifest.files)
        for record in manifest.files:
            found.append(next(checked))
            bar.update(record.size)
    with status("checking the tuned copy ..."):
        for home, tuned in _tuned_places(folder, manifest):
            if isinstance(tuned, Tuned):
                whole = is_intact(tuned, manifest)
                note = "tuned to this machine" if whole else "damaged: run tinygptv tune again"
                found.append(_Found(str(home), whole, note))
    whole = all(one.whole for one in found)
    if options.json:
        files = [dataclasses.asdict(one) for one in found]
        print(json.dumps({"folder": str(folder), "whole": whole, "files": files}), flush=True)
    else:
        for one in found:
            mark = paint("complete", GREEN, sys.stdout) if one.whole else paint("damaged ", RED, sys.stdout)
            print(f"{mark}  {one.name}: {one.note}")
        wrong = sum(not one.whole for one in found)
        print(f"{folder} " + ("is complete" if whole else f"is not complete: see the {wrong} above"), flush=True)
    return 0 if whole else EXIT_ERROR


def info(options: argparse.Namespace) -> int:
    """Print the contents of the manifest."""
    folder = bundle_of(options.bundle)
    manifest = parse_manifest(folder)
    places = [
        {"folder": str(home), "usable": isinstance(tuned, Tuned), "reason": "" if isinstance(tuned, Tuned) else tuned}
        for home, tuned in _tuned_places(folder, manifest)
    ]
    if options.json:
        size = sum(record.size for record in manifest.files)
        described = dataclasses.asdict(manifest)
        print(json.dumps({"folder": str(folder), "bytes": size, **described, "tuned": places}), flush=True)
        return 0
    rows = _rows(folder, manifest)
    rows += [("tuned", f"{place['folder']}: {place['reason'] or 'yes, will be used'}") for place in places]
    print("\n".join(f"{name:>14}  {text}" for name, text in rows), flush=True)
    return 0


def _check(folder: Path, manifest: Manifest, record: FileRecord) -> _Found:
    try:
        check_size(folder, manifest, record)
        if is_whole(folder / record.name, record):
            return _Found(record.name, True, f"{record.size:,} bytes")
        return _Found(record.name, False, "its SHA-256 is not the manifest's; copy the bundle again")
    except (BundleError, OSError) as error:
        return _Found(record.name, False, reason_of(error))


def _tuned_places(folder: Path, manifest: Manifest) -> list[tuple[Path, Tuned | str]]:
    """The places where a tuned copy may be, each with the copy, or with the reason why there is none that fits."""
    return [(home, read_index(home, folder, manifest)) for home in homes_of(folder)]


def _rows(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    sizes = {record.name: record.size for record in manifest.files}
    contract, image = manifest.contract, manifest.image
    names = (t.name + (" (default)" if t.name == manifest.default_template else "") for t in manifest.templates)
    stage = "" if manifest.stage is None else f", stage {manifest.stage}"
    pad_color = "" if image.pad_color is None else f" with RGB {image.pad_color}"
    rows = [
        ("bundle", f"{folder} ({manifest.name}, {sum(sizes.values()) / 1e6:,.1f} MB)"),
        ("family", f"{manifest.family}{stage}"),
        ("made by", f"{manifest.exporter}, format {manifest.format_version}.{manifest.format_minor}"),
        *((name, _sizes(part)) for name, part in manifest.parts.items()),
        (
            "images",
            f"{image.fit}{pad_color} to {image.image_size} px, {image.resample}, mean {_numbers(image.mean)}, "
            f"std {_numbers(image.std)}: {contract.image_tokens} tokens each",
        ),
        (
            "context",
            f"{contract.context:,} positions of {contract.hidden_size}, vocabulary of {contract.vocab_size:,}",
        ),
        (
            "KV cache",
            f"{contract.layers} layers of {contract.heads} heads of {contract.head_dim} in {contract.cache_dtype}: "
            f"{contract.cache_bytes_per_position / 1e6:.3g} MB a position",
        ),
        ("templates", ", ".join(names)),
        ("tasks", " ".join(manifest.tasks) or "none"),
        ("boxes", "in answers and questions" if manifest.boxes else "none"),
        ("caption", manifest.caption_question),
        ("stop strings", " ".join(map(repr, manifest.stop_strings)) or "none"),
    ]
    graphs = {name: manifest.graphs[name] for name in GRAPHS}
    rows += [(name, f"{sizes[graph.data] / 1e6:,.1f} MB, {_precision(graph)}") for name, graph in graphs.items()]
    rows += [
        ("source", f"{source.role}: {source.name}, {source.size:,} bytes, SHA-256 {source.sha256[:12]}...")
        for source in manifest.sources
    ]
    return rows


def _sizes(part: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in part.items())


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _precision(graph: Graph) -> str:
    stored = (
        f"{part.layers} matrices in {part.bits} bits"
        + (f", group size {part.block_size}" if part.block_size else "")
        + f" ({part.operator})"
        for part in graph.quantization
    )
    return ": ".join(filter(None, (graph.precision, ", ".join(stored))))
