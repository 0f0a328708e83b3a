"""Finds the tuned copy of a bundle, and checks whether it fits this machine.

Weights that onnxruntime has packed for this machine's kernels follow the weights' own bytes in their files, in the
bundle or in a folder of the user's cache. ``tuned/`` beside those files holds the graphs that know of the packed
weights, and ``index.json``, without which they are nothing.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..bundle.checksums import sums_of
from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import GRAPHS, Graph, Manifest
from ..bundle.sessions import packing_version
from ..errors import reason_of
from ..system.files import sha256_of
from ..system.machine import processor

INDEX_VERSION = 2
"""Increased when files, sums or the settings of sessions change."""
FOLDER, INDEX = "tuned", "index.json"


@dataclass(frozen=True)
class TuningKey:
    """Everything that determines the packed weights: a copy with another key is not used."""

    onnxruntime: str
    cpu: str
    bundle: str
    """SHA-256 of the manifest, which contains those of all files."""


@dataclass(frozen=True)
class TunedGraph:
    """One graph of a tuned copy."""

    model_sha256: str
    data_bytes: int
    sums: tuple[int, ...]
    """Sums of the data file, including packed weights, from :func:`~.checksums.sums_of`."""


@dataclass(frozen=True)
class Tuned:
    """A tuned copy that fits this machine. Whether it is undamaged is checked when it is opened."""

    home: Path
    """Folder of the data files: the bundle, or a folder in the user's cache."""
    graphs: dict[str, TunedGraph]

    def model(self, graph: Graph) -> Path:
        """Path of the graph that refers to the packed weights."""
        return self.home / FOLDER / graph.file


def tuning_key(bundle: Path) -> TuningKey:
    """The present key of a bundle on this machine."""
    cpu = processor()
    # The processor's name stands for the features that the system does not list.
    name = "" if cpu.all_features else f"{cpu.name}, "
    features = f"{name}{cpu.architecture}: {' '.join(cpu.features)}"
    return TuningKey(packing_version(), features, sha256_of(bundle / MANIFEST))


def cache_home(bundle: Path) -> Path | None:
    """The cache folder for the tuned copy of a bundle, by the system's conventions.

    None for a user without a home folder.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "tinygptv" / FOLDER / sha256_of(bundle / MANIFEST)[:20]


def homes_of(bundle: Path) -> list[Path]:
    """The folders in which a bundle's tuned copy may be, in the order of search."""
    return [home for home in (bundle, cache_home(bundle)) if home is not None]


def find_tuned(bundle: Path, manifest: Manifest) -> Tuned | None:
    """The tuned copy of a bundle that fits this machine, in the bundle or the user's cache, if there is one."""
    for home in homes_of(bundle):
        found = read_index(home, bundle, manifest)
        if isinstance(found, Tuned):
            return found
    return None


def read_index(home: Path, bundle: Path, manifest: Manifest) -> Tuned | str:
    """The tuned copy of a bundle in one of these folders, or the reason why there is none that fits.

    The machine is examined only if there is an index.
    """
    try:
        document = json.loads((home / FOLDER / INDEX).read_text(encoding="utf-8"))
        if document["version"] != INDEX_VERSION:
            return f"made by another version of tinygptv (its index is version {document['version']!r:.20})"
        made_for = TuningKey(**{name: str(value) for name, value in document["key"].items()})
        graphs = {
            name: TunedGraph(part["model_sha256"], part["data_bytes"], tuple(part["sums"]))
            for name, part in document["graphs"].items()
        }
        tuned = Tuned(home, {name: graphs[name] for name in GRAPHS})
    except FileNotFoundError:
        return "not tuned"
    except (OSError, ValueError) as error:
        return f"its index cannot be read ({reason_of(error)})"
    except (TypeError, KeyError, AttributeError):
        return "its index is not as this version writes it"
    key = tuning_key(bundle)
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
    """Whether all files of a tuned copy are undamaged; reads them completely."""
    return all(
        sha256_of(tuned.model(manifest.graphs[name])) == part.model_sha256
        and sums_of(tuned.home / manifest.graphs[name].data) == list(part.sums)
        for name, part in tuned.graphs.items()
    )
