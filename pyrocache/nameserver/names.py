"""`Names`: the remote object of the name server. Pyro5's `NameServer`, with plain values as results.

Stock Pyro5 clients can call it like Pyro5's own, except that a search by regular expression is refused: one such
search can keep a server busy forever. Pyro5's class holds the entries and the lock.

Thread safety: thread-safe, by Pyro5's lock.
"""

from __future__ import annotations

import time
from typing import Any

from Pyro5.core import URI
from Pyro5.errors import NamingError
from Pyro5.nameserver import NameServer

from pyrocache.protocol.commands import Command, Runs, Scope

COMMANDS = {
    # On a worker: a listing may be long, and entries may be in a file.
    name: Command(name, Scope.NODE, False, Runs.WORKER, False)
    for name in ("age", "count", "list", "lookup", "ping", "register", "remove", "set_metadata", "yplookup")
}

_URI_CLASS = "Pyro5.core.URI"


MOST_NAMES = 4096
"""The most entries. Any peer can register names, and each takes memory here and in every listing."""


class Names(NameServer):  # type: ignore[misc]
    """Pyro5's name server. Inherited methods are as documented by Pyro5."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._began_at = time.monotonic()

    def age(self) -> float:
        """Return for how many seconds this process has been there: what it does not list by then is not there."""
        return time.monotonic() - self._began_at

    def lookup(self, name: str, return_metadata: bool = False) -> Any:
        """Return the URI of ``name``, in the form of Pyro5's serializers, or the URI and its metadata."""
        uri, metadata = super().lookup(name, return_metadata=True)
        plain = {"__class__": _URI_CLASS, "state": uri.__getstate__()}
        return (plain, metadata) if return_metadata else plain

    def register(self, name: str, uri: Any, safe: bool = False, metadata: Any = None) -> None:
        """Register a URI, a str or the form of Pyro5's serializers, under ``name``. ``safe``: only if it is free.

        Raises:
            NamingError: the name is taken, the URI is not valid, or there are `MOST_NAMES` other names.
        """
        if self.count() >= MOST_NAMES and name not in self.storage:
            raise NamingError(f"There are {MOST_NAMES} names here already: remove some that are not in use.")
        if isinstance(uri, dict) and uri.get("__class__") == _URI_CLASS:
            plain, uri = uri, URI.__new__(URI)  # what Pyro5's serializers do, which are not used here
            try:
                uri.__setstate__(plain["state"])
                uri = str(uri)
            except (LookupError, TypeError, ValueError):
                raise NamingError("This is not a URI.") from None
        super().register(name, uri, safe, metadata)

    def remove(self, name: Any = None, prefix: Any = None, regex: Any = None) -> Any:
        """Remove one entry, or all entries whose name begins with ``prefix``. Return their number."""
        _refuse(regex)
        return super().remove(name, prefix)

    def list(self, prefix: Any = None, regex: Any = None, return_metadata: bool = False) -> Any:
        """Return the URIs, or URIs and metadata, by name, of all entries or those whose name begins with ``prefix``."""
        _refuse(regex)
        return super().list(prefix, None, return_metadata)

    def yplookup(self, meta_all: Any = None, meta_any: Any = None, return_metadata: bool = True) -> Any:
        """Return the entries that have all, or any, of the given metadata, in the form of `list`."""
        if meta_all and meta_any:
            raise NamingError("Search by all or by any metadata, not by both.")
        return super().yplookup(meta_all, meta_any, return_metadata)


def _refuse(regex: Any) -> None:
    if regex:
        raise NamingError("Regular expressions are not served here; search by prefix.")
