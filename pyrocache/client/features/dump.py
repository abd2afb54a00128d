"""Copy the entries of a namespace from the nodes to a file, and back: raw frames, which are never decoded.

So no class of a value is needed, and none of its code runs. `client/dump_format.py` has the format of the file. Expiry
is kept as a time of the wall clock, so the time in the file counts.

A dump counts as one read of each entry. It has each entry that exists throughout, once; namespaces within this one
are not in it. It fails if a node does not answer, or if the nodes of the cluster change: so a complete dump is of all
nodes. It is no snapshot: each entry is as it was at some moment during the dump.

A node does not tell value, expiry and tags of many entries at once without making them larger (`get_entries` gives each
a version). So values are read between two scans of the same page. If the scans differ about an entry, it is
read again with `get_entries`.

Memory is bounded by a page of keys and `BATCH_BYTES` of values, and one value.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyrocache.client.codec import SIGNED_KIND
from pyrocache.client.context import ClientContext
from pyrocache.client.dump_format import Header, Reader, Record, Writer, name_of
from pyrocache.client.features.scan import of_each_node, owned
from pyrocache.cluster.routing import Member
from pyrocache.errors import ConfigurationError, NodeUnavailable, PyroCacheError
from pyrocache.protocol.limits import BATCH_BYTES, MAX_BATCH

_TOLERANCE_SECONDS = 1.0
"""By how much the expiry of an entry may differ between two scans that are taken to say the same."""


@dataclass(frozen=True)
class _Described:
    """What a scan says of an entry; ``left`` is seconds, and ``size`` its bytes at the node."""

    key: bytes
    left: float
    tags: list[bytes]
    size: int

    @classmethod
    def of(cls, row: Sequence[Any]) -> _Described:
        return cls(row[0], row[1], row[2], row[5])


@dataclass
class Loaded:
    """What `load` did.

    Attributes:
        stored: entries that were stored.
        expired: entries that had expired, and were left out.
        failed: entries that could not be stored.
        problem: why the first of these could not; None if there is none.
    """

    stored: int = 0
    expired: int = 0
    failed: int = 0
    problem: PyroCacheError | None = None


def dump(
    context: ClientContext[Any],
    writer: Writer,
    progress: Callable[[int], object] = lambda entries: None,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Write all entries of a namespace.

    Args:
        context: its ``on_error`` must be ``"raise"``.
        writer: takes the entries; the caller ends it.
        progress: called with the number of entries so far.
        clock: the Unix time.

    Raises:
        CacheUnavailable: a node does not answer, or the nodes of the cluster have changed meanwhile.
    """
    backend = context.backend
    at = 0

    def ask(member: Member, cursor: int) -> tuple[int, Any]:
        nonlocal at
        at = cursor
        return scan(member, cursor)

    def scan(member: Member, cursor: int) -> tuple[int, Any]:
        deadline = context.deadline()
        prefix = context.prefix
        return backend.scan(member, prefix, prefix, cursor, MAX_BATCH, deadline, details=True)  # type: ignore[no-any-return]

    view = None
    for view, member, page in of_each_node(context, ask):
        described = [_Described.of(row) for row in owned(view, member, page, details=True)]
        for group in _groups(described):
            frames = _frames(context, [each.key for each in group])
            moment = clock()
            again = {row[0]: _Described.of(row) for row in scan(member, at)[1]}
            changed = []
            for each in group:
                frame = frames.get(each.key)
                now = again.get(each.key)
                if frame is not None and now is not None and _agree(each, now):
                    expires_at = None if math.isinf(now.left) else moment + now.left
                    writer.add(Record(each.key, frame, expires_at, now.tags))
                elif frame is not None or now is not None:
                    changed.append(each.key)
            for record in _entries(context, changed, clock):
                writer.add(record)
            del frames  # before those of the next group are read
            progress(writer.entries)
    if view is not None and backend.agreed_view(context.deadline())[0] != view:
        raise NodeUnavailable(
            "The nodes of the cluster have changed during the dump, so that it may lack entries: make it again."
        )


