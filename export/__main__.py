"""Starts the ``tinygptv-export`` command, or says what it needs if only the runtime is installed."""

from __future__ import annotations

import sys

from tinygptv.runtime.system.installing import install_command

EXTRA = ("onnx", "safetensors", "torch", "tqdm")


def main() -> int:
    """Run :func:`.cli.main`; exit status 1 with one line if a package of the ``export`` extra is missing."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        print(
            f"tinygptv-export: {error.name} is not installed; run: {install_command('export')}",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
