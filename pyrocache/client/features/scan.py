"""Iterate over the entries of a namespace: keys page by page and node by node, values as they are needed.

Memory is bounded by one page of keys, and for values by 4 MiB (`BATCH_BYTES` of ``protocol/limits.py``) plus one
value for each node. Each page is a call with a deadline of its own. A node keeps no state of an iteration.

The nodes agree on a cluster view before an iteration begins, and a key is returned only from its owner by that view. So
no key is returned twice, and each key that exists throughout is returned once. A key whose owner changes during the
iteration does not exist throughout: its old node drops the entry.

Thread safety: not thread-safe; each iterator is used by one thread. A client may have any number of iterators.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.features.entries import EntryInfo, entry_info
from pyrocache.client.keys.encoding import decode_key
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import (
    CacheUnavailable,
    InvalidKey,
    NodeUnavailable,
    PyroCacheError,
    RemoteError,
    SerializationError,
)
from pyrocache.protocol.limits import MAX_BATCH
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient

_R = TypeVar("_R")

_TEXT, _TUPLE = b"s", b"t"

_MOST_EMPTY_PAGES = 2**20
"""Empty pages in a row, after which a node is taken to be broken. A node looks at 300 keys and more for each."""

Prefix: TypeAlias = str | tuple[Any, ...] | None
"""The beginning of the keys to return; None for all keys."""


def scan(
    context: ClientContext, prefix: Prefix = None, batch: int = MAX_BATCH, tag: bytes | None = None
) -> Iterator[Any]:
    """Return the keys of a namespace, as `PyroCacheClient.scan` does."""
    return (key for page in _pages(context, prefix, batch, tag) for key in _keys(context, page))


def details(
    context: ClientContext, prefix: Prefix, batch: int, tag: bytes | None = None
) -> Iterator[EntryInfo]:
    """Return a description of each entry, as `PyroCacheClient.scan` does with ``details``."""
    pages = _pages(context, prefix, batch, tag, details=True)
    found = (entry_info(context, sent) for page in pages for sent in page)
    return (info for info in found if info.key is not MISSING)


def delete_prefix(context: ClientContext, prefix: Prefix) -> int:
    """Remove the entries whose keys begin with ``prefix`` from every node. Return how many there were."""
    encoded = _encoded("delete_prefix", context, prefix)

    def ask(member: Member, cursor: int) -> tuple[int, int]:
        return context.backend.delete_prefix(member, context.prefix, encoded, cursor, context.deadline())

    return sum(count for _, _, count in _of_each_node(context, ask, to_the_end=True))


def items(context: ClientContext) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a namespace."""
    for waiting in _pages(context):
        while waiting:
            found, waiting = _some_values(context, waiting)
            for encoded, frame in found:
                key = context.read_key(encoded, MISSING)
                value = MISSING if key is MISSING else context.read(encoded, frame, MISSING)
                if value is not MISSING:
                    yield key, value


def pop_any(context: ClientContext) -> tuple[Any, Any]:
    """Remove an arbitrary entry and return its key and value. Raises `KeyError` if there is no entry."""
    for page in _pages(context, batch=16):  # small: the first key usually still exists
        for encoded in page:
            key = context.read_key(encoded, MISSING)
            if key is MISSING:
                continue
            # Read first, so that an entry which does not decode here is not lost.
            try:
                found = context.backend.get_with_version(encoded, context.deadline())
                value = MISSING if found is None else context.read(encoded, found[0], MISSING)
                if value is MISSING:
                    continue
                assert found is not None
                if not context.backend.delete(encoded, context.deadline(), found[1]):
                    continue
            except CacheUnavailable as error:
                context.missed(error, None)
                continue
            return key, value
    raise brief(KeyError("there is no entry in this namespace"))


def _keys(context: ClientContext, page: list[bytes]) -> list[Any]:
    """Return the decoded keys of a page. Applies ``on_undecodable`` to the others."""
    try:
        return [decode_key(encoded, context.codec) for encoded in page]
    except (InvalidKey, SerializationError):
        decoded = (context.read_key(encoded, MISSING) for encoded in page)
        return [key for key in decoded if key is not MISSING]


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


def _pages(
    context: ClientContext,
    prefix: Prefix = None,
    batch: int = MAX_BATCH,
    tag: bytes | None = None,
    *,
    details: bool = False,
) -> Iterator[list[Any]]:
    """Return an iterator over pages of encoded keys, or of details that begin with the encoded key.

    Checks the arguments before the first page is requested.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise brief(TypeError(f"batch is how many keys to ask for at a time, not {type(batch).__name__}."))
    if not 1 <= batch <= MAX_BATCH:
        raise brief(ValueError(f"batch is 1 to {MAX_BATCH} keys, not {batch}."))
    encoded = context.prefix if prefix is None else _encoded("scan", context, prefix)
    return _walk(context, encoded, batch, tag, details)


def _encoded(name: str, context: ClientContext, prefix: Prefix) -> bytes:
    """Return the bytes that the keys with a prefix begin with. Raises `TypeError`."""
    if isinstance(prefix, (str, tuple)):
        encoded = context.encode_key(prefix)
        if encoded[len(context.prefix) :][:1] in (_TEXT, _TUPLE):  # a subclass may be encoded as another kind
            return encoded
    raise brief(TypeError(f"{name} takes a str or a tuple as a prefix, not {type(prefix).__name__}."))


def _walk(
    context: ClientContext, prefix: bytes, batch: int, tag: bytes | None, details: bool
) -> Iterator[list[Any]]:
    def ask(member: Member, cursor: int) -> tuple[int, Any]:
        return context.backend.scan(
            member, context.prefix, prefix, cursor, batch, context.deadline(), tag=tag, details=details
        )

    for view, member, page in _of_each_node(context, ask):
        # A key that has moved is left out: only its owner by this view returns it.
        yield [each for each in page if view.owner(each[0] if details else each) is member]


def _of_each_node(
    context: ClientContext, ask: Callable[[Member, int], tuple[int, _R]], *, to_the_end: bool = False
) -> Iterator[tuple[ClusterView, Member, _R]]:
    """Yield what each node answers, page by page. ``on_error`` says what to do where a node does not answer.

    Args:
        ask: sends a node the cursor of a page, 0 at first; returns the next cursor, 0 at last, and the page.
        to_the_end: whether to ask all nodes before an error is raised.
    """
    try:
        view, unreachable = context.backend.agreed_view(context.deadline())
    except CacheUnavailable as error:
        context.missed(error, None)
        return
    failures: list[CacheUnavailable] = []
    for member in view.members:
        if member in unreachable:
            failures.append(unreachable[member])
        cursor = empty = 0
        while member not in unreachable:
            try:
                cursor, page = ask(member, cursor)
            except CacheUnavailable as error:
                failures.append(error)
                break
            yield view, member, page
            if cursor == 0:
                break
            empty = 0 if page else empty + 1
            if empty >= _MOST_EMPTY_PAGES:
                raise RemoteError(
                    f"{member.name} answered a scan with {empty} empty pages, one after the other."
                )
        if failures and not to_the_end:
            context.missed(failures.pop(), None)
    for failure in failures:
        context.missed(failure, None)


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
