"""Checks that a bundle is complete, and was made from the given files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tinygptv.runtime.bundle.checksums import is_whole
from tinygptv.runtime.bundle.manifest import Manifest
from tinygptv.runtime.errors import BundleError, ExportError
from tqdm import tqdm

from ..sources.model import Model

SINGLE_FILES = ("vision", "qformer", "checkpoint", "architecture")
"""Roles that have exactly one file."""


def check_bundle(folder: Path, manifest: Manifest, progress: bool) -> None:
    """Hash every file of the bundle, including those that are too large to be hashed at each load.

    Raises:
        BundleError: One is not what the manifest says.
    """
    total = sum(record.size for record in manifest.files)
    with _bar("hashes of the bundle", total, progress) as bar:
        for record in manifest.files:
            path = folder / record.name
            if not is_whole(path, record):
                raise BundleError(f"{path} is damaged (its SHA-256 is not the manifest's); copy the bundle again")
            bar.update(record.size)


def check_sources(folder: Path, manifest: Manifest, model: Model, trust: bool, progress: bool) -> None:
    """Compare the published files with those that the bundle's manifest names.

    Where they are trusted, they only have to make a model of the same sizes.

    Raises:
        ExportError: A file is not the one the bundle was made from.
    """
    found = {network.name: asdict(network.sizes) for network in model.networks.values()}
    if found != manifest.parts or model.description.family.name != manifest.family:
        raise ExportError(
            f"{folder} was made from another model, or one of other sizes, than these files hold; "
            "give the files, and the --architecture, that it was exported from"
        )
    if trust:
        return
    files = model.files
    roles = {role for role, _ in files}
    # A renamed file is the same file; only in a folder there are several of one role.
    expected = {_key(source.role, source.name): source for source in manifest.sources if source.role in roles}
    given = {_key(role, file.name): (role, file) for role, file in files}
    for role, name in sorted(expected.keys() - given.keys()):
        where = next(file.parent for other, file in files if other == role)
        raise ExportError(f"{where} has no {name}, which {folder} was made from")
    for key in sorted(given.keys() - expected.keys()):
        raise ExportError(f"{given[key][1]} is not among the files that {folder} was made from; leave it out")
    for key, (_, file) in given.items():
        size = file.stat().st_size
        if size != expected[key].size:
            raise _other(folder, file, f"{size:,} bytes", f"{expected[key].size:,}")
    with _bar("hashes of the sources", sum(source.size for source in expected.values()), progress) as bar:
        for key, (_, file) in given.items():
            digest = model.sha256(file, bar.update)
            if digest != expected[key].sha256:
                raise _other(folder, file, f"SHA-256 {digest}", expected[key].sha256)


def _key(role: str, name: str) -> tuple[str, str]:
    return role, "" if role in SINGLE_FILES else name


def _other(folder: Path, file: Path, found: str, expected: str) -> ExportError:
    return ExportError(
        f"{file} is not the file that {folder} was made from: it has {found}, the manifest says {expected}; "
        "give the files that were exported"
    )


def _bar(description: str, total: int, progress: bool) -> tqdm:
    return tqdm(desc=description, total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress)
