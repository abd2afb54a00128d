"""Iterate over the entries of a namespace: keys page by page and node by node, values as they are needed.

Memory is bounded by one page of keys, and for values by 4 MiB (`BATCH_BYTES` of ``protocol/limits.py``) plus one
value for each node. Each page is a call with a deadline of its own. A node keeps no state of an iteration.

The nodes agree on a cluster view before an iteration begins, and a key is returned only from its owner by that view. So
no key is returned twice, and each key that exists throughout is returned once. A key whose owner changes during the
iteration does not exist throughout: its old node drops the entry.

Thread safety: not thread-safe; each iterator is used by one thread. A client may have any number of iterators.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.features.progress import Progress, progress_of
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
from pyrocache.late_imports import at_first_use
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.limits import MAX_BATCH
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient
    from pyrocache.client.features.entries import EntryInfo

_R = TypeVar("_R")

_TEXT, _TUPLE = b"s", b"t"

_MOST_EMPTY_PAGES = 2**20
"""Empty pages in a row, after which a node is taken to be broken. A node looks at 300 keys and more for each."""

_COMPLETED_KEYS, _COMPLETION_SECONDS = 1000, 0.2

Prefix: TypeAlias = str | tuple[Any, ...] | None
"""The beginning of the keys to return; None for all keys."""


def scan(
    context: ClientContext,
    prefix: Prefix = None,
    batch: int = MAX_BATCH,
    tag: bytes | None = None,
    progress: bool | None = False,
) -> Iterator[Any]:
    """Return the keys of a namespace, as `PyroCacheClient.scan` does."""
    pages = _pages(context, prefix, batch, tag)
    return _each(pages, partial(keys_of, context), progress_of("scan", progress))


def some_keys(context: ClientContext, tag: bytes | None = None) -> list[Any]:
    """Return at most 1,000 keys of a namespace, found within 0.2 s, for completion. Raises no error of ours.

    Args:
        tag: of the entries. Without one, the keys of memoized calls and of cells are left out.
    """
    deadline = Deadline(_COMPLETION_SECONDS)  # of all pages together
    keys: list[Any] = []
    try:
        for key in scan(context.changed(deadline=lambda: deadline), tag=tag):
            own = isinstance(key, tuple) and str(key[:1]).startswith("('pyrocache.")
            if not own or tag is not None:
                keys.append(key)
            if len(keys) >= _COMPLETED_KEYS or not deadline.remaining():
                break
    except PyroCacheError:
        pass
    return keys


def details(
    context: ClientContext,
    prefix: Prefix,
    batch: int,
    tag: bytes | None = None,
    progress: bool | None = False,
) -> Iterator[EntryInfo]:
    """Return a description of each entry, as `PyroCacheClient.scan` does with ``details``."""
    with at_first_use:
        from pyrocache.client.features.entries import entry_info  # imported here: its dataclasses take 1 ms

    def described(page: list[Any]) -> Iterator[EntryInfo]:
        found = (entry_info(context, sent) for sent in page)
        return (info for info in found if info.key is not MISSING)

    pages = _pages(context, prefix, batch, tag, details=True)
    return _each(pages, described, progress_of("scan", progress))


def _each(
    pages: Iterator[list[Any]], decoded: Callable[[list[Any]], Iterable[_R]], progress: Progress
) -> Iterator[_R]:
    # Decoded in here: an exception that is kept keeps its frames, and so would keep open what is in an inner iterator.
    with progress:
        for page in pages:
            progress.add(len(page))
            yield from decoded(page)


def delete_prefix(context: ClientContext, prefix: Prefix, progress: bool | None = None) -> int:
    """Remove the entries whose keys begin with ``prefix`` from every node. Return how many there were."""
    encoded = encoded_prefix("delete_prefix", context, prefix)
    bar = progress_of("delete_prefix", progress)

    def ask(member: Member, cursor: int) -> tuple[int, int]:
        return context.backend.delete_prefix(member, context.prefix, encoded, cursor, context.deadline())

    removed = 0
    with bar:
        for _, _, count in of_each_node(context, ask, to_the_end=True):
            removed += count
            bar.add(count)
    return removed


def items(context: ClientContext, bar: Progress) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a namespace."""
    with bar:
        for waiting in _pages(context):
            while waiting:
                page = Page(context, waiting)
                asked = len(waiting)
                for indices, frames in context.backend.get_many(waiting, context.deadline(), one_reply=True):
                    page.take(indices, frames)
                found, waiting = page.result()
                bar.add(asked - len(waiting))
                yield from decoded(context, found)


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
    raise no_entry()


def no_entry() -> KeyError:
    """Return the error of `popitem` in an empty namespace."""
    return brief(KeyError("there is no entry in this namespace"))


def keys_of(context: ClientContext[Any], page: list[bytes]) -> list[Any]:
    """Return the decoded keys of a page. Applies ``on_undecodable`` to the others."""
    try:
        return [decode_key(encoded, context.codec) for encoded in page]
    except (InvalidKey, SerializationError):
        decoded = (context.read_key(encoded, MISSING) for encoded in page)
        return [key for key in decoded if key is not MISSING]


class Items(ItemsView[Any, Any]):
    """The entries of a client's namespace, fetched page by page."""

    __slots__ = ("_progress",)
    _mapping: PyroCacheClient

    def __init__(self, client: PyroCacheClient, progress: bool | None = False) -> None:
        super().__init__(client)
        progress_of("items", progress)  # raises its errors now
        self._progress = progress

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return items(self._mapping._context, progress_of("items", self._progress))


