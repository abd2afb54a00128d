"""Iterate over the entries of a namespace: keys page by page and node by node, values as they are needed.

Memory is bounded by one page of keys, and for values by 4 MiB (`BATCH_BYTES` of ``protocol/limits.py``) plus one
value for each node. Each page is a call with a deadline of its own. A node keeps no state of an iteration.

The nodes agree on a cluster view before an iteration begins, and a key is returned only from its owner by that view. So
no key is returned twice, and each key that exists throughout is returned once. A key whose owner changes during the
iteration does not exist throughout: its old node drops the entry.

Thread safety: not thread-safe; each iterator is used by one thread. A client may have any number of iterators.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import TYPE_CHECKING, Any, TypeAlias

from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.keys.encoding import decode_key
from pyrocache.errors import CacheUnavailable, InvalidKey, NodeUnavailable, PyroCacheError
from pyrocache.protocol.limits import MAX_BATCH

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient

_TEXT, _TUPLE = b"s", b"t"

Prefix: TypeAlias = str | tuple[Any, ...] | None
"""The beginning of the keys to return; None for all keys."""


def scan(context: ClientContext, prefix: Prefix = None, batch: int = MAX_BATCH) -> Iterator[Any]:
    """Return the keys of a namespace, as `PyroCacheClient.scan` does."""
    return (key for page in _pages(context, prefix, batch) for key in _keys(context, page))


def items(context: ClientContext) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a namespace."""
    for waiting in _pages(context):
        while waiting:
            found, waiting = _some_values(context, waiting)
            for encoded, frame in found:
                key = _key(context, encoded)
                value = MISSING if key is MISSING else context.read(encoded, frame, MISSING)
                if value is not MISSING:
                    yield key, value


def pop_any(context: ClientContext) -> tuple[Any, Any]:
    """Remove an arbitrary entry and return its key and value. Raises `KeyError` if there is no entry."""
    for page in _pages(context, batch=16):  # small: the first key usually still exists
        for encoded in page:
            key = _key(context, encoded)
            if key is MISSING:
                continue
            try:
                frame = context.backend.pop(encoded, context.deadline())
            except CacheUnavailable as error:
                frame = context.missed(error, None)
            value = MISSING if frame is None else context.read(encoded, frame, MISSING)
            if value is not MISSING:
                return key, value
    raise KeyError("there is no entry in this namespace")


def _keys(context: ClientContext, page: list[bytes]) -> list[Any]:
    """Return the decoded keys of a page. Applies ``on_undecodable`` to the others."""
    try:
        return list(map(decode_key, page))
    except InvalidKey:
        decoded = (_key(context, encoded) for encoded in page)
        return [key for key in decoded if key is not MISSING]


def _key(context: ClientContext, encoded: bytes) -> Any:
    """Return a decoded key; if it does not decode, apply ``on_undecodable``: raise `InvalidKey` or return `MISSING`."""
    try:
        return decode_key(encoded)
    except InvalidKey as error:
        return context.undecodable(error, MISSING)


class Items(ItemsView[Any, Any]):
    """The entries of a client's namespace, fetched page by page."""

    __slots__ = ()
    _mapping: PyroCacheClient

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return items(self._mapping._context)


class Values(ValuesView[Any]):
    """The values of a client's namespace, fetched page by page."""

    __slots__ = ()
    _mapping: PyroCacheClient

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in items(self._mapping._context))

    def __contains__(self, value: object) -> bool:
        # ValuesView's own method sends a request for each key.
        return any(other is value or other == value for other in self)


def _pages(context: ClientContext, prefix: Prefix = None, batch: int = MAX_BATCH) -> Iterator[list[bytes]]:
    """Return an iterator over pages of encoded keys. Checks the arguments before the first page is requested.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"batch is how many keys to ask for at a time, not {type(batch).__name__}.")
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch is 1 to {MAX_BATCH} keys, not {batch}.")
    if prefix is None:
        return _walk(context, context.prefix, batch)
    if isinstance(prefix, (str, tuple)):
        encoded = context.encode_key(prefix)
        if encoded[len(context.prefix) :][:1] in (_TEXT, _TUPLE):  # a subclass may be encoded as another kind
            return _walk(context, encoded, batch)
    kind = type(prefix).__name__
    raise TypeError(f"scan takes a str or a tuple as a prefix, not {kind}.")


def _walk(context: ClientContext, prefix: bytes, batch: int) -> Iterator[list[bytes]]:
    try:
        view, unreachable = context.backend.agreed_view(context.deadline())
    except CacheUnavailable as error:
        context.missed(error, None)
        return
    for member in view.members:
        if member in unreachable:
            context.missed(unreachable[member], None)
            continue
        cursor = 0
        while True:
            deadline = context.deadline()
            try:
                cursor, page = context.backend.scan(member, context.prefix, prefix, cursor, batch, deadline)
            except NodeUnavailable as error:
                context.missed(error, None)
                break
            # A key that has moved is left out: only its owner by this view returns it.
            yield [key for key in page if view.owner(key) is member]
            if cursor == 0:
                break


def _some_values(context: ClientContext, keys: list[bytes]) -> tuple[list[tuple[bytes, Any]], list[bytes]]:
    """Return entries of some ``keys``, each with its frame, and the keys that are still to be requested."""
    found: dict[int, Any] = {}
    failures: set[PyroCacheError] = set()
    unknown = set(range(len(keys)))
    # One reply of each node bounds the memory; the caller requests the remaining keys later.
    for indices, frames in context.backend.get_many(keys, context.deadline(), one_reply=True):
        unknown.difference_update(indices)
        if isinstance(frames, PyroCacheError):
            failures.add(frames)
        else:
            found.update(zip(indices, frames, strict=True))
    for error in failures:
        if not isinstance(error, NodeUnavailable):
            raise error
        context.missed(error, None)
    entries = [(keys[index], frame) for index, frame in sorted(found.items()) if frame is not None]
    return entries, [keys[index] for index in sorted(unknown)]
