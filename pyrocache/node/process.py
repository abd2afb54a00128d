"""The node process: `main` reads its settings, installs its signal handlers and tunes the interpreter.

The process ends cleanly on SIGTERM, SIGINT and SIGHUP. It also ends when the process that started it has ended
(`runtime.child_process`). `pyrocache.node.lifecycle` runs the node itself; the other
process, that of the name server, is `pyrocache.nameserver.process`.

Thread safety: runs on the main thread.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
from functools import partial
from typing import Any, NoReturn

from pyrocache.cluster.routing import Member
from pyrocache.config import NodeConfig
from pyrocache.errors import ConfigurationError, NameServerUnavailable, NameTaken, PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.directory import NameServerDirectory
from pyrocache.node.lifecycle import Node
from pyrocache.runtime.clock import now
from pyrocache.runtime.descriptors import DescriptorReserve, allow_most
from pyrocache.runtime.secret import secret_of_parent
from pyrocache.runtime.shared_clock import SharedClock
from pyrocache.runtime.start import EXIT_NO_NAME_SERVER, EXIT_REFUSED, answer

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def main(argv: list[str]) -> NoReturn:
    """Run a node.

    Args:
        argv: the settings, a `NodeConfig` in JSON with the ``secret`` (`Secret.for_child`), perhaps with the
            descriptor of a `SharedClock` as ``clock``; and the descriptor that leads to the parent process, which gets
            the `answer`.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    tune()
    parent = int(argv[1])
    try:
        settings = json.loads(argv[0])
        entry_clock: Any = SharedClock(settings.pop("clock")) if "clock" in settings else now
        secret = secret_of_parent(settings.pop("secret"))
        config = NodeConfig(**settings)
        reserve = DescriptorReserve()
        connect = partial(reserve.opening, Connection)
        directory = NameServerDirectory(
            config.nameserver,
            keep=True,
            connect=connect,
            caller=knowing(secret, trusting=True, tls=config.tls),
        )
        node = Node(config, directory, entry_clock=entry_clock, reserve=reserve, secret=secret)
        try:
            node.stop_request.on_signals(reloads=bool(config.tls))
            node.stop_request.with_parent(parent)
        except BaseException:
            node.withdraw()
            raise
        node.run(ready=partial(_report_ready, parent))
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        answer(parent, {"error": str(error)})
        sys.exit(_exit_status(error))
    sys.exit(0)


def _exit_status(error: PyroCacheError) -> int:
    if isinstance(error, (NameTaken, ConfigurationError)):
        return EXIT_REFUSED
    return EXIT_NO_NAME_SERVER if isinstance(error, NameServerUnavailable) else 1


def tune() -> None:
    """Tune the process as a whole: file descriptors, garbage collector, switch interval and malloc."""
    allow_most()
    # A full collection walks over millions of entries, and no long-lived object here is in a cycle. Python 3.14
    # collects the old generation in small steps and ignores the last number; without a GIL there are no generations,
    # and a collection stops all threads, hence the first.
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    gc.set_threshold(700 if gil else 1_000_000, 10, 10_000)
    sys.setswitchinterval(0.001)  # a worker in pure Python must not keep the I/O thread waiting for long
    # Return large values to the system one by one. By default glibc raises this threshold dynamically, and a node that
    # holds values of megabytes takes twice its memory and more. The trim threshold keeps malloc from returning the end
    # of the heap, and taking it again, with every request.
    _tune_malloc("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, 2**20)
    _tune_malloc("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, 8 * 2**20)


def _tune_malloc(variable: str, option: int, value: int) -> None:
    """Set an option of glibc's malloc, unless the environment sets it. Do nothing with other C libraries."""
    if variable not in os.environ:
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes  # missing in some builds of Python

            ctypes.CDLL(None).mallopt(option, value)


def _report_ready(parent: int, member: Member) -> None:
    answer(parent, {"name": member.name, "host": member.host, "port": member.port, "pid": os.getpid()})
