"""How fast the CPU's own multiply-add instructions can go: loops of nothing else, on registers, in every thread.

A matrix product can approach this and never pass it. The loops are machine code for x86-64 with AVX-512; elsewhere
there is no such figure.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ACCUMULATORS = 10
"""Independent sums: instructions start every half cycle and take four, so eight keep both units busy."""
LOOPS = 20_000_000
START = bytes.fromhex("4889f9 c5fc77")  # mov rcx, rdi; vzeroall
END = bytes.fromhex("c5f877 c3")  # vzeroupper; ret
COUNT_DOWN = bytes.fromhex("48ffc9 75")  # dec rcx; jnz


@dataclass(frozen=True)
class Instruction:
    """A multiply-add of 512-bit registers."""

    flag: str
    """Of /proc/cpuinfo: whether the CPU has it."""
    opcode: int
    operations: int
    """Multiplications and additions in one instruction."""


FP32 = Instruction("avx512f", 0xB8, 16 * 2)  # vfmadd231ps
INT8 = Instruction("avx512_vnni", 0x50, 64 * 2)  # vpdpbusd, uint8 x int8 to int32


def available(instruction: Instruction) -> bool:
    """Whether this machine can be asked: x86-64 with the instruction, and a system that follows its usual ABI."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        platform.machine() == "x86_64"
        and cpuinfo.exists()
        and instruction.flag in cpuinfo.read_text(encoding="utf-8").split()
    )


def operations_per_second(instruction: Instruction, threads: int, repeats: int) -> list[float]:
    """Operations a second of all threads together, one figure a repeat."""
    code = _loop(instruction)
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        pinned = (ctypes.c_char * len(code)).from_buffer(page)
        function = ctypes.CFUNCTYPE(None, ctypes.c_long)(ctypes.addressof(pinned))
        figures = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(repeats):
                started = time.perf_counter()
                list(pool.map(function, [LOOPS] * threads))
                elapsed = time.perf_counter() - started
                figures.append(threads * LOOPS * ACCUMULATORS * instruction.operations / elapsed)
        del function, pinned  # the page cannot be closed while they point into it
    return figures


def _loop(instruction: Instruction) -> bytes:
    """``for (n = argument; n; n--) { zmm0 += zmm11 * zmm10; …; zmm9 += zmm11 * zmm10; }``."""
    body = b"".join(
        bytes((0x62, 0xD2 if i < 8 else 0x52, 0x25, 0x48, instruction.opcode, 0xC2 | (i % 8) << 3))
        for i in range(ACCUMULATORS)
    )
    back = len(body) + len(COUNT_DOWN) + 1
    return START + body + COUNT_DOWN + (-back).to_bytes(1, "little", signed=True) + END
