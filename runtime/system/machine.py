"""This machine's processor and memory, as reported by the system."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .process import PROC

X86_FEATURES = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx_ne_convert"),
    *("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "sme", "sme2")
"""Features by which onnxruntime selects its kernels, with Linux's names."""
NUMPY_NAMES = {
    **{"SSE41": "sse4_1", "AVX": "avx", "F16C": "f16c", "FMA3": "fma", "AVX2": "avx2", "AVX512F": "avx512f"},
    **{"AVX512CD": "avx512cd", "AVX512BW": "avx512bw", "AVX512DQ": "avx512dq", "AVX512VL": "avx512vl"},
    **{"AVX512VNNI": "avx512_vnni", "AVX512BF16": "avx512_bf16", "AVX512FP16": "avx512_fp16"},
    **{"ASIMD": "asimd", "ASIMDHP": "asimdhp", "ASIMDDP": "asimddp", "SVE": "sve"},
}
APPLE_NAMES = {
    **{"hw.optional.avx2_0": "avx2", "hw.optional.fma": "fma", "hw.optional.f16c": "f16c"},
    **{"hw.optional.avx512f": "avx512f", "hw.optional.avx512bw": "avx512bw", "hw.optional.avx512dq": "avx512dq"},
    **{"hw.optional.avx512vl": "avx512vl", "hw.optional.avx512vnni": "avx512_vnni"},
    **{"hw.optional.AdvSIMD": "asimd", "hw.optional.arm.FEAT_FP16": "asimdhp"},
    **{"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"},
    **{"hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_SME": "sme", "hw.optional.arm.FEAT_SME2": "sme2"},
}
CGROUPS, CPUS = Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")
_UNLIMITED = 1 << 60
"""A value above this means no limit in control groups of version 1."""


@dataclass(frozen=True)
class Processor:
    """The properties of the CPU that the int8 kernels depend on."""

    name: str
    architecture: str
    """Name from ``platform.machine``: x86_64, AMD64, arm64, aarch64 ..."""
    features: tuple[str, ...]
    """The CPU's features among :data:`X86_FEATURES` or :data:`ARM_FEATURES`, as reported by the system."""
    all_features: bool
    """Whether the system reports all features, as Linux does; otherwise there may be more."""
    threads: int
    """Number of logical processors that this process may use."""
    cores: int
    """Number of physical cores among them, if reported; onnxruntime uses this many threads by default."""


@dataclass(frozen=True)
class Kernels:
    """onnxruntime's int8 kernels on a processor."""

    name: str
    fast: bool
    """Whether the processor has instructions for int8 products."""
    note: str


@dataclass(frozen=True)
class SystemMemory:
    """Memory sizes in bytes."""

    total: int | None
    """Total memory; None if the system does not report it."""
    available: int | None
    """Memory available without swapping, in this container; None if the system does not report it."""
    limit: int | None
    """The container's limit, if it is less than ``total``."""
    swap: int | None = None
    """Free swap; None if the system does not report it, or extends it on demand."""


def processor() -> Processor:
    """The processor of this machine."""
    architecture = platform.machine()
    known = ARM_FEATURES if architecture.lower() in ("arm64", "aarch64") else X86_FEATURES
    name, found, all_features = "", set[str](), False
    if sys.platform == "linux":
        text = _read(PROC / "cpuinfo")
        if flags := re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE):
            found, all_features = set(flags[1].split()), True
        if model := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = model[1]
    elif sys.platform == "darwin":
        lines = _run("sysctl", "-a").splitlines()
        values = dict(line.split(": ", 1) for line in lines if ": " in line)
        found = {feature for key, feature in APPLE_NAMES.items() if values.get(key) == "1"}
        name = values.get("machdep.cpu.brand_string", "")
    found = found or _numpy_features()
    usable = _usable_cpus()
    return Processor(
        name=name or platform.processor() or architecture,
        architecture=architecture,
        features=tuple(feature for feature in known if feature in found),
        all_features=all_features,
        threads=len(usable),
        cores=_physical_cores(usable),
    )


