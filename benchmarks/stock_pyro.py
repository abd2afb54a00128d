"""A dict behind a stock Pyro5 daemon: what one writes after reading Pyro5's tutorial. Runs in a process of its own."""

from __future__ import annotations

import signal
import threading
from multiprocessing.connection import Connection
from typing import Any


class PlainDict:
    """A dict, exposed; under one name to all."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        return self._entries.get(key)

    def set(self, key: str, value: bytes) -> bool:
        """Store it."""
        self._entries[key] = value
        return True

    def delete(self, key: str) -> bool:
        """Remove it; whether it was there."""
        return self._entries.pop(key, None) is not None

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        """Those that there are."""
        return {key: self._entries[key] for key in keys if key in self._entries}

    def set_many(self, entries: dict[str, bytes]) -> int:
        """Store all; how many."""
        self._entries.update(entries)
        return len(entries)


def serve(parent: Connection, address: dict[str, Any]) -> None:
    """Serve at ``address`` (keywords of `Pyro5.api.Daemon`), tell ``parent`` the URI, and end when it hangs up."""
    import Pyro5
    from Pyro5.api import Daemon, expose

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    Pyro5.config.SERVERTYPE = "thread"
    Pyro5.config.SOCK_NODELAY = True
    daemon = Daemon(**address)
    uri = daemon.register(expose(PlainDict)(), "dict")
    parent.send(str(uri))

    def end_with_parent() -> None:
        parent.poll(None)
        daemon.shutdown()

    threading.Thread(target=end_with_parent, daemon=True).start()
    daemon.requestLoop()
