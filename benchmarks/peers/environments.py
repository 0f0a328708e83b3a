"""Makes one virtual environment a peer from the pinned files in requirements/.

The peers want different versions of the same packages, so they cannot share one. An environment that was made from the
same file by the same Python is left alone.

example: python benchmarks/peers/environments.py llama_cpp openvino torch --into /data/peers
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = "requirements.sha256"
"""Inside an environment that is complete: what it was made from."""
TAIL_LINES = 15


class PeerEnvironmentError(Exception):
    """An environment cannot be made; the text is meant for the user."""


def available() -> list[str]:
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def fingerprint(requirements: Path) -> str:
    """Of the file and of the Python that installs it."""
    return hashlib.sha256(requirements.read_bytes() + platform.python_version().encode()).hexdigest()


def python_of(environment: Path) -> Path:
    """An environment's own interpreter."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_current(environment: Path, wanted: str) -> bool:
    """Whether the environment is complete and made from the same.

    Raises:
        PeerEnvironmentError: There is something else at its place, which is left alone.
    """
    if not environment.exists():
        return False
    if not (environment / "pyvenv.cfg").is_file():
        raise PeerEnvironmentError(
            f"{environment} exists and is no virtual environment: remove it or choose another --into"
        )
    stamp = environment / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == wanted


def make_environment(name: str, into: Path) -> bool:
    """Make the environment ``into/name``; returns whether there was anything to do.

    Raises:
        PeerEnvironmentError: The name has no file of requirements, or pip could not install them.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.is_file():
        raise PeerEnvironmentError(f"there is no {requirements}; expected one of {', '.join(available())}")
    environment, wanted = into.absolute() / name, fingerprint(requirements)
    if is_current(environment, wanted):
        return False
    venv.create(environment, clear=True, with_pip=True)
    command = [str(python_of(environment)), "-m", "pip", "install", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "-r", str(requirements)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise PeerEnvironmentError(f"pip could not install {requirements} into {environment}; its last words:\n{tail}")
    (environment / STAMP).write_text(wanted + "\n", encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"any of {', '.join(available())}")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="folder that holds the environments")
    options = parser.parse_args(argv)
    failed = False
    for name in options.names:
        try:
            print(f"{name}: {'made' if make_environment(name, options.into) else 'there already'}", file=sys.stderr)
        except PeerEnvironmentError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
