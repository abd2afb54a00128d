"""The remote object of the name server: Pyro5's own `NameServer`, with arguments checked and results made plain.

Stock Pyro5 clients call it as they call Pyro5's, but for searching by regular expression, which is refused: one such
search can keep a server busy for ever. Owns no entry and no lock; both are Pyro5's. Any thread may call.
"""

from __future__ import annotations

from typing import Any

from Pyro5.core import URI
from Pyro5.errors import NamingError
from Pyro5.nameserver import NameServer

from pyrocache.protocol.commands import Command, Runs, Scope

COMMANDS = {
    # On a worker: a listing may be long, and entries may be in a file.
    name: Command(name, Scope.NODE, False, Runs.WORKER, False)
    for name in ("count", "list", "lookup", "ping", "register", "remove", "set_metadata", "yplookup")
}


class Names:
    """The names of one name server.

    Args:
        entries: where they are kept.
    """

    def __init__(self, entries: NameServer) -> None:
        self._entries = entries

    def ping(self) -> None:
        """Do nothing."""

    def count(self) -> int:
        """Return the number of entries."""
        return int(self._entries.count())

    def lookup(self, name: str, return_metadata: bool = False) -> Any:
        """Return the URI under ``name``, or the URI and its metadata."""
        _check_text(name)
        uri, metadata = self._entries.lookup(name, return_metadata=True)
        return (_plain(uri), metadata) if return_metadata else _plain(uri)

    def register(self, name: str, uri: Any, safe: bool = False, metadata: Any = None) -> None:
        """Enter a URI under ``name``; ``safe``: unless there is one."""
        _check_text(name)
        self._entries.register(name, _uri_text(uri), safe, _texts(metadata))

    def set_metadata(self, name: str, metadata: Any) -> None:
        """Replace the metadata of an entry."""
        _check_text(name)
        self._entries.set_metadata(name, _texts(metadata))

    def remove(self, name: str | None = None, prefix: str | None = None, regex: Any = None) -> int:
        """Remove one entry, or all whose name begins with ``prefix``. Return how many there were."""
        _check_search(name, prefix, regex)
        return int(self._entries.remove(name, prefix))

    def list(self, prefix: str | None = None, regex: Any = None, return_metadata: bool = False) -> Any:
        """Return the entries whose name begins with ``prefix``, or all: URIs by name, or URIs and metadata."""
        _check_search(None, prefix, regex)
        return self._entries.list(prefix, None, bool(return_metadata))

    def yplookup(self, meta_all: Any = None, meta_any: Any = None, return_metadata: bool = True) -> Any:
        """Return the entries that have all, or any, of these metadata, as `list` does."""
        if meta_all and meta_any:
            raise NamingError("Search by all or by any metadata, not by both.")
        return self._entries.yplookup(_texts(meta_all), _texts(meta_any), bool(return_metadata))


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise NamingError("A name is text.")


def _check_search(name: Any, prefix: Any, regex: Any) -> None:
    if regex:
        raise NamingError("Regular expressions are not served here; search by prefix.")
    for value in name, prefix:
        if value is not None:
            _check_text(value)


def _texts(metadata: Any) -> set[str] | None:
    if metadata is None:
        return None
    if isinstance(metadata, list | tuple | set | frozenset) and all(
        isinstance(text, str) for text in metadata
    ):
        return set(metadata)
    raise NamingError("Metadata is a collection of texts.")


def _plain(uri: URI) -> dict[str, Any]:
    """Return ``uri`` as the serializers of Pyro5 write it."""
    return {"__class__": "Pyro5.core.URI", "state": uri.__getstate__()}


def _uri_text(uri: Any) -> str:
    """Return the text of a URI, which stock clients send as an object."""
    if isinstance(uri, dict) and uri.get("__class__") == "Pyro5.core.URI":
        parsed = URI.__new__(URI)
        try:
            parsed.__setstate__(uri["state"])
            return str(parsed)
        except (LookupError, TypeError, ValueError):
            pass
    if not isinstance(uri, str):
        raise NamingError("Only URIs or texts can be registered.")
    return uri
