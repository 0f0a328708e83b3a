"""Holds a bundle against the torch reference: same files, same photos and texts."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tinygptv.runtime.bundle.manifest import TOKENIZER, read_manifest
from tinygptv.runtime.errors import ExportError
from tinygptv.runtime.vision.image import open_image, preprocess
from tokenizers import Tokenizer
from tqdm import tqdm

from .checkpoint import Checkpoint
from .verify_compare import Agreement
from .verify_files import check_bundle, check_sources
from .verify_prompts import find_photos, write_prompts
from .verify_run import Comparison, count_steps


@dataclass(frozen=True)
class Verification:
    """What a comparison found."""

    bundle: Path
    precision: str
    """``fp32`` where all of the bundle is, else ``int8``."""
    agreement: Agreement
    photos: int
    prompts: int
    seconds: float


def verify_bundle(
    *,
    bundle: str | os.PathLike[str],
    phi: str | os.PathLike[str],
    vision: str | os.PathLike[str],
    qformer: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    stage: int | None = None,
    architecture: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] | None = None,
    trust_sources: bool = False,
    progress: bool = False,
) -> Verification:
    """Compare a bundle with the published files it was made from.

    Args:
        bundle: Folder that ``tinygptv-export`` wrote.
        phi: Phi-2 folder.
        vision: EVA-CLIP weights, ``eva_vit_g.pth``.
        qformer: BLIP-2 weights, ``blip2_pretrained_flant5xxl.pth``.
        checkpoint: TinyGPT-V weights, ``TinyGPT-V_for_StageN.pth``.
        stage: Which training stage ``checkpoint`` is of; what the bundle's manifest says if not given.
        architecture: JSON that the export was given, if it was.
        photos: Folder of pictures to look at; those that come with the exporter if not given.
        trust_sources: Do not hash the published files.
        progress: Show progress bars on stderr.

    Returns:
        How far apart they are. Nothing is judged here: :func:`.verify_bounds.check` does.

    Raises:
        BundleError: The bundle is damaged or of another version.
        ExportError: A published file is damaged, or not the one the bundle was made from; there are no photos.
        ImageError: A photo cannot be read.
    """
    started = time.monotonic()
    folder = Path(bundle)
    pictures = find_photos(None if photos is None else Path(photos))
    manifest = read_manifest(folder)
    if stage not in (None, manifest.stage):
        raise ExportError(f"{folder} is of stage {manifest.stage}; --stage says {stage}")
    inputs = Checkpoint(
        Path(phi),
        Path(vision),
        Path(qformer),
        Path(checkpoint),
        manifest.stage,
        None if architecture is None else Path(architecture),
    )
    pixel_values = [preprocess(open_image(picture), manifest.image) for picture in pictures]
    check_bundle(folder, manifest, progress)
    check_sources(folder, manifest, inputs, trust_sources, progress)
    prompts = write_prompts(manifest, Tokenizer.from_file(str(folder / TOKENIZER)), len(pictures))
    steps = count_steps(manifest, len(pictures), len(prompts))
    with tqdm(total=steps, unit="step", disable=not progress) as bar:

        def on_step(done: str) -> None:
            bar.set_description(done, refresh=False)
            bar.update()

        comparison = Comparison(folder, manifest, inputs, on_step)
        agreement = comparison.read(prompts, *comparison.see(pixel_values))
    inputs.close()
    precisions = {graph.precision for graph in manifest.graphs.values()}
    return Verification(
        bundle=folder,
        precision="fp32" if precisions == {"fp32"} else "int8",
        agreement=agreement,
        photos=len(pictures),
        prompts=len(prompts),
        seconds=time.monotonic() - started,
    )