def _usable_cpus() -> set[int]:
    """Indices of the logical processors that this process may use."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(usable: set[int]) -> int:
    if sys.platform == "darwin":
        return _number(_run("sysctl", "-n", "hw.physicalcpu")) or len(usable)
    siblings = (_read(CPUS / f"cpu{number}" / "topology" / "thread_siblings_list") for number in usable)
    return len({shared or str(number) for number, shared in zip(usable, siblings, strict=True)})


def _numpy_features() -> set[str]:
    """Features reported by numpy, for systems that do not list them; fewer than Linux reports."""
    core = "_core" if hasattr(np, "_core") else "core"  # numpy 2 and 1
    features = importlib.import_module(f"numpy.{core}._multiarray_umath").__cpu_features__
    return {name for key, name in NUMPY_NAMES.items() if features.get(key)}


def int8_kernels(cpu: Processor) -> Kernels:
    """The int8 kernels for a processor, selected as in onnxruntime 1.32's matrix library (MLAS)."""
    has = set(cpu.features).issuperset
    if cpu.architecture.lower() in ("arm64", "aarch64"):
        if has({"i8mm"}):
            return Kernels("Arm i8mm", True, "matrix instructions for int8: fast")
        if has({"asimddp"}):
            return Kernels("Arm dot product", True, "about half the speed of i8mm")
        return Kernels("Arm NEON", False, "no dot product instructions: slow")
    if has({"amx_tile", "amx_int8"}):
        return Kernels("AMX and AVX512-VNNI", True, "fast")
    if has({"avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}):
        return Kernels("AVX512-VNNI", True, "fast")
    if has({"avx_vnni"}):
        return Kernels("AVX-VNNI", True, "fast")
    if has({"avx512bw", "avx512dq", "avx512vl"}):
        return Kernels("AVX512 without VNNI", False, "slower than with it")
    if has({"avx2"}):
        if not cpu.all_features:
            return Kernels("AVX2", False, "with VNNI, which this system does not report, fast; else slower")
        return Kernels("AVX2 without VNNI", False, "slower than with it")
    return Kernels("no AVX2", False, "slow")


def system_memory() -> SystemMemory:
    """The memory of this machine or its container."""
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        pages = dict(re.findall(r"^Pages (free|inactive|speculative|purgeable):\s+(\d+)", _run("vm_stat"), re.M))
        free = sum(map(int, pages.values())) * os.sysconf("SC_PAGE_SIZE")
        return SystemMemory(_number(_run("sysctl", "-n", "hw.memsize")), free or None, None)
    text = _read(PROC / "meminfo")
    values = {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available, limit = values.get("MemTotal"), values.get("MemAvailable"), None
    for allowed, used in _cgroup_limits():
        if allowed < (total or _UNLIMITED):
            limit = min(allowed, limit or allowed)
            room = max(0, allowed - used)
            available = room if available is None else min(available, room)
    swap = values.get("SwapFree")
    space = _address_space()
    if space is not None and (available is None or space < available):
        available, swap = space, 0  # which swap does not extend
    return SystemMemory(total, available, limit, swap)


def _address_space() -> int | None:
    """Bytes that this process may have in memory if its address space is limited (``ulimit -v``); None if it is not."""
    if sys.platform != "linux":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes = _read(PROC / "self" / "statm").split()
    if limit == resource.RLIM_INFINITY or len(sizes) < 2:
        return None
    size, resident = (int(pages) * resource.getpagesize() for pages in sizes[:2])
    return max(0, limit - (size - resident))


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, memory in use without reclaimable caches) of this process's control groups and their parents."""
    found = []
    for controllers, path in re.findall(r"^\d+:([^:\n]*):/(.*)$", _read(PROC / "self" / "cgroup"), re.MULTILINE):
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 1 has a tree for memory, version 2 one for everything.
        root = CGROUPS / "memory" if controllers else CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        here = root / path
        for folder in (here, *here.parents):
            if not folder.is_relative_to(root):
                break
            allowed, used = (_number(_read(folder / name)) for name in names)  # ``max`` is no number
            if allowed is not None and used is not None:
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
                found.append((allowed, used - (int(cached[1]) if cached else 0)))
    return found


def _windows_memory() -> SystemMemory:
    import ctypes

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("dwLength", ctypes.c_uint32),
            ("dwMemoryLoad", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("ullTotalPhys", "ullAvailPhys", "a", "ullAvailPageFile")),
            *((name, ctypes.c_uint64) for name in "bcd"),
        )

    status = Status(dwLength=ctypes.sizeof(Status))
    library = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    if not library.GlobalMemoryStatusEx(ctypes.byref(status)):
        return SystemMemory(None, None, None)
    available = int(status.ullAvailPhys)
    swap = max(0, int(status.ullAvailPageFile) - available)  # that field counts both
    return SystemMemory(int(status.ullTotalPhys), available, None, swap)


def _read(path: Path) -> str:
    """Content of a system file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(*command: str) -> str:
    """Output of a command; empty if it does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None
