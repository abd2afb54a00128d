"""What Linux tells of a process: the CPU time it took, and the memory it has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def cpu_ns(pids: Iterable[int]) -> int:
    """Nanoseconds that all living threads of these processes have run so far.

    The kernel brings a thread's figure up to date when it goes to sleep: read it while the servers have nothing to do.
    """
    return sum(
        int(schedstat.read_text().split()[0])
        for pid in pids
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def rss_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes that is in RAM."""
    return sum(_kibibytes(pid, "VmRSS") for pid in pids) * 1024


def _kibibytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise LookupError(f"/proc/{pid}/status has no {field}")
