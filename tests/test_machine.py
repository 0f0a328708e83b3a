"""What is found out about processor and memory, from files as Linux has them and from this machine itself."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import plain_environment
from tinygptv.runtime.system import machine, process
from tinygptv.runtime.system.machine import SystemMemory, int8_kernels, processor, system_memory
from tinygptv.runtime.system.process import anonymous_rss, peak_rss, return_freed_memory

GB = 1_000_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own files")


@pytest.mark.parametrize(
    ("architecture", "features", "name", "fast"),
    [
        ("x86_64", "avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", "AVX512-VNNI", True),
        ("AMD64", "avx2 fma avx_vnni", "AVX-VNNI", True),
        ("x86_64", "avx2 avx512bw avx512dq avx512vl avx512_vnni amx_tile amx_int8", "AMX and AVX512-VNNI", True),
        ("x86_64", "avx2 avx512f avx512bw avx512dq avx512vl", "AVX512 without VNNI", False),
        ("x86_64", "avx2 fma", "AVX2 without VNNI", False),
        ("x86_64", "sse4_1", "no AVX2", False),
        ("arm64", "asimd asimddp i8mm", "Arm i8mm", True),
        ("aarch64", "asimd asimddp", "Arm dot product", True),
        ("aarch64", "asimd", "Arm NEON", False),
    ],
)
def test_kernels(architecture: str, features: str, name: str, fast: bool) -> None:
    cpu = replace(processor(), architecture=architecture, features=tuple(features.split()), all_features=True)
    kernels = int8_kernels(cpu)
    assert (kernels.name, kernels.fast) == (name, fast)


def test_kernels_of_what_the_system_does_not_list() -> None:
    cpu = replace(processor(), architecture="AMD64", features=("avx2", "fma"), all_features=False)
    assert "which this system does not report" in int8_kernels(cpu).note


@linux
def test_the_processor_is_what_linux_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni fma unheard_of\n"
    )
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpu = processor()
    assert (cpu.name, cpu.features) == ("Some CPU @ 2 GHz", ("fma", "avx2", "avx512_vnni"))
    assert cpu.all_features
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\nCPU part\t: 0xd40\n")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor().features == ("asimd", "asimddp", "i8mm", "sve")


def test_numpy_knows_no_feature_that_the_system_does_not() -> None:
    """It is the source where the system lists none, so it must use the same names."""
    found = machine._numpy_features()
    assert found
    assert found <= {*machine.X86_FEATURES, *machine.ARM_FEATURES}
    if sys.platform == "linux":
        assert found <= set(processor().features)


@linux
@pytest.mark.parametrize(
    ("membership", "folders", "available", "limit"),
    [
        ("0::/\n", {}, 6 * GB, None),
        ("0::/\n", {"": ("max", 3 * GB, 0)}, 6 * GB, None),
        ("0::/\n", {"": (2 * GB, 1 * GB, GB // 2)}, 3 * GB // 2, 2 * GB),
        ("0::/a/b\n", {"a": (4 * GB, 3 * GB, 0), "a/b": (5 * GB, 1 * GB, 0)}, 1 * GB, 4 * GB),
        ("0::/\n", {"": (9 * GB, 1 * GB, 0)}, 6 * GB, None),  # more than there is
        ("0::/\n", {"": (1 * GB, 2 * GB, 0)}, 0, 1 * GB),
    ],
)
def test_memory_of_a_container(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    folders: dict[str, tuple[object, int, int]],
    available: int,
    limit: int | None,
) -> None:
    lay_out(monkeypatch, tmp_path, membership, "", ("memory.max", "memory.current"), folders)
    assert system_memory() == SystemMemory(8 * GB, available, limit)


@linux
@pytest.mark.parametrize(
    ("limit", "available", "swap"), [(3 << 30, 2 << 30, 0), (1 << 29, 0, 0), (8 << 30, 6 * GB, None)]
)
def test_an_address_space_that_is_limited(
    limit: int, available: int, swap: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """2 GiB are reserved, of which 1 GiB is in memory."""
    import resource

    lay_out(monkeypatch, tmp_path, "0::/\n", "", ("memory.max", "memory.current"), {})
    pages = resource.getpagesize()
    (machine.PROC / "self" / "statm").write_text(f"{(2 << 30) // pages} {(1 << 30) // pages} 0 0 0 0 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    assert system_memory() == SystemMemory(8 * GB, available, None, swap)


@linux
def test_memory_of_an_older_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folders = {"": (1 << 62, 5 * GB, 0), "box": (3 * GB, 2 * GB, 0)}
    lay_out(monkeypatch, tmp_path, "5:cpu:/x\n4:memory:/box\n1:name=systemd:/\n0::/\n", "memory", names, folders)
    assert system_memory() == SystemMemory(8 * GB, 1 * GB, 3 * GB)


def lay_out(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    membership: str,
    controller: str,
    names: tuple[str, str],
    groups: dict[str, tuple[object, int, int]],
) -> None:
    """Files as Linux has them, for a machine of 8 GB with 6 GB available."""
    proc, root = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {8 * GB // 1024} kB\nMemAvailable: {6 * GB // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for name, (allowed, used, cached) in groups.items():
        group = root / controller / name
        group.mkdir(parents=True, exist_ok=True)
        for file, value in zip(names, (allowed, used), strict=True):
            (group / file).write_text(f"{value}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUPS", root)


# A system that tells less: files that are missing, cannot be read, or hold something else


@pytest.fixture(params=["missing", "unreadable", "empty", "odd"])
def silent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Linux's own files would be; where one can read everything, a folder stands for what cannot be read."""
    proc, groups, cpus = (tmp_path / name for name in ("proc", "cgroup", "cpus"))
    for module, name, folder in (
        *((module, "PROC", proc) for module in (machine, process)),
        (machine, "CGROUPS", groups),
        (machine, "CPUS", cpus),
    ):
        monkeypatch.setattr(module, name, folder)
    paths = [proc / "cpuinfo", proc / "meminfo", proc / "self" / "cgroup", proc / "self" / "status"]
    paths += [cpus / f"cpu{number}" / "topology" / "thread_siblings_list" for number in range(64)]
    for path in paths if request.param != "missing" else []:
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.param == "unreadable":
            path.mkdir()
        elif request.param == "empty":
            path.touch()
        else:
            path.write_bytes(b"MemTotal: lots\n0:\nflags\nRssAnon: \xff kB\n::::\n")
    return tmp_path


