"""Memory use of this process, as reported by the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROC = Path("/proc")
M_ARENA_MAX = -8
"""glibc's number of this setting, from malloc.h."""


def peak_rss() -> int:
    """Peak resident set size of this process so far, in bytes."""
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            """PROCESS_MEMORY_COUNTERS of the Windows API."""

            _fields_ = (
                ("cb", wintypes.DWORD),
                ("PageFaultCount", wintypes.DWORD),
                *(
                    (name, ctypes.c_size_t)
                    for name in ("PeakWorkingSetSize", "WorkingSetSize", "a", "b", "c", "d", "e", "f")
                ),
            )

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
        if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
            raise ctypes.WinError()
        return int(counters.PeakWorkingSetSize)
    peak = _from_status("VmHWM")
    if peak is not None:
        return peak
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # where it is Linux's: that of a larger parent, too
    return most if sys.platform == "darwin" else most * 1024


def anonymous_rss() -> int | None:
    """Resident bytes not backed by a file, which cannot be reclaimed under pressure. None if not reported.

    Only Linux reports them.
    """
    return _from_status("RssAnon")


def _from_status(field: str) -> int | None:
    """A field of Linux's process status, in bytes; None on other systems."""
    try:
        status = (PROC / "self" / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def share_one_heap() -> None:
    """Have all threads of this process allocate from one heap (glibc).

    By default each thread has its own, and :func:`return_freed_memory` returns less of those: 50 MB stay that graphs
    were loaded with. Only programs call this, before they start threads: libraries leave their host's settings alone.
    """
    if sys.platform == "linux":
        import ctypes

        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if set_option is not None:
            set_option(M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return freed memory to the system now, if the C library would keep it for later (glibc)."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
