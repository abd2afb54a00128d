"""Where a run was: the machine, and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from pyrocache import __version__

_PACKAGES = (
    "Pyro5",
    "msgpack",
    "xxhash",
    "redis",
    "hiredis",
    "uvloop",
    "pymemcache",
    "numpy",
    "cachetools",
    "cachebox",
    "theine",
)
_PROGRAMS = {"redis-server": "v=", "memcached": "memcached "}


def machine() -> dict[str, str]:
    """Processor, their number, memory, kernel."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cpus": str(os.cpu_count()),
        "memory": f"{pages / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of Python, the packages and the programs; what is missing is left out."""
    found = {"Python": platform.python_version(), "pyrocache": __version__}
    for package in _PACKAGES:
        try:
            found["redis-py" if package == "redis" else package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    for program, before in _PROGRAMS.items():
        path = shutil.which(program)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)
            found[program] = said.stdout.partition(before)[2].split()[0]
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, model = line.partition(":")
        if name.strip() == "model name":
            return model.strip()
    return platform.machine()
