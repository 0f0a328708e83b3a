"""The complete comparison of a bundle with the files that it was made from."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from tinygptv.runtime.bundle.manifest import FORMAT_VERSION, TOKENIZER, read_manifest
from tinygptv.runtime.errors import ExportError
from tinygptv.runtime.vision.image import open_image, preprocess
from tokenizers import Tokenizer
from tqdm import tqdm

from ..sources import SourceFiles, open_model
from .agreement import Agreement
from .bounds import DEFAULTS
from .comparison import Comparison
from .files import check_bundle, check_sources
from .prompts import find_photos, write_prompts


@dataclass(frozen=True)
class Verification:
    """The result of a comparison."""

    bundle: Path
    precision: str
    """``fp32`` if the complete bundle is, otherwise ``int8``."""
    agreement: Agreement
    photos: int
    prompts: int
    seconds: float


def verify_bundle(
    *,
    bundle: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None = None,
    trust_sources: bool = False,
    progress: bool = False,
    **sources: Unpack[SourceFiles],
) -> Verification:
    """Compare a bundle with the published files it was made from.

    Args:
        bundle: Folder that ``tinygptv-export`` wrote.
        photos: Folder of pictures to look at; those that come with the exporter if not given.
        trust_sources: Do not hash the published files.
        progress: Show progress bars on stderr.
        sources: The published files, as for :func:`.bundle.export_bundle`; ``stage`` is what the bundle's manifest
            says if not given.

    Returns:
        How far apart they are. Nothing is judged here: :func:`.bounds.check` does.

    Raises:
        BundleError: The bundle is damaged or of a newer version.
        ExportError: The bundle is of format version 1; a published file is damaged, or not the one the bundle was made
            from; there are no photos.
        ImageError: A photo cannot be read.
    """
    started = time.monotonic()
    folder = Path(bundle)
    pictures = find_photos(None if photos is None else Path(photos))
    manifest = read_manifest(folder)
    if manifest.format_version == 1:
        raise ExportError(
            f"{folder} has format_version 1, which lacks what the comparison needs; expected {FORMAT_VERSION}: "
            "export the model again"
        )
    stage = sources.get("stage")
    if stage not in (None, manifest.stage):
        raise ExportError(f"{folder} is of stage {manifest.stage}; --stage says {stage}")
    if manifest.stage is not None and sources.get("model") is None:
        sources["stage"] = manifest.stage
    model = open_model(**sources)
    pixel_values = [preprocess(open_image(picture), manifest.image) for picture in pictures]
    check_bundle(folder, manifest, progress)
    check_sources(folder, manifest, model, trust_sources, progress)
    prompts = write_prompts(manifest, Tokenizer.from_file(str(folder / TOKENIZER)), len(pictures))
    with tqdm(unit="step", disable=not progress) as bar:

        def on_step(done: str) -> None:
            bar.set_description(done, refresh=False)
            bar.update()

        comparison = Comparison(folder, manifest, model, on_step)
        bar.reset(comparison.count_steps(len(pictures), len(prompts)))
        agreement = comparison.read(prompts, *comparison.see(pixel_values))
    model.close()
    precisions = {graph.precision for graph in manifest.graphs.values()}
    if manifest.contract.cache_dtype == "int8":
        precisions.add("int8")
    # The lowest one is what may be expected of the answers.
    precision = min(precisions, key=list(DEFAULTS).index)
    return Verification(
        bundle=folder,
        precision=precision,
        agreement=agreement,
        photos=len(pictures),
        prompts=len(prompts),
        seconds=time.monotonic() - started,
    )
