"""`Names`: the remote object of the name server. Pyro5's `NameServer`, with plain values as results.

Stock Pyro5 clients can call it like Pyro5's own, except that a search by regular expression is refused: one such
search can keep a server busy forever. The entry of a node that is alive cannot be replaced by that of another one.
Pyro5's class holds the entries and the lock.

Thread safety: thread-safe, by Pyro5's lock, which is not held while a node is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from Pyro5.core import URI
from Pyro5.errors import NamingError
from Pyro5.nameserver import NameServer

from pyrocache.cluster.routing import Member
from pyrocache.net.directory import PREFIX, member_from_entry
from pyrocache.protocol.commands import Command, Runs, Scope

COMMANDS = {
    # On a worker: a listing may be long, and entries may be in a file.
    name: Command(name, Scope.NODE, False, Runs.WORKER, False, open=is_open)
    for name, is_open in (
        *((name, True) for name in ("age", "count", "list", "lookup", "ping", "yplookup")),
        *((name, False) for name in ("register", "remove", "set_metadata")),
    )
}

_URI_CLASS = "Pyro5.core.URI"


MOST_NAMES = 4096
"""The most entries. Each takes memory here and in every listing."""


class Names(NameServer):  # type: ignore[misc]
    """Pyro5's name server. Inherited methods are as documented by Pyro5.

    Args:
        storage: holds the entries.
        alive: returns whether a node that is registered is alive. It may block for a short time.
    """

    def __init__(self, storage: Any, alive: Callable[[Member], bool]) -> None:
        super().__init__(storage)
        self._began_at = time.monotonic()
        self._alive = alive
        # At most one worker waits for the answer of a node. The other ones are for those that list and look up.
        self._asking = threading.Lock()

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
            NamingError: the name is taken, by a node that is alive or, if ``safe``, by anything; the URI is not valid;
                or there are `MOST_NAMES` other names.
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
        if safe or not _is_node(name):
            super().register(name, uri, safe, metadata)
            return
        entry = self._replaceable(name, uri, metadata)
        with self.lock:
            if self.storage.get(name) != entry:  # another one was faster
                raise _taken(name)
            super().register(name, uri, False, metadata)

    def set_metadata(self, name: str, metadata: Any) -> None:
        """Replace the metadata of an entry. Raises `NamingError` as `register` does."""
        if _is_node(name):
            self._replaceable(name, None, metadata)
        super().set_metadata(name, metadata)

    def _replaceable(self, name: str, uri: Any, metadata: Any) -> Any:
        """Return the entry of ``name``, None if there is none.

        Raises:
            NamingError: it is of a node that is alive, and the new URI (None: the same one) and metadata are of another
                node. Or it cannot be asked now, because another one is asked.
        """
        with self.lock:
            entry = self.storage.get(name)
        holder = member_from_entry(name, entry)
        if holder is None:
            return entry
        taker = member_from_entry(name, (uri or entry[0], metadata))
        if taker is None or (taker.address, taker.incarnation) != (holder.address, holder.incarnation):
            if not self._asking.acquire(blocking=False):
                raise _taken(name)
            try:
                if self._alive(holder):
                    raise _taken(name)
            finally:
                self._asking.release()
        return entry

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


def _is_node(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX)


def _taken(name: str) -> NamingError:
    return NamingError(f"name already registered: {name}, by a node that is alive")  # as Pyro5 begins it


def _refuse(regex: Any) -> None:
    if regex:
        raise NamingError("Regular expressions are not served here; search by prefix.")
