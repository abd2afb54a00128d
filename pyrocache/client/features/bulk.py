"""Bulk calls: `get_many`, `get_entries`, `set_many`, `delete_many`, `touch_many`, sent to all owners in parallel.

A call does its work for as many keys as possible. If it fails for some keys, it raises a `PartialFailure` with the
reason for each. With ``on_error="miss"``, keys whose node is unreachable count as misses instead, and so do all keys if
no node is known. With ``on_undecodable="miss"``, so do keys whose value does not decode here. ``routing/batch.py``
divides the keys into messages.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from pyrocache.client.backend import Replies
from pyrocache.client.context import MISSING, ClientContext, KeptTtl, NewTtl, When
from pyrocache.client.features.entries import Entry, entry
from pyrocache.client.features.jitter import check_jitter, shortened
from pyrocache.client.keys.encoding import encode_keys
from pyrocache.errors import CacheUnavailable, PartialFailure, PyroCacheError, SerializationError
from pyrocache.tracebacks import brief

_R = TypeVar("_R")

_Failures: TypeAlias = list[tuple[Sequence[int], PyroCacheError]]


def get_many(context: ClientContext, keys: Iterable[object]) -> dict[Any, Any]:
    """Return what `PyroCacheClient.get_many` returns."""
    asked = _listed(keys)
    hash(tuple(asked))  # TypeError now: the result is a dict by key
    encoded = encode_keys(asked, context.prefix, context.encode)
    values: list[Any] = [MISSING] * len(asked)
    failures: _Failures = []
    whole = True
    unanswered = len(asked)
    for indices, frames in _answered(context, context.backend.get_many(encoded, context.deadline())):
        unanswered -= len(indices)
        if isinstance(frames, PyroCacheError):
            failures.append((indices, frames))
            continue
        whole = whole and None not in frames
        # One node has answered for all keys, in their order.
        if len(indices) == len(values):
            values = _decoded(context, encoded, indices, frames, failures)
            continue
        decoded = _decoded(context, [encoded[index] for index in indices], indices, frames, failures)
        for index, value in zip(indices, decoded, strict=True):
            values[index] = value
    found = zip(asked, values, strict=True)
    complete = whole and not failures and not unanswered
    # If no key is missing, `dict` builds the result in C.
    results = dict(found) if complete else {key: value for key, value in found if value is not MISSING}
    _check(context, "get_many", asked, results, failures)
    return results


def get_entries(context: ClientContext, keys: Iterable[object]) -> dict[Any, Entry]:
    """Return what `PyroCacheClient.get_entries` returns."""
    asked = _listed(keys)
    hash(tuple(asked))  # TypeError now: the result is a dict by key
    encoded = encode_keys(asked, context.prefix, context.encode)
    found: dict[int, Entry] = {}
    failures: _Failures = []
    for indices, answers in _answered(context, context.backend.get_entries(encoded, context.deadline())):
        if isinstance(answers, PyroCacheError):
            failures.append((indices, answers))
            continue
        there = [(i, answer) for i, answer in zip(indices, answers, strict=True) if answer is not None]
        frames, places = [answer[0] for _, answer in there], [i for i, _ in there]
        values = _decoded(context, [encoded[i] for i in places], places, frames, failures)
        for (i, answer), value in zip(there, values, strict=True):
            if value is not MISSING:
                found[i] = entry(context, value, answer[1], answer[2:])
    results = {asked[i]: found[i] for i in sorted(found)}
    _check(context, "get_entries", asked, results, failures)
    return results


def set_many(
    context: ClientContext,
    mapping: Mapping[Any, Any],
    ttl_seconds: KeptTtl,
    tags: Iterable[str] | None,
    expires_at: When | None,
    ttl_jitter: float,
) -> int:
    """Return what `PyroCacheClient.set_many` returns."""
    seconds, jitter = context.ttl(ttl_seconds, expires_at), check_jitter(ttl_jitter)
    encoded_tags = context.encode_tags(tags)
    if not isinstance(mapping, Mapping):
        raise brief(TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}."))
    keys = list(mapping)
    encoded = encode_keys(keys, context.prefix, context.encode)
    if seconds == 0:  # they have expired already: nothing is stored
        removals = context.backend.delete_many(encoded, context.deadline())
        return _sum_of(context, "set_many", keys, _counting_all(removals))
    frames = context.codec.encode_many(encoded, mapping.values())
    ttl = [shortened(seconds, jitter) for _ in keys] if jitter and seconds is not None else seconds
    deadline = context.deadline()
    return _sum_of(
        context, "set_many", keys, context.backend.set_many(encoded, frames, ttl, encoded_tags, deadline)
    )


def delete_many(context: ClientContext, keys: Iterable[object]) -> int:
    """Return what `PyroCacheClient.delete_many` returns."""
    asked = _listed(keys)
    # A key that is given twice counts once, because its second removal finds nothing.
    encoded = encode_keys(asked, context.prefix, context.encode)
    return _sum_of(context, "delete_many", asked, context.backend.delete_many(encoded, context.deadline()))


def touch_many(
    context: ClientContext, keys: Iterable[object], ttl_seconds: NewTtl, expires_at: When | None
) -> int:
    """Return what `PyroCacheClient.touch_many` returns."""
    seconds = context.touch_ttl(ttl_seconds, expires_at)
    asked = _listed(keys)
    distinct = dict(
        zip(encode_keys(asked, context.prefix, context.encode), asked, strict=True)
    )  # count no key twice
    encoded, deadline = list(distinct), context.deadline()
    values = list(distinct.values())
    if seconds == 0:
        return _sum_of(context, "touch_many", values, context.backend.delete_many(encoded, deadline))
    return _sum_of(context, "touch_many", values, context.backend.touch_many(encoded, seconds, deadline))


def _answered(context: ClientContext, replies: Replies[_R]) -> Replies[_R]:
    """Yield the nodes' replies. If no node is known, apply ``on_error``: raise the error, or yield nothing."""
    try:
        yield from replies
    except CacheUnavailable as error:
        context.missed(error, None)


def _listed(keys: Iterable[object]) -> list[Any]:
    """Return the keys as a list. Raises `TypeError` for a single str or bytes, which would be split into its items."""
    if isinstance(keys, (str, bytes, bytearray)) or not hasattr(type(keys), "__iter__"):
        raise brief(
            TypeError(f"keys is a list of keys, or another iterable of them, not one {type(keys).__name__}.")
        )
    return list(keys)


def _decoded(
    context: ClientContext,
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


def _counting_all(replies: Replies[int]) -> Iterator[tuple[Sequence[int], int | PyroCacheError]]:
    """Yield the replies, each with the number of its keys as result."""
    for indices, reply in replies:
        yield indices, reply if isinstance(reply, PyroCacheError) else len(indices)


def _sum_of(context: ClientContext, name: str, keys: Sequence[object], replies: Replies[int]) -> int:
    """Return the sum of the nodes' replies to a call. Raises as `_check`."""
    total = 0
    failures: _Failures = []
    answers = _answered(context, replies)
    try:
        for indices, reply in answers:
            if isinstance(reply, PyroCacheError):
                failures.append((indices, reply))
            else:
                total += reply
    finally:
        del (
            answers,
            replies,
        )  # an exception that is kept would keep the connections of a call that it has cut short
    _check(context, name, keys, total, failures)
    return total


def _errors(context: ClientContext, failures: _Failures) -> _Failures:
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
    context: ClientContext, name: str, keys: Sequence[object], results: Any, failures: _Failures
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