class Values(ValuesView[Any]):
    """The values of a client's namespace, fetched page by page."""

    __slots__ = ("_progress",)
    _mapping: PyroCacheClient

    def __init__(self, client: PyroCacheClient, progress: bool | None = False) -> None:
        super().__init__(client)
        progress_of("values", progress)  # raises its errors now
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        entries = items(self._mapping._context, progress_of("values", self._progress))
        return map(itemgetter(1), entries)

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
    encoded = beginning(context, prefix, batch)
    return _walk(context, encoded, batch, tag, details)


def beginning(context: ClientContext[Any], prefix: Prefix, batch: int = MAX_BATCH) -> bytes:
    """Return what the keys of a scan begin with. Raises `TypeError` or `ValueError` if an argument is not valid."""
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise brief(TypeError(f"batch is how many keys to ask for at a time, not {type(batch).__name__}."))
    if not 1 <= batch <= MAX_BATCH:
        raise brief(ValueError(f"batch is 1 to {MAX_BATCH} keys, not {batch}."))
    return context.prefix if prefix is None else encoded_prefix("scan", context, prefix)


def encoded_prefix(name: str, context: ClientContext[Any], prefix: Prefix) -> bytes:
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

    for view, member, page in of_each_node(context, ask):
        # A key that has moved is left out: only its owner by this view returns it.
        yield owned(view, member, page, details=details)


def owned(view: ClusterView, member: Member, page: Iterable[Any], *, details: bool) -> list[Any]:
    """Return what a node has answered about keys that it owns by this view."""
    return [each for each in page if view.owner(each[0] if details else each) is member]


class Walk:
    """A walk over the nodes of a view, page by page: which node to ask next. Without I/O, for both clients.

    ``on_error`` says what to do where a node does not answer.

    Args:
        context: the client's.
        view: the nodes.
        unreachable: those that do not answer, each with its error.
        to_the_end: whether to ask all nodes before an error is raised.
    """

    def __init__(
        self,
        context: ClientContext[Any],
        view: ClusterView,
        unreachable: Mapping[Member, NodeUnavailable],
        *,
        to_the_end: bool = False,
    ) -> None:
        self._context = context
        self._members = iter(view.members)
        self._unreachable = unreachable
        self._to_the_end = to_the_end
        self._failures: list[CacheUnavailable] = []
        self._member: Member | None = None
        self._cursor = self._empty = 0

    def following(self) -> tuple[Member, int] | None:
        """Return the node to ask, and the cursor of the page; None at the end.

        Raises the errors of nodes as ``on_error`` says.
        """
        while self._member is None:
            member = next(self._members, None)
            if member is None:
                while self._failures:
                    self._context.missed(self._failures.pop(0), None)
                return None
            self._cursor = self._empty = 0
            self._member = member
            if member in self._unreachable:
                self.failed(self._unreachable[member])
        return self._member, self._cursor

    def answered(self, cursor: int, page: object) -> None:
        """Take an answer: the next cursor, 0 at last, and the page. Raises `RemoteError` if the node is broken."""
        assert self._member is not None
        self._cursor = cursor
        if cursor == 0:
            self._member = None
            return
        self._empty = 0 if page else self._empty + 1
        if self._empty >= _MOST_EMPTY_PAGES:
            raise RemoteError(
                f"{self._member.name} answered a scan with {self._empty} empty pages, one after the other."
            )

    def failed(self, error: CacheUnavailable) -> None:
        """Take an error in place of an answer, and leave the node. Raises it as ``on_error`` says, perhaps later."""
        self._member = None
        if self._to_the_end:
            self._failures.append(error)
        else:
            self._context.missed(error, None)


def of_each_node(
    context: ClientContext, ask: Callable[[Member, int], tuple[int, _R]], *, to_the_end: bool = False
) -> Iterator[tuple[ClusterView, Member, _R]]:
    """Yield what each node answers, page by page; see `Walk`.

    Args:
        ask: sends a node the cursor of a page, 0 at first; returns the next cursor, 0 at last, and the page.
    """
    try:
        view, unreachable = context.backend.agreed_view(context.deadline())
    except CacheUnavailable as error:
        context.missed(error, None)
        return
    walk = Walk(context, view, unreachable, to_the_end=to_the_end)
    while (following := walk.following()) is not None:
        member, cursor = following
        try:
            cursor, page = ask(member, cursor)
        except CacheUnavailable as error:
            walk.failed(error)
            continue
        walk.answered(cursor, page)
        yield view, member, page


class Page:
    """The values of a page of keys: one reply of each node bounds the memory. Without I/O, for both clients."""

    def __init__(self, context: ClientContext[Any], keys: list[bytes]) -> None:
        self._context = context
        self._keys = keys
        self._found: dict[int, Any] = {}
        self._failures: set[PyroCacheError] = set()
        self._unknown = set(range(len(keys)))

    def take(self, indices: Sequence[int], frames: Any) -> None:
        """Take the answer about some keys, frames or an error."""
        self._unknown.difference_update(indices)
        if isinstance(frames, PyroCacheError):
            self._failures.add(frames)
        else:
            self._found.update(zip(indices, frames, strict=True))

    def result(self) -> tuple[list[tuple[bytes, Any]], list[bytes]]:
        """Return the keys that were found, each with its frame, and those that are still to be requested."""
        for error in self._failures:
            if not isinstance(error, NodeUnavailable):
                raise error
            self._context.missed(error, None)
        keys, found = self._keys, sorted(self._found.items())
        entries = [(keys[index], frame) for index, frame in found if frame is not None]
        return entries, [keys[index] for index in sorted(self._unknown)]


def decoded(context: ClientContext[Any], entries: Iterable[tuple[bytes, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values of entries. Applies ``on_undecodable`` to those that do not decode."""
    for encoded, frame in entries:
        key = context.read_key(encoded, MISSING)
        value = MISSING if key is MISSING else context.read(encoded, frame, MISSING)
        if value is not MISSING:
            yield key, value
