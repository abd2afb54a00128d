"""The name server process: Pyro5's own name server, started, announced and ended in our way.

The main thread waits for the end, Pyro5's threads serve. Run as a module it is a child of `LocalCluster` or of
``pyrocache nodes``: it takes its settings as JSON, says in one line of JSON that it is ready, and ends with its parent.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from pyrocache.config import check_bind_host, format_address
from pyrocache.errors import ConfigurationError, PyroCacheError
from pyrocache.runtime.stop_request import StopRequest

_THREADS = 200
_SILENT_SECONDS = 10.0
_LOOK_SECONDS = 0.2


def serve(
    *,
    host: str,
    port: int,
    storage: str,
    insecure: bool,
    stop: StopRequest,
    ready: Callable[[str], None],
) -> None:
    """Run a name server until ``stop`` is requested; ``ready`` is told its ``host:port``.

    Args:
        storage: ``"memory"``, or ``"sql:FILE"`` to keep the entries.

    Raises:
        ConfigurationError: it cannot be started that way.
    """
    check_bind_host(host, insecure=insecure)
    if not 0 <= port < 65536:
        raise ConfigurationError(f"A port is a number from 0 to 65535, not {port}.")
    if storage != "memory" and not (storage.startswith("sql:") and len(storage) > 4):
        raise ConfigurationError(f"{storage!r} is no storage: give memory, or sql:FILE.")

    from Pyro5 import config
    from Pyro5.nameserver import NameServerDaemon

    config.THREADPOOL_SIZE = _THREADS
    config.COMMTIMEOUT = _SILENT_SECONDS  # else whoever connects and says nothing holds a thread for ever
    config.SERVERTYPE = "thread"
    try:
        daemon = NameServerDaemon(host, port, storage=storage)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {format_address(host, port)} ({error.strerror}): if a name server is running "
            "there already, use that one; else give another --port."
        ) from error
    except (sqlite3.Error, ValueError) as error:
        raise ConfigurationError(f"Cannot keep the entries in {storage!r}: {error}.") from error
    loop = threading.Thread(target=daemon.requestLoop, name="pyrocache-nameserver", daemon=True)
    loop.start()
    try:
        ready(format_address(host, daemon.sock.getsockname()[1]))
        while not stop.wait(
            _LOOK_SECONDS
        ):  # a signal can reach another thread, and then wakes no endless wait
            pass
    finally:
        daemon.shutdown()


def main(argv: list[str]) -> NoReturn:
    """Serve as ``argv[0]``, the arguments of `serve` in JSON, says; prints one line of JSON when ready."""
    stop = StopRequest()
    stop.on_signals()

    def watch_parent() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        stop.request()

    threading.Thread(target=watch_parent, daemon=True).start()
    try:
        serve(**json.loads(argv[0]), stop=stop, ready=_print_ready)
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _print_ready(address: str) -> None:
    print(json.dumps({"address": address, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
