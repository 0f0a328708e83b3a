"""A folder with Debian for arm64 and the package's base install: what an emulated Arm machine runs in.

Debian's packages are unpacked and not configured, so no program of the folder runs while it is made. The wheels are
those that pip chooses for such a machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON = "3.11"
"""Of that Debian."""
SITE = "opt/site"
"""Where the wheels are, in the folder."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def make_root(root: Path, checkout: Path, versions: Sequence[str], qemu: Path) -> None:
    """Make the folder, or bring only this checkout's package in one that is there up to date.

    Args:
        root: The folder; about 500 MB.
        checkout: This repository.
        versions: Requirements that pin what pip would choose the newest of, such as ``numpy==2.4.6``.
        qemu: The emulator, linked statically: it is copied in.

    Raises:
        subprocess.CalledProcessError: debootstrap, dpkg-deb or pip failed; they say why themselves.
    """
    if not (root / "usr" / "bin" / f"python{PYTHON}").exists():
        options = ("--arch=arm64", "--foreign", "--variant=minbase", "--include=python3,ca-certificates")
        _run("debootstrap", *options, SUITE, str(root), MIRROR)
        for package in sorted((root / "var" / "cache" / "apt" / "archives").glob("*.deb")):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
                subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", root], stdin=unpacked.stdout, check=True)
    if (root / "proc").is_symlink():  # debootstrap's, to /proc: a loop in the folder, which onnxruntime meets
        (root / "proc").unlink()
    for name in ("proc", "mnt"):  # packages make them where they are configured
        (root / name).mkdir(exist_ok=True)
    shutil.copy(qemu, root / "usr" / "bin")
    copy, wheels = root / "tmp" / "checkout", root / "tmp" / "wheels"
    for folder in (copy, wheels, root / SITE):
        shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "benchmarks")
    shutil.copytree(checkout, copy, ignore=ignored)
    pip = (sys.executable, "-m", "pip", "-qqq")
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(copy))
    (wheel,) = wheels.glob("*.whl")
    target = ("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", "--target", str(root / SITE))
    tags = (*(f"--platform={name}" for name in PLATFORMS), "--abi=cp311", "--abi=abi3", "--abi=none")
    _run(*pip, "install", *target, *tags, str(wheel), *versions)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
