"""What several test modules share: the golden checkpoints, and bundles exported from them by the command itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tinygptv.export.cli import main as export_main
from tinygptv.runtime import TinyGPTV

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_STAGES = (3, 4)


def published_files(stage: int, folder: Path | None = None) -> dict[str, str]:
    """Command-line options that name the four published files (and their architecture) of a golden checkpoint."""
    folder = folder or GOLDEN / f"stage{stage}"
    return {
        "--phi": str(folder / "phi-2"),
        "--vision": str(folder / "eva_vit_g.pth"),
        "--qformer": str(folder / "blip2_pretrained_flant5xxl.pth"),
        "--checkpoint": str(folder / f"TinyGPT-V_for_Stage{stage}.pth"),
        "--stage": str(stage),
        "--architecture": str(folder / "architecture.json"),
    }


def export_arguments(files: dict[str, str], output: Path, *more: str) -> list[str]:
    """Arguments of ``tinygptv-export``."""
    return [*(text for option in files.items() for text in option), "-o", str(output), *more]


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Bundle of a golden stage at a precision, exported once a test session by the command."""
    made: dict[tuple[int, str], Path] = {}

    def bundle(stage: int, precision: str) -> Path:
        if (stage, precision) not in made:
            output = tmp_path_factory.mktemp("golden bundles é") / f"stage{stage}-{precision}"
            arguments = export_arguments(published_files(stage), output, "--precision", precision)
            assert export_main(arguments) == 0
            made[stage, precision] = output
        return made[stage, precision]

    return bundle


@pytest.fixture(scope="session")
def expected() -> Callable[[int], dict[str, np.ndarray]]:
    """What the published code computed for a golden stage."""

    def load(stage: int) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"stage{stage}" / "expected.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_model(golden_bundle: Callable[[int, str], Path]) -> Iterator[TinyGPTV]:
    """The stage 4 golden model in fp32: random weights, a 320-word vocabulary, a context of 256."""
    with TinyGPTV.load(golden_bundle(4, "fp32")) as model:
        yield model
