"""Bulk calls: `get_many`, `get_entries`, `set_many`, `delete_many`, `touch_many`, sent to all owners in parallel.

A call does its work for as many keys as possible. If it fails for some keys, it raises a `PartialFailure` with the
reason for each. With ``on_error="miss"``, keys whose node is unreachable count as misses instead, and so do all keys if
no node is known. With ``on_undecodable="miss"``, so do keys whose value does not decode here. ``routing/batch.py``
divides the keys into messages. The classes do no I/O, and the asyncio client uses them as well.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pyrocache.client.backend import Backend, Replies
from pyrocache.client.context import MISSING, ClientContext, KeptTtl, NewTtl, When
from pyrocache.client.features.jitter import check_jitter, shortened
from pyrocache.client.features.progress import NO_PROGRESS, Progress, progress_of
from pyrocache.client.keys.encoding import encode_keys
from pyrocache.errors import CacheUnavailable, PartialFailure, PyroCacheError, SerializationError
from pyrocache.late_imports import at_first_use
from pyrocache.net.deadline import Deadline
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from pyrocache.client.features.entries import Entry

_Failures: TypeAlias = list[tuple[Sequence[int], PyroCacheError]]


class GetMany:
    """A `get_many` call: the keys to ask for, and what is made of the answers. Without I/O, for both clients.

    Attributes:
        encoded: the keys to request.

    Raises:
        TypeError: a key is not hashable.
    """

    def __init__(self, context: ClientContext[Any], keys: Iterable[object]) -> None:
        self._context = context
        self._asked = _listed(keys)
        hash(tuple(self._asked))  # TypeError now: the result is a dict by key
        self.encoded = encode_keys(self._asked, context.prefix, context.encode)
        self._values: list[Any] = [MISSING] * len(self._asked)
        self._failures: _Failures = []
        self._whole = True
        self._unanswered = len(self._asked)

    def take(self, indices: Sequence[int], frames: Any) -> None:
        """Take the answer about some keys, frames or an error."""
        self._unanswered -= len(indices)
        if isinstance(frames, PyroCacheError):
            self._failures.append((indices, frames))
            return
        self._whole = self._whole and None not in frames
        context, encoded, values = self._context, self.encoded, self._values
        # One node has answered for all keys, in their order.
        if len(indices) == len(values):
            self._values = _decoded(context, encoded, indices, frames, self._failures)
            return
        keys = [encoded[index] for index in indices]
        for index, value in zip(
            indices, _decoded(context, keys, indices, frames, self._failures), strict=True
        ):
            values[index] = value

    def result(self) -> dict[Any, Any]:
        """Return what `PyroCacheClient.get_many` returns. Raises `PartialFailure`."""
        found = zip(self._asked, self._values, strict=True)
        complete = self._whole and not self._failures and not self._unanswered
        # If no key is missing, `dict` builds the result in C.
        results = dict(found) if complete else {key: value for key, value in found if value is not MISSING}
        _check(self._context, "get_many", self._asked, results, self._failures)
        return results


class GetEntries:
    """A `get_entries` call; see `GetMany`."""

    def __init__(self, context: ClientContext[Any], keys: Iterable[object]) -> None:
        self._context = context
        self._asked = _listed(keys)
        hash(tuple(self._asked))  # TypeError now: the result is a dict by key
        self.encoded = encode_keys(self._asked, context.prefix, context.encode)
        self._found: dict[int, Entry] = {}
        self._failures: _Failures = []

    def take(self, indices: Sequence[int], answers: Any) -> None:
        """Take the answer about some keys, entries or an error."""
        if isinstance(answers, PyroCacheError):
            self._failures.append((indices, answers))
            return
        with at_first_use:
            from pyrocache.client.features.entries import entry  # imported here: its dataclasses take 1 ms
        there = [(i, answer) for i, answer in zip(indices, answers, strict=True) if answer is not None]
        frames, places = [answer[0] for _, answer in there], [i for i, _ in there]
        keys = [self.encoded[i] for i in places]
        values = _decoded(self._context, keys, places, frames, self._failures)
        for (i, answer), value in zip(there, values, strict=True):
            if value is not MISSING:
                self._found[i] = entry(self._context, value, answer[1], answer[2:])

    def result(self) -> dict[Any, Entry]:
        """Return what `PyroCacheClient.get_entries` returns. Raises `PartialFailure`."""
        results = {self._asked[i]: self._found[i] for i in sorted(self._found)}
        _check(self._context, "get_entries", self._asked, results, self._failures)
        return results


class Change:
    """A change of many entries, whose answers are numbers of entries. Without I/O, for both clients.

    Attributes:
        name: the method.
        encoded: the keys to change.
        frames: the values to store; None to do something else.
        seconds: the TTL of all entries, or of each.
        tags: the encoded tags.
        removes: whether the entries are to be removed, because their time is over; all of them count.
    """

    def __init__(self, context: ClientContext[Any], name: str, keys: list[Any], encoded: list[bytes]) -> None:
        self._context = context
        self.name = name
        self._keys = keys
        self._failures: _Failures = []
        self._total = 0
        self.encoded = encoded
        self.frames: list[Any] | None = None
        self.seconds: Any = None
        self.tags: list[bytes] | None = None
        self.removes = False
        self._counts_all = False

    @classmethod
    def set_many(
        cls,
        context: ClientContext[Any],
        mapping: Mapping[Any, Any],
        ttl_seconds: KeptTtl,
        tags: Iterable[str] | None,
        expires_at: When | None,
        ttl_jitter: float,
    ) -> Self:
        """Return the change of `PyroCacheClient.set_many`."""
        seconds, jitter = context.ttl(ttl_seconds, expires_at), check_jitter(ttl_jitter)
        encoded_tags = context.encode_tags(tags)
        if not isinstance(mapping, Mapping):
            raise brief(
                TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}.")
            )
        keys = list(mapping)
        change = cls(context, "set_many", keys, encode_keys(keys, context.prefix, context.encode))
        change.removes = change._counts_all = seconds == 0  # they have expired already: nothing is stored
        if not change.removes:
            change.frames = context.codec.encode_many(change.encoded, mapping.values())
            change.tags = encoded_tags
            change.seconds = seconds
            if jitter and seconds is not None:
                change.seconds = [shortened(seconds, jitter) for _ in keys]
        return change

    @classmethod
    def delete_many(cls, context: ClientContext[Any], keys: Iterable[object]) -> Self:
        """Return the change of `PyroCacheClient.delete_many`."""
        asked = _listed(keys)
        # A key that is given twice counts once, because its second removal finds nothing.
        change = cls(context, "delete_many", asked, encode_keys(asked, context.prefix, context.encode))
        change.removes = True
        return change

    @classmethod
    def touch_many(
        cls,
        context: ClientContext[Any],
        keys: Iterable[object],
        ttl_seconds: NewTtl,
        expires_at: When | None,
    ) -> Self:
        """Return the change of `PyroCacheClient.touch_many`."""
        seconds = context.touch_ttl(ttl_seconds, expires_at)
        asked = _listed(keys)
        # Count no key twice.
        distinct = dict(zip(encode_keys(asked, context.prefix, context.encode), asked, strict=True))
        change = cls(context, "touch_many", list(distinct.values()), list(distinct))
        change.seconds, change.removes = seconds, seconds == 0
        return change

    def take(self, indices: Sequence[int], reply: int | PyroCacheError) -> None:
        """Take the answer about some keys, a number or an error."""
        if isinstance(reply, PyroCacheError):
            self._failures.append((indices, reply))
        else:
            self._total += len(indices) if self._counts_all else reply

    def result(self) -> int:
        """Return the sum. Raises `PartialFailure`."""
        _check(self._context, self.name, self._keys, self._total, self._failures)
        return self._total


def get_many(context: ClientContext, keys: Iterable[object], progress: bool | None = None) -> dict[Any, Any]:
    """Return what `PyroCacheClient.get_many` returns."""
    call = GetMany(context, keys)
    bar = progress_of("get_many", progress, len(call.encoded))
    _take_all(context, call, context.backend.get_many(call.encoded, context.deadline()), bar)
    return call.result()


def get_entries(context: ClientContext, keys: Iterable[object]) -> dict[Any, Entry]:
    """Return what `PyroCacheClient.get_entries` returns."""
    call = GetEntries(context, keys)
    _take_all(context, call, context.backend.get_entries(call.encoded, context.deadline()))
    return call.result()


def make(context: ClientContext, change: Change, progress: bool | None = False) -> int:
    """Return what `PyroCacheClient.set_many`, `delete_many` and `touch_many` return."""
    bar = progress_of(change.name, progress, len(change.encoded))
    _take_all(context, change, _replies(context.backend, change, context.deadline()), bar)
    return change.result()


def _replies(backend: Backend, change: Change, deadline: Deadline) -> Replies[int]:
    if change.removes:
        return backend.delete_many(change.encoded, deadline)
    if change.frames is not None:
        return backend.set_many(change.encoded, change.frames, change.seconds, change.tags, deadline)
    return backend.touch_many(change.encoded, change.seconds, deadline)


def _take_all(
    context: ClientContext,
    call: GetMany | GetEntries | Change,
    replies: Replies[Any],
    progress: Progress = NO_PROGRESS,
) -> None:
    """Give a call its answers. If no node is known, apply ``on_error``: raise the error, or give nothing."""
    try:
        with progress:
            for indices, reply in replies:
                call.take(indices, reply)
                if not isinstance(reply, PyroCacheError):
                    progress.add(len(indices))
    except CacheUnavailable as error:
        context.missed(error, None)
    finally:
        # No frame refers to the replies, not even a caller's: an exception that is kept would keep the connections of
        # a call that it has cut short.
        del replies


def _listed(keys: Iterable[object]) -> list[Any]:
    """Return the keys as a list. Raises `TypeError` for a single str or bytes, which would be split into its items."""
    if isinstance(keys, (str, bytes, bytearray)) or not hasattr(type(keys), "__iter__"):
        raise brief(
            TypeError(f"keys is a list of keys, or another iterable of them, not one {type(keys).__name__}.")
        )
    return list(keys)


def _decoded(
    context: ClientContext[Any],
    keys: Sequence[bytes],
    indices: Sequence[int],
    frames: Sequence[Any],
    failures: _Failures,
) -> list[Any]:
    """Return the value of each frame, `MISSING` where there is none. Append decoding errors to ``failures``."""
    try:
        return context.codec.decode_many(keys, frames, MISSING)
    except SerializationError:
        values: list[Any] = []
    # Some frame does not decode. Decode one by one, to keep the other values.
    for index, key, frame in zip(indices, keys, frames, strict=True):
        values.append(MISSING)
        if frame is not None:
            try:
                values[-1] = context.codec.decode(key, frame)
            except SerializationError as error:
                failures.append(([index], error))
    return values


def _errors(context: ClientContext[Any], failures: _Failures) -> _Failures:
    """Return the failures that are errors of the call. Count the others as misses, once for each node and value."""
    misses: set[PyroCacheError] = set()
    for error in {error for _, error in failures}:
        with suppress(PyroCacheError):  # raised again as part of the `PartialFailure`
            if isinstance(error, CacheUnavailable):
                context.missed(error, None)
                misses.add(error)
            elif isinstance(error, SerializationError):
                context.undecodable(error, None)
                misses.add(error)
    return [failed for failed in failures if failed[1] not in misses]


def _check(
    context: ClientContext[Any], name: str, keys: Sequence[object], results: Any, failures: _Failures
) -> None:
    """Apply ``on_error`` and ``on_undecodable`` to the failures of a call.

    Raises:
        PartialFailure: some failures are not misses; it has ``results``.
    """
    failures = _errors(context, failures) if failures else failures
    if not failures:
        return
    first = failures[0][1]
    try:
        by_key = {keys[index]: error for indices, error in failures for index in indices}
    except TypeError:  # a key that is not hashable
        raise first from None
    text = f"{name} failed for {len(by_key)} of {len(keys)} keys, and .errors has why for each; the first: {first}"
    raise PartialFailure(text, results, by_key) from first.__cause__