def load(
    context: ClientContext[Any],
    reader: Reader,
    progress: Callable[[Loaded], object] = lambda loaded: None,
    *,
    loaded: Loaded | None = None,
    clock: Callable[[], float] = time.time,
) -> Loaded:
    """Store the entries of a file in a namespace, in place of those with the same keys. Others stay.

    Args:
        context: of the namespace, which may be another one than that of the dump.
        reader: the file.
        progress: called after each block.
        loaded: counts what was done, also when this raises; a new one by default.
        clock: the Unix time.

    Raises:
        ConfigurationError: the file is damaged, or has signed values of another namespace.
        CacheUnavailable: no node is known.
    """
    loaded = Loaded() if loaded is None else loaded
    for records in reader.blocks():
        check_signed(records, reader.header, context)
        groups: dict[tuple[Any, ...], list[Record]] = {}
        now = clock()
        for record in records:
            if record.expires_at is not None and record.expires_at <= now:
                loaded.expired += 1
            else:
                groups.setdefault((record.expires_at is None, *record.tags), []).append(record)
        for group in groups.values():
            _store(context, reader.header, group, loaded, now)
        progress(loaded)
    return loaded


def check_signed(records: Sequence[Record], header: Header, context: ClientContext[Any]) -> None:
    """Raise `ConfigurationError` if signed values would be stored in another namespace than they were signed for."""
    if header.prefix == context.prefix:
        return
    if any(record.frame[:1] == SIGNED_KIND for record in records):
        raise ConfigurationError(
            f"The values of this dump are signed for {name_of(header.path)}, and would be refused by their readers in "
            f"{name_of(context.config.namespace)}: load it into {name_of(header.path)}."
        )


def _store(
    context: ClientContext[Any], header: Header, records: list[Record], loaded: Loaded, now: float
) -> None:
    """Store entries with the same tags, which all expire or all do not."""
    old, new = header.prefix, context.prefix
    keys = [new + record.key[len(old) :] for record in records]
    # Another kind of client may have stored tags that do not begin with the namespace.
    tags = [new + tag[len(old) :] if tag.startswith(old) else tag for tag in records[0].tags]
    ends = [record.expires_at for record in records]
    ttls = None if ends[0] is None else [end - now for end in ends if end is not None]
    frames = [record.frame for record in records]
    for indices, reply in context.backend.set_many(keys, frames, ttls, tags or None, context.deadline()):
        if isinstance(reply, PyroCacheError):
            loaded.problem = loaded.problem or reply
            loaded.failed += len(indices)
        else:
            loaded.stored += reply


def _groups(described: Sequence[_Described]) -> Iterator[list[_Described]]:
    """Yield entries whose values take at most `BATCH_BYTES` together, or that are alone."""
    group: list[_Described] = []
    room = BATCH_BYTES
    for each in described:
        if group and each.size > room:
            yield group
            group, room = [], BATCH_BYTES
        group.append(each)
        room -= each.size
    if group:
        yield group


def _frames(context: ClientContext[Any], keys: list[bytes]) -> dict[bytes, Any]:
    """Return the frames of the entries that there are."""
    found: dict[bytes, Any] = {}
    for indices, frames in context.backend.get_many(keys, context.deadline()):
        if isinstance(frames, PyroCacheError):
            raise frames
        found.update((keys[i], frame) for i, frame in zip(indices, frames, strict=True) if frame is not None)
    return found


def _entries(context: ClientContext[Any], keys: list[bytes], clock: Callable[[], float]) -> Iterator[Record]:
    """Yield the entries that there are, each as it is at one moment."""
    if not keys:
        return
    for indices, answers in context.backend.get_entries(keys, context.deadline()):
        if isinstance(answers, PyroCacheError):
            raise answers
        now = clock()
        for i, answer in zip(indices, answers, strict=True):
            if answer is not None:
                frame, _, left, tags, *_ = answer
                yield Record(keys[i], frame, None if math.isinf(left) else now + left, tags)


def _agree(before: _Described, after: _Described) -> bool:
    """Return whether two scans, one soon after the other, say the same of an entry."""
    if sorted(before.tags) != sorted(after.tags):
        return False
    if math.isinf(before.left) or math.isinf(after.left):
        return before.left == after.left
    return abs(before.left - after.left) < _TOLERANCE_SECONDS
