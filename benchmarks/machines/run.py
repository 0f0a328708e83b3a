"""Runs check.py on this machine, and on emulated ones with fewer or other instructions; as root, on Debian.

    apt-get install debootstrap qemu-user-static
    python benchmarks/machines/run.py --work /data/machines -o benchmarks/machines/results.json

QEMU emulates a processor for one program. That program computes what the real processor would, by the kernels that the
real one would be given; its speed says nothing. What the system tells of a processor in /proc/cpuinfo is put in its
place by a mount that only that program sees.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arm64_root import PYTHON, SITE, make_root
from tinygptv.export.cli import main as export_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN, IMAGES = ROOT / "tests" / "golden", ROOT / "tests" / "images"
PINNED = ("onnxruntime", "numpy", "pillow", "tokenizers", "filelock", "protobuf", "tqdm")
STAGES = (3, 4)
HERE_ITSELF = "this machine, not emulated"
X86, ARM = "qemu-x86_64-static", "qemu-aarch64-static"


@dataclass(frozen=True)
class Machine:
    """One that is emulated."""

    name: str
    qemu: str
    model: str
    """As QEMU's ``-cpu`` takes it."""
    features: tuple[str, ...]
    """That Linux lists of such a one, as far as kernels are chosen by them."""
    part: str = ""
    """Of Arm's processors: implementer and part, as /proc/cpuinfo has them."""

    def cpuinfo(self) -> str:
        """What stands in /proc/cpuinfo there."""
        if self.qemu == X86:
            lines = ["vendor_id\t: GenuineIntel", f"model name\t: {self.name}", f"flags\t\t: {' '.join(self.features)}"]
        else:
            implementer, part = self.part.split()
            lines = [f"Features\t: {' '.join(self.features)}", f"CPU implementer\t: {implementer}"]
            lines += ["CPU architecture: 8", "CPU variant\t: 0x0", f"CPU part\t: {part}", "CPU revision\t: 0"]
        return "".join("\n".join([f"processor\t: {number}", *lines, "\n"]) for number in range(os.cpu_count() or 1))


AVX2 = ("sse4_1", "avx", "f16c", "fma", "avx2")
MACHINES = (
    Machine("Intel Haswell (2013)", X86, "Haswell", AVX2),
    Machine("Intel Sandy Bridge (2011)", X86, "SandyBridge", AVX2[:2]),
    Machine("Intel Nehalem (2008)", X86, "Nehalem", AVX2[:1]),
    Machine("Cortex-A72 (Raspberry Pi 4)", ARM, "cortex-a72", ("fp", "asimd"), "0x41 0xd08"),
    Machine("Cortex-A76 (Raspberry Pi 5)", ARM, "cortex-a76", ("fp", "asimd", "asimdhp", "asimddp"), "0x41 0xd0b"),
    Machine(
        "Arm with i8mm (Snapdragon X, Apple M2)",
        ARM,
        "max,sve=off,sme=off",
        ("fp", "asimd", "asimdhp", "asimddp", "i8mm", "bf16"),
        "0x41 0xd4d",
    ),
)


def prepare(inputs: Path) -> None:
    """Pictures and golden int8 bundles, exported here, for all machines."""
    shutil.rmtree(inputs, ignore_errors=True)
    shutil.copytree(IMAGES, inputs / "images", ignore=shutil.ignore_patterns("*.md"))
    for stage in STAGES:
        files, folder = GOLDEN / f"stage{stage}", inputs / "golden" / f"stage{stage}-int8"
        folder.mkdir(parents=True)
        shutil.copy(files / "expected.npz", folder)
        options = {
            "--phi": files / "phi-2",
            "--vision": files / "eva_vit_g.pth",
            "--qformer": files / "blip2_pretrained_flant5xxl.pth",
            "--checkpoint": files / f"TinyGPT-V_for_Stage{stage}.pth",
            "--architecture": files / "architecture.json",
            "--stage": stage,
            "-o": folder / "bundle",
        }
        if export_main([str(text) for option in options.items() for text in option]):
            raise SystemExit(1)


