"""Calls about many keys: each owner is asked about its own, all of them at once.

A call does its work for the keys that it can. What it could not do for the others is a `PartialFailure`, which has the
reason for each; those whose node is away count as misses instead if ``on_error`` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyrocache.client.backend import MISSING, Core, Ttl
from pyrocache.client.codec import decode_value, decode_values, encode_values
from pyrocache.client.keys.encoding import encode_keys
from pyrocache.client.routing.router import Batch
from pyrocache.config import ttl_to_seconds
from pyrocache.errors import CorruptValue, NodeUnavailable, PartialFailure, PyroCacheError, SerializationError


def get_many(core: Core, keys: Iterable[object]) -> dict[Any, Any]:
    """What `PyroCacheClient.get_many` returns."""
    asked = _listed(keys)
    hash(tuple(asked))  # TypeError now: the result is a dict by key
    values: list[Any] = [MISSING] * len(asked)
    broken: list[tuple[Sequence[int], PyroCacheError]] = []
    missing = False

    def take(indices: Sequence[int], frames: Any) -> int:
        nonlocal missing
        if type(frames) is not list or len(frames) > len(indices):
            return 0
        missing = missing or None in frames
        try:
            decoded = decode_values(frames, MISSING)
        except SerializationError:
            decoded, problems = _decode_each(frames, indices)
            broken.extend(problems)
        if len(decoded) == len(values):
            values[:] = decoded
        else:
            for index, value in zip(indices, decoded, strict=False):
                values[index] = value
        return len(frames)

    batch = Batch(encode_keys(asked, core.prefix))
    errors = core.router.batch("get_many", batch, deadline=core.deadline(), on_reply=take)
    if broken:
        core.count("corrupt_values", sum(isinstance(error, CorruptValue) for _, error in broken))
    errors += broken
    found = zip(asked, values, strict=True)
    whole = not missing and not errors
    results = dict(found) if whole else {key: value for key, value in found if value is not MISSING}
    _check(core, "get_many", asked, results, errors)
    return results


def set_many(core: Core, mapping: Mapping[Any, Any], ttl_seconds: Ttl, tags: Iterable[str] | None) -> int:
    """What `PyroCacheClient.set_many` returns."""
    seconds = ttl_to_seconds(ttl_seconds)
    encoded_tags = core.encode_tags(tags)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}.")
    keys = list(mapping)
    batch = Batch(encode_keys(keys, core.prefix), encode_values(mapping.values()))
    arguments = (seconds,) if encoded_tags is None else (seconds, encoded_tags)
    return _count_over(core, "set_many", keys, batch, *arguments)


def delete_many(core: Core, keys: Iterable[object]) -> int:
    """What `PyroCacheClient.delete_many` returns."""
    asked = _listed(keys)
    batch = Batch(encode_keys(asked, core.prefix))
    return _count_over(core, "delete_many", asked, batch, idempotent=False)


def touch_many(core: Core, keys: Iterable[object], ttl_seconds: Ttl) -> int:
    """What `PyroCacheClient.touch_many` returns."""
    seconds = ttl_to_seconds(ttl_seconds)
    asked = _listed(keys)
    distinct = dict(zip(encode_keys(asked, core.prefix), asked, strict=True))  # none is counted twice
    return _count_over(core, "touch_many", list(distinct.values()), Batch(list(distinct)), seconds)


def _listed(keys: Iterable[object]) -> list[Any]:
    """The keys; one text is no list of its letters."""
    if isinstance(keys, str | bytes | bytearray) or not hasattr(type(keys), "__iter__"):
        raise TypeError(
            f"keys is a list of keys, or another iterable of them, not one {type(keys).__name__}."
        )
    return list(keys)


def _decode_each(
    frames: Sequence[Any], indices: Sequence[int]
) -> tuple[list[Any], list[tuple[Sequence[int], PyroCacheError]]]:
    """The values of those frames that have one, `MISSING` for the others, and what is wrong with them."""
    values: list[Any] = []
    problems: list[tuple[Sequence[int], PyroCacheError]] = []
    for index, frame in zip(indices, frames, strict=False):
        value: Any = MISSING
        if frame is not None:
            try:
                value = decode_value(frame)
            except SerializationError as error:
                problems.append(([index], error))
        values.append(value)
    return values, problems


def _count_over(
    core: Core, method: str, keys: Sequence[object], batch: Batch, *arguments: Any, idempotent: bool = True
) -> int:
    """The sum of the nodes' answers to a batch."""
    total = 0

    def take(indices: Sequence[int], count: Any) -> int:
        nonlocal total
        if type(count) is not int:
            return 0
        total += count
        return len(indices)

    errors = core.router.batch(
        method, batch, *arguments, deadline=core.deadline(), on_reply=take, idempotent=idempotent
    )
    _check(core, method, keys, total, errors)
    return total


def _check(
    core: Core,
    method: str,
    keys: Sequence[object],
    results: Any,
    errors: Sequence[tuple[Sequence[int], PyroCacheError]],
) -> None:
    """Raise what ``errors`` and ``on_error`` make of a call that had these ``results``."""
    if not errors:
        return
    if core.config.on_error == "miss":
        for away in dict.fromkeys(error for _, error in errors if isinstance(error, NodeUnavailable)):
            core.missed(away, None)  # once for each node
        errors = [failed for failed in errors if not isinstance(failed[1], NodeUnavailable)]
        if not errors:
            return
    first = errors[0][1]
    try:
        by_key = {keys[index]: error for indices, error in errors for index in indices}
    except TypeError:  # a key that is not hashable
        raise first from None
    text = f"{method} failed for {len(by_key)} of {len(keys)} keys, and .errors has why for each; the first: {first}"
    raise PartialFailure(text, results, by_key) from first
