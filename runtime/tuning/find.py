"""A copy of a bundle that was tuned to this machine: finding it, and knowing whether it fits.

Weights that onnxruntime has packed for this machine's kernels follow the weights' own bytes in their files, in the
bundle or in a folder of the user's cache. ``tuned/`` beside those files holds the graphs that know of the packed
weights, and ``index.json``, without which they are nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..bundle.checksums import sums_of
from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import GRAPHS, Graph, Manifest
from ..bundle.sessions import packing_version
from ..system.machine import processor

INDEX_VERSION = 1
"""Raised when files, sums or the settings of sessions change."""
FOLDER, INDEX = "tuned", "index.json"


@dataclass(frozen=True)
class Key:
    """What decides how weights are packed, and of what: a copy with another key is not used."""

    onnxruntime: str
    cpu: str
    bundle: str
    """SHA-256 of the manifest, which has those of all files."""


@dataclass(frozen=True)
class TunedGraph:
    """One graph of a tuned copy."""

    model_sha256: str
    data_bytes: int
    sums: tuple[int, ...]
    """Of the data file, own and packed weights: what :func:`~.integrity.sums_of` gives."""


@dataclass(frozen=True)
class Tuned:
    """A tuned copy that fits this machine. Whether it is undamaged is checked when it is opened."""

    home: Path
    """Where the data files are: the bundle, or a folder of the user's cache."""
    graphs: dict[str, TunedGraph]

    def model(self, graph: Graph) -> Path:
        """The graph that knows of the packed weights."""
        return self.home / FOLDER / graph.file


def key_of(folder: Path) -> Key:
    """The key of a bundle on this machine, now."""
    cpu = processor()
    # Linux alone tells every feature; elsewhere the processor's name stands for those that are not known.
    name = "" if sys.platform == "linux" else f"{cpu.name}, "
    features = f"{name}{cpu.architecture}: {' '.join(cpu.features)}"
    return Key(packing_version(), features, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


def cache_folder() -> Path:
    """Where tuned copies are kept that are not in their bundle; by the system's own rules."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tinygptv" / FOLDER


def cache_home(key: Key) -> Path:
    """The place of one bundle in :func:`cache_folder`."""
    return cache_folder() / key.bundle[:20]


def find_tuned(folder: Path, manifest: Manifest) -> Tuned | None:
    """The tuned copy of a bundle that fits this machine, in the bundle or the user's cache, if there is one."""
    key = key_of(folder)
    for home in (folder, cache_home(key)):
        found = read_index(home, manifest, key)
        if isinstance(found, Tuned):
            return found
    return None


def read_index(home: Path, manifest: Manifest, key: Key) -> Tuned | str:
    """The tuned copy in a folder, or why there is none that fits."""
    try:
        document = json.loads((home / FOLDER / INDEX).read_text(encoding="utf-8"))
        if document["version"] != INDEX_VERSION:
            return f"made by another version of tinygptv (its index is version {document['version']!r:.20})"
        made_for = Key(**{name: str(value) for name, value in document["key"].items()})
        graphs = {
            name: TunedGraph(part["model_sha256"], part["data_bytes"], tuple(part["sums"]))
            for name, part in document["graphs"].items()
        }
        tuned = Tuned(home, {name: graphs[name] for name in GRAPHS})
    except FileNotFoundError:
        return "not tuned"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"its index cannot be read ({type(error).__name__}: {error})"
    for what, theirs, ours in (
        ("onnxruntime", made_for.onnxruntime, key.onnxruntime),
        ("CPU", made_for.cpu, key.cpu),
        ("bundle", made_for.bundle, key.bundle),
    ):
        if theirs != ours:
            return f"made for another {what}: {theirs:.200}; this is {ours:.200}"
    for name, part in tuned.graphs.items():
        graph = manifest.graphs[name]
        data = home / graph.data
        if not data.is_file() or data.stat().st_size != part.data_bytes or not tuned.model(graph).is_file():
            return f"{data.name} or {tuned.model(graph).name} is not the one that the index was written for"
    return tuned


def is_intact(tuned: Tuned, manifest: Manifest) -> bool:
    """Read all of a tuned copy and say whether it is as it was written."""
    return all(
        hashlib.sha256(tuned.model(manifest.graphs[name]).read_bytes()).hexdigest() == part.model_sha256
        and sums_of(tuned.home / manifest.graphs[name].data) == list(part.sums)
        for name, part in tuned.graphs.items()
    )