@linux
def test_a_processor_that_the_system_does_not_describe(silent: Path) -> None:
    cpu = processor()
    assert cpu.name and not cpu.all_features
    assert set(cpu.features) == machine._numpy_features() & {*machine.X86_FEATURES, *machine.ARM_FEATURES}
    assert cpu.threads >= cpu.cores >= 1
    assert int8_kernels(cpu).name


@linux
def test_memory_that_the_system_does_not_describe(silent: Path) -> None:
    assert system_memory() == SystemMemory(None, None, None)
    assert anonymous_rss() is None


@linux
@pytest.mark.parametrize(
    ("membership", "controller", "names", "unlimited"),
    [
        ("0::/\n", "", ("memory.max", "memory.current"), "max"),
        ("4:memory:/\n", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2**63 - 4096),
    ],
)
def test_a_container_alone_tells_of_memory(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    controller: str,
    names: tuple[str, str],
    unlimited: object,
) -> None:
    lay_out(monkeypatch, tmp_path, membership, controller, names, {"": (3 * GB, 2 * GB, GB // 2)})
    (tmp_path / "proc" / "meminfo").unlink()
    assert system_memory() == SystemMemory(None, 3 * GB // 2, 3 * GB)
    (tmp_path / "cgroup" / controller / "memory.stat").unlink()
    assert system_memory() == SystemMemory(None, 1 * GB, 3 * GB)
    (tmp_path / "cgroup" / controller / names[0]).write_text(f"{unlimited}\n")
    assert system_memory() == SystemMemory(None, None, None)


@linux
def test_a_kernel_that_reckons_no_available_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lay_out(monkeypatch, tmp_path, "0::/\n", "", ("memory.max", "memory.current"), {})
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {8 * GB // 1024} kB\nMemFree: {6 * GB // 1024} kB\n")
    assert system_memory() == SystemMemory(8 * GB, None, None)


@linux
def test_cores_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Threads of one core have the same siblings; those that tell nothing count as cores."""
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    for number, siblings in enumerate(("0,2", "1", "0,2")):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert machine._physical_cores({0, 1, 2}) == 2
    assert machine._physical_cores({0, 1, 2, 5, 6}) == 4


def test_memory_of_this_process() -> None:
    assert peak_rss() > 10_000_000
    anonymous = anonymous_rss()
    assert anonymous is None or anonymous > 1_000_000
    return_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_threads_of_a_command_share_one_heap() -> None:
    """A bit of a block's header says whether it lies in another one than the main thread's."""
    code = """if 1:
    import ctypes, sys, threading
    from tinygptv.runtime.cli import main
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    if sys.argv[1:]:
        main(sys.argv[1:])
    def allocate():
        header = ctypes.c_size_t.from_address(malloc(5000) - ctypes.sizeof(ctypes.c_size_t)).value
        print(bool(header & 4))
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    """
    for arguments, expected in ([], "True"), (["bundle", "verify", "nowhere"], "False"):
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected


@linux
def test_memory_of_this_process_is_not_its_parent_s(tmp_path: Path) -> None:
    """Which is what getrusage tells there of one that a large process has started."""
    large = np.ones(200_000_000, np.uint8)
    command = "from tinygptv.runtime.system.process import peak_rss; print(peak_rss())"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, env=plain_environment(tmp_path), check=True
    )
    assert 10_000_000 < int(done.stdout) < large.nbytes < peak_rss()


def test_memory_of_this_machine() -> None:
    found = system_memory()
    assert found.total is not None and found.available is not None
    assert found.total > found.available > 0
    assert found.limit is None or found.limit < found.total
