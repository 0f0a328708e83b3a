"""Resources that the actors of a node share: the bundle's files, its tuned copy, and the processor's cores."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..bundle.checksums import damaged_files
from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import parse_manifest, read_manifest
from ..errors import BundleError, TinyGPTVError, reason_of
from ..loading import DEMO_BUNDLE, MemoryMode
from ..model import TinyGPTV
from ..system.files import locked, publish_folder, recover_folder, sha256_of, staging_folder
from ..tuning.find import cache_home
from ..tuning.make import tune_if_possible

Fetch = Callable[[str, int, int], bytes]
"""Reads a bundle's file from an offset: at most the given number of bytes, none at its end."""
_FETCHED_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class Model:
    """The model that the actors load, and how they load it."""

    bundle: Path | None
    """Folder of the bundle, the same on every node; None for the demo, which is part of the package."""
    identity: str
    """SHA-256 of the manifest, in hexadecimal."""
    threads: int
    memory: MemoryMode
    fetch: Fetch | None = None
    """Fetches the bundle's files if the nodes cannot read its folder; each node then caches them."""


def load(model: Model) -> TinyGPTV:
    """Load the model for an actor: all actors of a node map the weights of one tuned copy, made by the first of them.

    Raises:
        BundleError: The bundle is not there, damaged, or another one than the run began with.
        MemoryShortageError: This node has not enough memory.
        TinyGPTVError: Its cache folder cannot be written.
    """
    folder = DEMO_BUNDLE if model.bundle is None else model.bundle
    if model.fetch is not None:
        folder = _fetched(model.identity, model.fetch)
    elif not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is no bundle on this node; name a folder that all nodes see, or add --ship")
    if sha256_of(folder / MANIFEST) != model.identity:
        raise BundleError(f"{folder} is another bundle on this node; expected the same files, or add --ship")
    # Nodes with other processors may share the folder: each tunes a copy of its own.
    tune_if_possible(folder, read_manifest(folder), cache=model.fetch is None)
    return TinyGPTV.load(folder, threads=model.threads, memory=model.memory)


def _fetched(identity: str, fetch: Fetch) -> Path:
    """The bundle in this node's cache, fetched if it is not there."""
    home = cache_home(DEMO_BUNDLE)
    if home is None:
        raise TinyGPTVError("no cache folder on this node: its user has no home folder; set HOME")
    folder = home.parent.parent / "bundles" / identity[:20]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            recover_folder(folder)
            if not folder.exists():
                with staging_folder(folder.with_name(f".{folder.name}.part")) as made:
                    _fetch(made, fetch)
                    publish_folder(made, folder)
    except OSError as error:
        raise TinyGPTVError(f"{folder} cannot be written on this node: {reason_of(error)}") from error
    return folder


def _fetch(folder: Path, fetch: Fetch) -> None:
    def bring(name: str, size: int) -> None:
        with (folder / name).open("wb") as file:
            while (place := file.tell()) < size and (part := fetch(name, place, min(size - place, _FETCHED_AT_ONCE))):
                file.write(part)

    bring(MANIFEST, sys.maxsize)
    files = parse_manifest(folder).files
    for record in files:
        bring(record.name, record.size)  # packed weights that follow are the sender's own
    if damaged := damaged_files(folder, files):
        raise BundleError(f"{', '.join(damaged)} arrived damaged (its SHA-256 is not the manifest's); start again")


class Cores:
    """Cores of this machine reserved for one actor, so that the threads of actors do not wait for each other.

    Nothing is reserved if the system does not support it or all cores are taken. The cores are released when this
    object or its process ends.
    """

    def __init__(self, count: int) -> None:
        """
        Args:
            count: Number of cores.
        """
        self._cores: set[int] = set()
        if sys.platform != "linux":
            return
        cores = sorted(os.sched_getaffinity(0))
        folder = Path(tempfile.gettempdir(), f"tinygptv-cores-{os.getuid()}")
        for start in range(0, len(cores) - count + 1, count):
            lock = FileLock(folder / f"{cores[start]}-{count}.lock", timeout=0)
            try:
                folder.mkdir(exist_ok=True)
                lock.acquire()
            except (OSError, Timeout):
                continue
            self._lock, self._cores = lock, set(cores[start : start + count])
            return

    def use(self) -> None:
        """Restrict this thread, and those that it starts, to these cores."""
        if sys.platform == "linux" and self._cores:
            with suppress(OSError):
                os.sched_setaffinity(0, self._cores)