def run_here(inputs: Path, scratch: Path, output: Path) -> str:
    """Check this machine itself; returns what :func:`run_emulated` does."""
    command = (sys.executable, HERE / "check.py", inputs, scratch, "-o", output)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return _failure(done)


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    return "" if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr[-600:]}"


def run_emulated(machine: Machine, work: Path, inputs: Path, scratch: Path, output: Path) -> str:
    """Check an emulated machine.

    Returns:
        Why it ended, if it gave no result: the last lines of stderr.
    """
    cpuinfo = work / "cpuinfo"
    cpuinfo.write_text(machine.cpuinfo(), encoding="utf-8")
    if machine.qemu == X86:
        mounts = [("--bind", cpuinfo, Path("/proc/cpuinfo"))]
        # On a Zen 5, numpy's OpenBLAS took other kernels than the emulated Nehalem can run; others ask by themselves.
        start = ["env", f"OPENBLAS_CORETYPE={machine.model}", machine.qemu, "-cpu", machine.model, sys.executable]
        check = [HERE / "check.py", inputs, scratch, "-o", output]
    else:
        root = work / "arm64"
        mounts = [
            ("--rbind", Path("/proc"), root / "proc"),
            ("--rbind", Path("/sys"), root / "sys"),
            ("--bind", work, root / "mnt"),
            ("--bind", cpuinfo, root / "proc" / "cpuinfo"),
        ]
        for name in ("check.py", "golden_runs.py"):
            shutil.copy(HERE / name, work)
        emulator = f"/usr/bin/{machine.qemu}"
        start = ["chroot", root, emulator, "-cpu", machine.model, "-E", f"PYTHONPATH=/{SITE}", "-E", "HOME=/root"]
        start.append(f"/usr/bin/python{PYTHON}")
        inside = [Path("/mnt") / path.relative_to(work) for path in (inputs, scratch, output)]
        check = ["/mnt/check.py", *inside[:2], "-o", inside[2]]
    lines = [shlex.join(["mount", kind, str(what), str(where)]) for kind, what, where in mounts]
    lines.append("exec " + shlex.join([str(part) for part in (*start, *check)]))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    return _failure(done)


def version_of(qemu: str) -> str:
    """The emulator's own words."""
    return subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the arm64 root and all else (600 MB)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file")
    parser.add_argument("--only", metavar="TEXT", default="", help="machines with it in their names; others' rows stay")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    inputs, scratch, output = work / "inputs", work / "scratch", work / "one.json"
    chosen = [one for one in (None, *MACHINES) if given.only in (one.name if one else HERE_ITSELF)]
    if not given.only or not inputs.is_dir():
        prepare(inputs)
    if any(one and one.qemu == ARM for one in chosen):
        pinned = [f"{name}=={version(name)}" for name in PINNED]
        make_root(work / "arm64", ROOT, pinned, Path(shutil.which(ARM) or ARM))
    rows: dict[str, dict[str, Any]] = {}
    if given.only:
        rows = {row["name"]: row for row in json.loads(given.output.read_text(encoding="utf-8"))["machines"]}
    for machine in chosen:
        name = machine.name if machine else HERE_ITSELF
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        output.unlink(missing_ok=True)
        failure = run_emulated(machine, work, inputs, scratch, output) if machine else run_here(inputs, scratch, output)
        found = {} if failure else json.loads(output.read_text(encoding="utf-8"))
        rows[name] = {"name": name, "emulated": asdict(machine) if machine else None, "failure": failure, **found}
        print(f"{name}: {failure or 'done'}", file=sys.stderr, flush=True)
        document = {"date": datetime.now(UTC).date().isoformat(), "qemu": version_of(X86), "machines": [*rows.values()]}
        given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
