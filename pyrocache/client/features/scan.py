"""Walks over the entries of a namespace: keys page by page and node by node, values fetched as they are asked for.

Memory is bounded by a page of keys, and of values by 4 MiB and one value for each node. Each page is a call of its own,
with its own deadline. A node keeps nothing about a walk.

The nodes agree on a view before a walk begins, and a key counts only where that view has it. So no key comes twice, and
each that is there throughout comes once: its owner does not change meanwhile, since an entry is dropped when that does.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Sequence, ValuesView
from typing import TYPE_CHECKING, Any

from pyrocache.client.backend import Core
from pyrocache.client.keys.encoding import decode_key
from pyrocache.client.routing.router import Batch, NodeLeft
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import NodeUnavailable, PyroCacheError
from pyrocache.protocol.limits import MAX_BATCH

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient

_TEXT, _TUPLE = b"s", b"t"


def scan(core: Core, prefix: str | tuple[Any, ...] | None = None, batch: int = MAX_BATCH) -> Iterator[Any]:
    """The keys of a namespace, as `PyroCacheClient.scan` gives them."""
    return (decode_key(key) for page in _pages(core, prefix, batch) for key in page)


def items(core: Core) -> Iterator[tuple[Any, Any]]:
    """The keys and values of a namespace."""
    for page in _pages(core):
        waiting = page
        while waiting:
            found, waiting = _some_values(core, waiting)
            for key, frame in found:
                yield decode_key(key), core.decode(frame)


def pop_any(core: Core) -> tuple[Any, Any]:
    """Remove some entry and return it. Raises `KeyError` when there is none."""
    for page in _pages(core, batch=16):
        for encoded in page:
            deadline = core.deadline()
            try:
                frame = core.call_owner("pop", encoded, deadline=deadline, idempotent=False)
            except NodeUnavailable as error:
                frame = core.missed(error, None)
            if frame is not None:
                return decode_key(encoded), core.decode(frame)
    raise KeyError("there is no entry in this namespace")


class Items(ItemsView[Any, Any]):
    """The entries of a client's namespace, fetched page by page."""

    __slots__ = ()
    _mapping: PyroCacheClient

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return items(self._mapping._core)


class Values(ValuesView[Any]):
    """The values of a client's namespace, fetched page by page."""

    __slots__ = ()
    _mapping: PyroCacheClient

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in items(self._mapping._core))

    def __contains__(self, value: object) -> bool:
        return any(other is value or other == value for other in self)


def _pages(
    core: Core, prefix: str | tuple[Any, ...] | None = None, batch: int = MAX_BATCH
) -> Iterator[list[bytes]]:
    """Pages of encoded keys. What is wrong with the arguments is found out at once."""
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"batch is how many keys to ask for at a time, not {type(batch).__name__}.")
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch is 1 to {MAX_BATCH} keys, not {batch}.")
    return _walk(core, _encoded_prefix(core, prefix), batch)


def _encoded_prefix(core: Core, prefix: Any) -> bytes:
    """What the keys begin with that ``prefix`` means."""
    if prefix is None:
        return core.prefix
    if isinstance(prefix, str | tuple):
        encoded = core.encode_key(prefix)
        if encoded[len(core.prefix) :][:1] in (_TEXT, _TUPLE):  # a subclass need not be
            return encoded
    raise TypeError(f"scan takes the begin of a text or of a tuple as a prefix, not {type(prefix).__name__}.")


def _walk(core: Core, prefix: bytes, batch: int) -> Iterator[list[bytes]]:
    view, away = core.router.settled_view(core.deadline())
    for member in view.members:
        if member in away:
            core.missed(away[member], None)
            continue
        cursor = 0
        while True:
            try:
                cursor, page = core.router.ask(
                    member, "scan", core.prefix, prefix, cursor, batch, deadline=core.deadline()
                )
            except NodeLeft:
                break
            except NodeUnavailable as error:
                core.missed(error, None)
                break
            yield _of(view, member, page)
            if cursor == 0:
                break


def _of(view: ClusterView, member: Member, page: Sequence[bytes]) -> list[bytes]:
    """Those of a page's keys that are the member's by a view."""
    split = dict(zip(view.members, view.split(page, range(len(page))), strict=True))
    return [page[index] for index in split[member]]


def _some_values(core: Core, keys: list[bytes]) -> tuple[list[tuple[bytes, Any]], list[bytes]]:
    """Of some of ``keys`` those that have a value, and its frame; and the keys that are still to be asked about."""
    frames: list[Any] = [None] * len(keys)
    unknown = set(range(len(keys)))

    def take(indices: Sequence[int], found: Any) -> int:
        if type(found) is not list or len(found) > len(indices):
            return 0
        for index, frame in zip(indices, found, strict=False):
            frames[index] = frame
            unknown.discard(index)
        return len(found)

    errors = core.router.batch(
        "get_many", Batch(keys), deadline=core.deadline(), on_reply=take, one_reply=True
    )
    _raise_or_miss(core, [error for _, error in errors])
    unknown.difference_update(index for indices, _ in errors for index in indices)
    found = [(key, frame) for key, frame in zip(keys, frames, strict=True) if frame is not None]
    return found, [keys[index] for index in sorted(unknown)]


def _raise_or_miss(core: Core, errors: Sequence[PyroCacheError]) -> None:
    for error in dict.fromkeys(errors):
        if not isinstance(error, NodeUnavailable):
            raise error
        core.missed(error, None)
