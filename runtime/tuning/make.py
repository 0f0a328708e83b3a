"""Tunes a bundle to this machine: saves its weights as onnxruntime packs them, so that they can be memory-mapped.

Packed weights are appended to the weights' own files, whose bytes stay what and where they were: other machines read
them as before, and the manifest's SHA-256 are of them. On x86 without VNNI, onnxruntime would change int8 weights each
time it loads them; there they are also saved as uint8 (in the cache, in their place), and these are packed.

Files are made aside and renamed; the index goes first and comes last. So being killed at any moment leaves a bundle
that loads, and programs that have it open keep what they mapped; on Windows these keep it from being changed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..bundle.checksums import CHUNK_BYTES, damaged_files, is_whole, sums_of
from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import GRAPHS, FileRecord, Graph, Manifest, tuning_mark
from ..bundle.onnx_file import with_uint8_weights
from ..bundle.sessions import packing_version, products_saturate, save_packed
from ..errors import BundleError, TinyGPTVError, reason_of
from ..system.files import check_writable, locked, publish_file, sha256_of, staging_folder
from .find import (
    FOLDER,
    INDEX,
    INDEX_VERSION,
    Tuned,
    TunedGraph,
    TuningKey,
    cache_home,
    find_tuned,
    is_intact,
    read_index,
    tuning_key,
)
from .packed_weights import Buffer, packed_weights, with_packed_weights

LOCK, STAGING = "lock", "staging"
ALIGNMENT = 4096
"""Page size, since packed weights are memory-mapped."""


def tune(folder: Path, manifest: Manifest, *, cache: bool = False) -> tuple[Tuned, bool]:
    """Make a tuned copy of a bundle, in place of one that does not fit; one that fits is checked and kept.

    If another process is tuning the bundle, this one waits, and uses the result.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        cache: Keep the copy in the user's cache folder, with another copy of the weights as they are.

    Returns:
        The tuned copy, and whether it was made just now.

    Raises:
        BundleError: The bundle is damaged (every file's SHA-256 is checked first), or onnxruntime cannot load it.
        TinyGPTVError: There is no room, the folder cannot be written, or this onnxruntime keeps no packed weights.
            The bundle loads as before.
    """
    cached = cache_home(folder)
    home = cached if cache else folder
    if home is None:
        raise TinyGPTVError("no cache folder: this user has no home folder; set HOME, or tune the bundle itself")
    try:
        with _locked(home):
            found = read_index(home, folder, manifest)
            if isinstance(found, Tuned) and is_intact(found, manifest):
                return found, False
            if damaged := damaged_files(folder, manifest.files):
                raise BundleError(
                    f"{folder}: {', '.join(damaged)} is damaged (its SHA-256 is not the manifest's); copy it again"
                )
            _check_room(home, manifest, cache)
            (home / FOLDER / INDEX).unlink(missing_ok=True)
            made = _make(folder, home, manifest, tuning_key(folder))
            if cache:
                _drop_orphans(home.parent)
            elif cached is not None:
                with suppress(OSError):
                    _remove_copy(cached)
    except OSError as error:
        hint = "" if cache else "; --cache keeps packed weights in your cache folder instead"
        raise TinyGPTVError(f"{home} cannot be tuned ({reason_of(error)}){_in_use(error)}{hint}") from error
    return made, True


def tune_if_possible(folder: Path, manifest: Manifest, *, cache: bool) -> Tuned | None:
    """The tuned copy of a bundle, made now if needed; in the cache folder if the bundle cannot be written.

    If it cannot be made, a warning says why.

    Raises:
        BundleError: The bundle is damaged.
    """
    found = find_tuned(folder, manifest)
    if found is None:
        try:
            found, _ = tune(folder, manifest, cache=cache or not _is_writable(folder))
        except BundleError:
            raise
        except TinyGPTVError as error:
            warnings.warn(f"loaded without tuning: {error}", RuntimeWarning, stacklevel=4)  # the caller of load
    elif any((found.home / FOLDER / name).exists() for name in (LOCK, STAGING)):
        with suppress(OSError), _locked(found.home, BlockingIOError()):
            pass  # a process that was killed had left them
    return found


def untune(folder: Path, manifest: Manifest) -> list[Path]:
    """Remove the packed weights from a bundle, including those of another machine or of an interrupted tuning.

    Returns:
        The folders that were changed. The bundle's files are those of its manifest, to the bit.

    Raises:
        BundleError: A weights file is damaged.
        TinyGPTVError: A file cannot be changed.
    """
    changed = []
    cached = cache_home(folder)
    try:
        if cached is not None and cached.is_dir():
            _remove_copy(cached)
            changed.append(cached)
        records = {record.name: record for record in manifest.files}
        own = [records[graph.data] for graph in manifest.graphs.values()]
        grown = [record for record in own if (folder / record.name).stat().st_size > record.size]
        if not grown and not (folder / FOLDER).is_dir():
            return changed
        with _locked(folder):
            (folder / FOLDER / INDEX).unlink(missing_ok=True)
            with staging_folder(folder / FOLDER / STAGING) as staging:
                for record in grown:
                    restored = staging / record.name
                    with (folder / record.name).open("rb") as source, restored.open("wb") as output:
                        _copy(source, output, record.size)
                    if not is_whole(restored, record):
                        raise BundleError(f"{folder / record.name} is damaged; copy the bundle again")
                    publish_file(restored, folder / record.name)
            for graph in manifest.graphs.values():
                (folder / FOLDER / graph.file).unlink(missing_ok=True)
        changed.append(folder)
    except OSError as error:
        raise TinyGPTVError(f"{folder} cannot be restored: {reason_of(error)}{_in_use(error)}") from error
    return changed


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(folder)
    except OSError:
        return False
    return True


def _in_use(error: OSError) -> str:
    """A possible reason on Windows, where weights that a program has mapped can be neither replaced nor removed."""
    refused = sys.platform == "win32" and isinstance(error, PermissionError)
    return "; close other programs that use the bundle" if refused else ""


def _make(folder: Path, home: Path, manifest: Manifest, key: TuningKey) -> Tuned:
    """Tune each graph, then write the index."""
    records = {record.name: record for record in manifest.files}
    graphs: dict[str, TunedGraph] = {}
    try:
        with staging_folder(home / FOLDER / STAGING) as staging:
            # The largest first: without its packed weights the others' are of little use.
            for name in sorted(GRAPHS, key=lambda name: -records[manifest.graphs[name].data].size):
                graph = manifest.graphs[name]
                graphs[name] = _tune_graph(folder, home, graph, records[graph.data], staging, required=not graphs)
            document = {
                "version": INDEX_VERSION,
                "folder": str(folder.resolve()),
                "key": asdict(key),
                "graphs": {name: asdict(part) for name, part in graphs.items()},
            }
            index = staging / INDEX
            index.write_text(json.dumps(document), encoding="utf-8")
            publish_file(index, home / FOLDER / INDEX)
    except BaseException:
        if not (home / FOLDER / INDEX).exists():
            # This frees the space. Without an index, no process has mapped these files' packed weights.
            for name in GRAPHS:
                (home / FOLDER / manifest.graphs[name].file).unlink(missing_ok=True)
            for name in graphs:
                data = home / manifest.graphs[name].data
                if home == folder:
                    os.truncate(data, records[data.name].size)
                else:
                    data.unlink()
        raise
    return Tuned(home, graphs)


def _tune_graph(
    folder: Path, home: Path, graph: Graph, record: FileRecord, staging: Path, *, required: bool
) -> TunedGraph:
    data, tuned_model, saved = staging / graph.data, staging / graph.file, staging / "saved"
    model = (folder / graph.file).read_bytes()
    with data.open("w+b") as output:
        with (folder / graph.data).open("rb") as portable:
            _copy(portable, output, record.size)
        output.write(tuning_mark(record))
        if products_saturate():
            model = with_uint8_weights(model, partial(_move_as_uint8, output, in_place=home != folder))
    tuned_model.write_bytes(model)
    saved.mkdir()
    save_packed(staging, graph, saved)
    own = packed_weights(model)
    packed = {
        initializer: entries
        for initializer, entries in packed_weights((saved / graph.file).read_bytes()).items()
        if entries and initializer in own  # onnxruntime's optimizer may have made others
    }
    if required and not packed:
        version = packing_version().partition(",")[0]
        raise TinyGPTVError(f"onnxruntime {version} keeps no packed weights of {graph.file}: install 1.32 or later")
    with data.open("ab") as output, (saved / graph.data).open("rb") as source:
        moved = {
            initializer: [replace(one, buffers=tuple(_append(source, output, b) for b in one.buffers)) for one in some]
            for initializer, some in packed.items()
        }
    shutil.rmtree(saved)
    tuned_model.write_bytes(with_packed_weights(model, moved))
    part = TunedGraph(sha256_of(tuned_model), data.stat().st_size, tuple(sums_of(data)))
    publish_file(tuned_model, home / FOLDER / graph.file)
    publish_file(data, home / graph.data)
    return part


def _move_as_uint8(file: BinaryIO, offset: int, length: int, *, in_place: bool) -> int:
    """Write int8 weights of a data file as uint8, 128 greater, over themselves or at its end; returns their place."""
    place = offset if in_place else _next_page(file)
    for start in range(0, length, CHUNK_BYTES):
        file.seek(offset + start)
        block = np.frombuffer(file.read(min(CHUNK_BYTES, length - start)), np.uint8)
        file.seek(place + start)
        file.write((block ^ np.uint8(0x80)).tobytes())
    return place


def _next_page(file: BinaryIO) -> int:
    """Fill the last page of a file with zeros; returns the place behind it, where the file is then."""
    file.write(bytes(-file.seek(0, os.SEEK_END) % ALIGNMENT))
    return file.tell()


def _append(source: BinaryIO, output: BinaryIO, place: Buffer) -> Buffer:
    """Copy one packed buffer to the next page of the output; returns its new place."""
    moved = replace(place, offset=_next_page(output))
    source.seek(place.offset)
    _copy(source, output, place.length)
    return moved


def _copy(source: BinaryIO, output: BinaryIO, length: int) -> None:
    while length:
        block = source.read(min(length, CHUNK_BYTES))
        if not block:
            raise OSError(f"{source.name} ends {length:,} bytes early: was the disk full?")
        output.write(block)
        length -= len(block)


def _check_room(home: Path, manifest: Manifest, cache: bool) -> None:
    """Raise OSError unless there is room for what is there at once, at the most.

    That is of the largest graph what onnxruntime writes (weights and packed weights) and the new data file (the same
    again), and of the others what stays. Weights as uint8 are once more as large, unless they replace their own.
    """
    weights = {graph.data for graph in manifest.graphs.values()}
    *others, largest = sorted(record.size for record in manifest.files if record.name in weights)
    uint8 = 1 if products_saturate() and not cache else 0
    needed = int((4.2 + uint8) * largest + ((2.1 if cache else 1.1) + uint8) * sum(others))
    free = shutil.disk_usage(home).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free there, and tuning needs {needed / 1e9:.1f} GB")


def _drop_orphans(cache: Path) -> None:
    """Remove tuned copies from the cache whose bundles no longer exist or have changed."""
    for home in cache.iterdir():
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads((home / FOLDER / INDEX).read_text(encoding="utf-8"))
            manifest = Path(document["folder"]) / MANIFEST
            wanted = document["key"]["bundle"]
            if not manifest.is_file() or sha256_of(manifest) != wanted:
                _remove_copy(home)


def _remove_copy(home: Path) -> None:
    """Remove a tuned copy from the cache, beginning with the index, which makes the rest invalid.

    Raises:
        OSError: A file cannot be removed.
    """
    (home / FOLDER / INDEX).unlink(missing_ok=True)
    shutil.rmtree(home)


@contextmanager
def _locked(home: Path, refusal: Exception | None = None) -> Iterator[None]:
    """Lock a tuned copy against changes by other processes, and remove temporary files of a killed one.

    Args:
        home: Folder of the tuned copy.
        refusal: Raised if another process holds the lock; None to wait for it.
    """
    folder = home / FOLDER
    try:
        with locked(folder / LOCK, refusal):
            shutil.rmtree(folder / STAGING, ignore_errors=True)
            yield
    finally:
        for empty in (folder, home, home.parent, home.parent.parent):
            with suppress(OSError):  # not empty: there is a tuned copy, or what is above is the bundle
                empty.rmdir()
